"""One program in one sandbox: what passes, what the tests may do, and what is refused at the start."""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
import time
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from judge_builders import DOUBLE, QUICK, TESTS, job, need_judge

from reasonrl.config import ConfigError
from reasonrl.eval.judge import canaries, inside, seccomp
from reasonrl.eval.judge import sandbox as sandboxes
from reasonrl.eval.judge.sandbox import BWRAP, Sandbox, explained
from reasonrl.verify.judge.jobs import compat_job, extract_code, humaneval_job, mbpp_job, names_under_test
from reasonrl.verify.judge.types import VERDICTS, Job, Limits, Outcome, Program


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    need_judge()
    return Sandbox()


# -- verdicts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "verdict", "message"),
    [
        (DOUBLE, "passed", ""),
        ("def double(x):\n    return 3 * x", "failed", "line 1 of the tests"),
        ("def double(x):\n    raise KeyError('x')", "error", "KeyError: 'x'"),
        ("def double(x):\n    import sys\n    sys.exit(0)", "error", "ended itself: SystemExit: 0"),
        ("def double(x:", "unparseable", "SyntaxError"),
        ("def treble(x):\n    return 3 * x", "error", "defines no double"),
        ("def double(x):\n    return bytearray(4 << 30)", "memory", "MemoryError"),
        ("def double(x):\n    print('x' * 100_000)", "output_limit", "65536 bytes"),
        ("def double(x):\n    while True:\n        pass", "timeout_cpu", ""),
        ("import time\ndef double(x):\n    time.sleep(60)", "timeout_wall", ""),
    ],
)
def test_each_verdict_says_what_happened(sandbox: Sandbox, code: str, verdict: str, message: str) -> None:
    outcome = sandbox.run(job(code, names=("double",)))
    assert outcome.verdict == verdict, outcome
    assert message in outcome.message
    assert verdict in VERDICTS


def test_a_candidate_cannot_make_the_verdict_too_long_to_be_read(sandbox: Sandbox) -> None:
    """It answers the tests itself, with megabytes of words about why it does not compile."""
    forged = (
        "import os\ndef double(x):\n    data = b'[\"unparseable\",\"a\",\"' + b'w' * (2 << 20) + b'\",[]]'\n"
        "    data = len(data).to_bytes(4, 'little') + data\n    while data:\n        data = data[os.write(4, data):]\n"
    )
    outcome = sandbox.run(job(forged))
    assert outcome.verdict == "unparseable", outcome.message[:200]
    assert len(outcome.message) <= 2 * inside.MESSAGE_CHARS


def test_an_input_without_room_is_no_wrong_answer(sandbox: Sandbox) -> None:
    count = "import sys\nprint(len(sys.stdin.read()))"
    fits = sandbox.run(Program(count, "x" * sandboxes.LARGEST_STDIN))
    assert fits.stdout == f"{sandboxes.LARGEST_STDIN}\n"
    outcome = sandbox.run(Program(count, "x" * (sandboxes.LARGEST_STDIN + 1)))
    assert (outcome.verdict, outcome.again) == ("sandbox_error", False)


def test_cpu_time_is_the_clock_not_the_time_on_the_wall(sandbox: Sandbox) -> None:
    slow = "import time\ndef double(x):\n    time.sleep(0.5)\n    return 2 * x"
    outcome = sandbox.run(job(slow, limits=Limits(cpu_seconds=0.2, wall_seconds=10)))
    assert outcome.passed
    assert outcome.wall_seconds > 1 > 0.2 > outcome.cpu_seconds


def test_a_busy_machine_makes_no_timeout(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five others on the same core: a quarter of a second takes more than one, but the program never waited.

    However busy the machine is besides: how long it may be kept from running at most has a test of its own.
    """
    monkeypatch.setattr(sandboxes, "LONGEST_STARVED", 100)
    code = "import time\ndef double(x):\n    while time.process_time() < 0.25:\n        pass\n    return 2 * x"
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    loop = [sys.executable, "-S", "-c", "while True: pass"]
    others = [subprocess.Popen(loop, start_new_session=True) for _ in range(5)]  # a share of the core goes to a session
    try:
        outcome = sandbox.run(job(code, limits=Limits(cpu_seconds=0.4, wall_seconds=0.6)))
    finally:
        os.sched_setaffinity(0, cores)
        for other in others:
            other.kill()
            other.wait()
    assert outcome.passed, outcome
    assert outcome.wall_seconds > 0.6  # or the others were not in its way


def test_what_an_ended_process_waited_for_a_core_still_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a program that is over a moment before its tests would leave them with all of its delay."""
    trees, waited = [[1, 2, 3], [1, 2]], {1: 7.0, 2: 0.5, 3: 2.0}  # 1 is bubblewrap itself
    monkeypatch.setattr(sandboxes, "_tree", lambda pid: trees.pop(0))
    monkeypatch.setattr(sandboxes, "_waited_for_a_core", waited.__getitem__)
    running: Any = SimpleNamespace(
        sandbox=SimpleNamespace(isolation="bwrap"), process=SimpleNamespace(pid=1), limits=Limits(), waited={}
    )
    assert sandboxes._Running._starved(running) == 2.5
    assert sandboxes._Running._starved(running) == 2.5


def test_a_program_that_others_keep_from_running_is_ended_too(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandboxes, "LONGEST_STARVED", 3)
    monkeypatch.setattr(sandboxes, "_waited_for_a_core", lambda pid: 1000.0)
    outcome = sandbox.run(job("import time\ntime.sleep(60)", limits=Limits(cpu_seconds=0.4, wall_seconds=0.4)))
    assert outcome.verdict == "timeout_wall"
    assert 3 * 0.4 <= outcome.wall_seconds < 30


def test_all_processes_of_a_program_share_its_cpu_time(sandbox: Sandbox) -> None:
    code = "import os\nfor _ in range(3):\n    os.fork()\nwhile True:\n    pass"
    outcome = sandbox.run(job(code, limits=Limits(cpu_seconds=0.5, wall_seconds=20)))
    assert outcome.verdict == "timeout_cpu"
    assert outcome.cpu_seconds < 2  # eight processes with half a second each would be 4


# -- what travels ----------------------------------------------------------------------------------------------------

VALUES = [
    None, True, 0, -1, 2**63, -(2**200), 1.5, -0.0, math.inf, "é\ud800\n\"", b"\0\xff", bytearray(b"x"), (), (1,), [[], [1]],
    {}, {(1, "a"): [2]}, set(), {1, 2}, frozenset({1}), 1 + 2j, range(1, 9, 2), Decimal("1.10"), Fraction(-1, 3), int, ...,
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_value_comes_back_as_it_was(value: Any) -> None:
    back = inside.decode(inside.encode(value, None), None)
    assert back == value
    assert type(back) is type(value)
    assert repr(back) == repr(value)  # -0.0 is -0.0


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.complex_numbers(allow_nan=False),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(plain)
@settings(deadline=None)
def test_nested_values_come_back_as_they_were(value: Any) -> None:
    assert inside.decode(inside.encode(value, None), None) == value


TAGS = ("tuple", "dict", "set", "int", "float", "fraction", "decimal", "range", "type", "object", "bytes", "complex")
messages = st.recursive(
    st.none() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(TAGS), inner, max_size=2),
).map(json.dumps)


@given(st.text() | messages)
@settings(deadline=None)
def test_whatever_a_candidate_sends_is_a_value_or_a_known_failure(text: str) -> None:
    def unknown(tag: str, number: object) -> None:
        raise ValueError(tag)

    known = (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError)
    with contextlib.suppress(*known):
        inside.decode(text, unknown)


def test_a_value_of_a_subclass_travels_as_its_base(sandbox: Sandbox) -> None:
    code = """
import collections, enum
class One(enum.IntEnum):
    A = 1
Pair = collections.namedtuple("Pair", "x y")
def f(k):
    return [One.A, Pair(1, 2), collections.Counter("aab"), collections.OrderedDict(a=1)][k]
"""
    assert sandbox.run(job(code, "assert [f(k) for k in range(4)] == [1, (1, 2), {'a': 2, 'b': 1}, {'a': 1}]")).passed


def test_objects_of_the_program_can_be_made_linked_and_passed_by_the_tests(sandbox: Sandbox) -> None:
    code = """
class Node:
    def __init__(self, value):
        self.value, self.left, self.right = value, None, None
def total(node):
    return 0 if node is None else node.value + total(node.left) + total(node.right)
"""
    tests = """
root = Node(1)
root.left = Node(2)
root.left.right = Node(4)
assert total(root) == 7
assert root.left.value == 2
assert root.left.left is None
assert root == root and root != root.left
"""
    assert sandbox.run(job(code, tests)).passed


def test_the_tests_catch_what_the_program_raises(sandbox: Sandbox) -> None:
    tests = "try:\n    f(0)\n    assert False, 'no error'\nexcept ZeroDivisionError:\n    pass\nassert f(2) == 5"
    assert sandbox.run(job("def f(x):\n    return 10 // x", tests)).passed
    caught = "class Own(ValueError):\n    pass\ndef f(x):\n    if not x:\n        raise Own('no')\n    return 5"
    assert sandbox.run(job(caught, tests.replace("ZeroDivisionError", "ValueError"))).passed


def test_no_test_can_catch_that_the_program_ended(sandbox: Sandbox) -> None:
    tests = "try:\n    f(0)\nexcept BaseException:\n    pass"
    assert sandbox.run(job("import os\ndef f(x):\n    os._exit(0)", tests)).verdict == "error"
    assert sandbox.run(job("def f(x):\n    raise SystemExit", tests)).verdict == "error"


def test_arguments_are_copies(sandbox: Sandbox) -> None:
    """A program that empties the list it gets cannot make `sorted` of that list empty too."""
    tests = "given = [3, 1, 2]\nassert f(given) == sorted(given)"
    assert sandbox.run(job("def f(x):\n    x.clear()\n    return []", tests)).verdict == "failed"


def test_iterators_of_the_program_can_be_read(sandbox: Sandbox) -> None:
    tests = "assert list(f(3)) == [0, 1, 2]\nassert next(f(3)) == 0\nassert sorted(f(3), reverse=True)[0] == 2"
    assert sandbox.run(job("def f(n):\n    yield from range(n)", tests)).passed


def test_helpers_of_the_prompt_are_the_prompts_own(sandbox: Sandbox) -> None:
    """HumanEval/32 checks `poly(xs, find_zero(xs))`: a program that redefines poly must not pass."""
    prompt = (
        "def poly(xs, x):\n    return sum(c * x**i for i, c in enumerate(xs))\n\n"
        "def find_zero(xs):\n    '''A zero of poly.'''\n"
    )
    tests = "def check(candidate):\n    xs = [-6, 2]\n    assert abs(poly(xs, candidate(xs))) < 1e-9"
    right = "def find_zero(xs):\n    return -xs[0] / xs[1]"
    cheat = "def poly(xs, x):\n    return 0\ndef find_zero(xs):\n    return 0"
    assert sandbox.run(humaneval_job(prompt, tests, "find_zero", right)).passed
    assert sandbox.run(humaneval_job(prompt, tests, "find_zero", cheat)).verdict == "failed"
    assert sandbox.run(humaneval_job(prompt, tests, "find_zero", "    return -xs[0] / xs[1]")).passed  # only its body


def test_a_function_may_have_the_name_of_a_built_in_where_the_tests_test_nothing_else(sandbox: Sandbox) -> None:
    assert sandbox.run(mbpp_job(["assert sum(10, 15) == 6"], "def sum(a, b):\n    return 6")).passed
    cheat = "def set(x):\n    return 0\ndef f(x):\n    return []"
    assert sandbox.run(mbpp_job(["assert set(f([1, 2])) == set([1, 2])"], cheat)).verdict == "failed"
    assert names_under_test("assert sum(10, 15) == 6") == ("sum",)
    assert names_under_test("assert set(f([1, 2])) == set([1, 2])") == ()
    with pytest.raises(ValueError, match="tests do not compile"):
        names_under_test("assert f(")


def test_a_module_that_the_tests_use_is_never_the_programs(sandbox: Sandbox) -> None:
    """The tests forgot `import math`: a program may have imported it, or made one in which all is close."""
    tests = "assert math.isclose(half(3), 1.5)"
    assert sandbox.run(job("import math\ndef half(x):\n    return x / 2", tests)).passed
    cheat = "class math:\n    def isclose(*a):\n        return True\ndef half(x):\n    return 0"
    assert sandbox.run(job(cheat, tests)).verdict == "failed"
    assert sandbox.run(
        job("def copy(x):\n    return x", "assert copy([1]) == [1]")
    ).passed  # a function, not the module


def test_setup_runs_before_the_asserts(sandbox: Sandbox) -> None:
    code = "class Pair:\n    def __init__(self, a):\n        self.a = a\ndef f(p):\n    return p.a"
    assert sandbox.run(mbpp_job(["assert f(p) == 3"], code, setup="p = Pair(3)\r\n")).passed


def test_tests_that_cannot_be_judged_strictly_are_no_wrong_answer(sandbox: Sandbox) -> None:
    tests = "assert f(lambda x: x + 1) == 2"
    outcome = sandbox.run(job("def f(g):\n    return g(1)", tests))
    assert (outcome.verdict, outcome.again) == ("sandbox_error", False)
    assert "pass a function to the candidate" in outcome.message
    assert sandbox.run(job("def f(g):\n    return g(1)", tests, mode="nonce")).passed
    outcome = sandbox.run(job(DOUBLE, "assert double("))
    assert (outcome.verdict, outcome.again) == ("sandbox_error", False)


@pytest.mark.parametrize(
    ("code", "verdict"),
    [
        (DOUBLE, "passed"),
        ("def double(x):\n    return 0", "failed"),
        ("import os\nos._exit(0)", "error"),
        ("import sys\nsys.exit(0)", "error"),
        ("def double(", "unparseable"),
        ("def double(x):\n    raise KeyError", "error"),
        ("def double(x):\n    while True:\n        pass", "timeout_cpu"),
        (
            "import os\nos.write(4, (15).to_bytes(4, 'little') + b'[\"passed\",\"no\"]')\nos._exit(0)",
            "failed",
        ),
    ],
)
def test_with_a_nonce_program_and_tests_share_a_process(sandbox: Sandbox, code: str, verdict: str) -> None:
    assert sandbox.run(job(code, mode="nonce")).verdict == verdict


# -- whole programs --------------------------------------------------------------------------------------------------


def test_a_program_reads_stdin_and_its_exit_code_counts(sandbox: Sandbox) -> None:
    outcome = sandbox.run(Program("import sys\nprint(2 * int(input()))\nprint('e', file=sys.stderr)", "21\n", QUICK))
    assert (outcome.verdict, outcome.stdout, outcome.stderr, outcome.exit_code) == ("passed", "42\n", "e\n", 0)
    outcome = sandbox.run(Program("exit(3)", limits=QUICK))
    assert (outcome.verdict, outcome.exit_code) == ("error", 3)
    outcome = sandbox.run(Program("if __name__ == '__main__':\n    1 / 0", limits=QUICK))
    assert outcome.exit_code == 1
    assert 'File "main.py", line 2' in outcome.stderr
    assert "inside" not in outcome.stderr


def test_a_program_may_import_what_is_installed(sandbox: Sandbox) -> None:
    if not any((Path(folder) / "numpy").is_dir() for folder in sandbox.image.packages):
        pytest.skip(f"no numpy for the sandbox's interpreter, {sandbox.image.version}")
    code = "import numpy as np\ndef double(x):\n    return (np.array([x]) * 2).sum()"
    assert sandbox.run(job(code, limits=Limits(cpu_seconds=5))).passed
    tests = "import numpy as np\nassert np.isclose(double(np.float64(0.1)), 0.2)"
    assert sandbox.run(job(DOUBLE, tests, limits=Limits(cpu_seconds=5))).passed


# -- starting --------------------------------------------------------------------------------------------------------


def test_the_canaries_hold(sandbox: Sandbox) -> None:
    assert canaries.check(sandbox) > 20


def test_a_leak_stops_the_start_and_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    need_judge()
    leaky = Sandbox()
    leaky.argv = [arg for arg in leaky.argv if arg != "--unshare-all"]
    leaky.argv[1:1] = ["--unshare-pid", "--unshare-uts"]  # the network is this machine's
    at = leaky.argv.index("--tmpfs")
    leaky.argv[at - 2 : at + 2] = ["--bind", "/tmp", "/tmp"]
    few = canaries.canaries
    names = ("a right program passes", "a file of this machine", "a server on this machine", "an abstract socket")
    monkeypatch.setattr(canaries, "canaries", lambda *a: [c for c in few(*a) if c.name in names])
    with pytest.raises(ConfigError, match="the sandbox leaks") as error:
        canaries.check(leaky)
    assert "a file of this machine: expected ENOENT, got 'done'" in str(error.value)
    assert "a server on this machine" in str(error.value)
    assert "an abstract socket" in str(error.value)
    assert "a right program" not in str(error.value)


def test_without_user_namespaces_it_refuses_and_says_why() -> None:
    """Inside a sandbox that forbids another one, as in a container without the right to make namespaces."""
    need_judge()
    script = (
        "from reasonrl.eval.judge.sandbox import Sandbox\nfrom reasonrl.eval.judge.canaries import check\n"
        "s = Sandbox()\ncheck(s)"
    )
    wrap = [BWRAP, "--unshare-user", "--disable-userns", "--dev-bind", "/", "/", "--"]
    done = subprocess.run([*wrap, sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1
    assert "the sandbox does not work here" in done.stderr
    assert "no namespace can be made here" in done.stderr
    assert "unsafe_local=true" in done.stderr


@pytest.mark.parametrize(
    ("told", "way_out"),
    [
        ("bwrap: No permissions to create new namespace, likely because", "seccomp=unconfined"),
        ("bwrap: setting up uid map: Permission denied", "apparmor_restrict_unprivileged_userns"),
        ("bwrap: Creating new namespace failed: No space left on device", "max_user_namespaces"),
        ("bwrap: Can't mount proc on /newroot/proc: Operation not permitted", "systempaths=unconfined"),
        ("bwrap: Unknown option --disable-userns", "0.8.0 or later"),
    ],
)
def test_what_bubblewrap_says_is_explained(told: str, way_out: str) -> None:
    assert way_out in explained(told, 1)


def test_without_bubblewrap_or_an_interpreter_it_says_what_to_install() -> None:
    with pytest.raises(ConfigError, match="apt-get install bubblewrap"):
        Sandbox(bwrap="/nowhere/bwrap")
    need_judge()
    with pytest.raises(ConfigError, match="no interpreter for the sandbox"):
        Sandbox(python="/nowhere/python")


def test_a_sandbox_that_does_not_start_is_no_wrong_answer(sandbox: Sandbox) -> None:
    broken = Sandbox()
    broken.argv = [*broken.argv, "--ro-bind", "/nowhere", "/nowhere"]
    outcome = broken.run(job())
    assert (outcome.verdict, outcome.again) == ("sandbox_error", True)
    assert "/nowhere" in outcome.message


def test_file_descriptors_are_given_back(sandbox: Sandbox) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for code in (DOUBLE, "import os\nos._exit(0)", "while True: print('x' * 9999)"):
        sandbox.run(job(code))
    assert len(os.listdir("/proc/self/fd")) == before


def test_without_a_sandbox_only_the_limits_are_left() -> None:
    local = Sandbox(unsafe_local=True)
    assert local.isolation == "none"
    assert local.run(job()).passed
    assert local.run(job("def double(x):\n    while True:\n        pass")).verdict == "timeout_cpu"


def test_the_filter_is_whole_and_unknown_machines_have_none() -> None:
    for machine in ("x86_64", "aarch64"):
        code = seccomp.program(machine)
        assert code is not None
        assert len(code) % 8 == 0
        assert len(code) // 8 < 4096
    assert seccomp.program("vax") is None


# -- jobs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Here:\n```python\nx = 1\n```\nDone.", "x = 1\n"),
        ("```py\nx = 1\n```", "x = 1\n"),
        ("```Python\nx = 1\n```", "x = 1\n"),
        ("```\nx = 1\n```\n```python\nx = 2\n```", "x = 1\n"),
        ("```bash\npip install x\n```\n```python\nx = 2\n```", "x = 2\n"),
        ("```json\n{}\n```", None),
        ("```python\nx = 1", None),
        ("x = 1", "x = 1"),
        ("5", "5"),
        ("Sure, here it is", None),
        ("", None),
        ("x = '```'\n", "x = '```'\n"),
        ("```python\r\nx = 1\r\n```\r\nDone.", "x = 1\r\n"),
        ("```python title=`a`\nx = 1\n```\ny\n```\n", "y\n"),
        ("  ``` python3 \n  x = 1\n  ```\t\n", "  x = 1\n"),
        ("```py\nx = 1\n```py\ny\n```", "x = 1\n```py\ny\n"),
    ],
)
def test_the_program_in_an_answer_is_its_first_python_block(text: str, code: str | None) -> None:
    assert extract_code(text) == code


@pytest.mark.parametrize("piece", ["```python\n", "```0", "0", "``` ", "   ", "```python\nx\n```sh\n"])
def test_finding_the_program_takes_time_linear_in_the_answer(piece: str) -> None:
    """A model that repeats itself must not hold up the loop that samples: the text is read outside any deadline."""
    begin = time.process_time()
    assert extract_code("```" + piece * (200_000 // len(piece))) is None
    assert time.process_time() - begin < 2  # measured: 0.05; a search from each fence takes minutes


def test_the_released_judges_jobs_are_prompt_and_completion(sandbox: Sandbox) -> None:
    prompt, test = "def double(x):\n    '''Twice.'''\n", "def check(candidate):\n    assert candidate(2) == 4"
    assert sandbox.run(compat_job(prompt, test, "double", "    return 2 * x", QUICK)).passed
    assert sandbox.run(compat_job("", "def check():\n    " + TESTS.splitlines()[0], "", DOUBLE, QUICK)).passed
    assert sandbox.run(compat_job("", test, "double", "", QUICK)).verdict == "error"
    with pytest.raises(ValueError, match="no name of Python"):
        compat_job("", test, "double(); print", "", QUICK)


def test_limits_and_jobs_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="cpu_seconds must be at least"):
        Limits(cpu_seconds=0)
    with pytest.raises(ValueError, match="mode must be one of strict, nonce"):
        Job("", "", mode="lax")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no name of Python"):
        Job("", "", names=("a b",))
    assert Limits(cpu_seconds=2).wall == 8
    assert Job("a", "b").key("x") != Job("a", "c").key("x") != Job("a", "c").key("y")
    assert not Outcome("failed").passed
