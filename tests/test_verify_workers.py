"""The processes that compare: a deadline for each comparison of a batch, deaths, retirement, and a poisoned set."""

import math
import multiprocessing
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import fake_worker
import pytest

from reasonrl.verify import worker, workers
from reasonrl.verify.pool import Verifier, VerifierError, VerifyConfig
from reasonrl.verify.workers import BATCH, CLOSED, Outcome, Task, Workers

RIGHT = Outcome(True, "ok")
Make = Callable[..., "Asked"]


class Asked:
    """Workers, and the outcomes of what they were asked, in the order of arrival."""

    def __init__(self, crew: Workers) -> None:
        self.crew = crew
        self.arrived: list[tuple[int, Outcome]] = []
        self.times: list[float] = []
        self.asked = 0
        self.change = threading.Condition()

    def put(self, *answers: str) -> None:
        """Ask whether each is itself."""
        for answer in answers:
            self.crew.put(Task(answer, answer, lambda outcome, number=self.asked: self._done(number, outcome)))
            self.asked += 1

    def _done(self, number: int, outcome: Outcome) -> None:
        with self.change:
            self.arrived.append((number, outcome))
            self.times.append(time.monotonic())
            self.change.notify_all()

    def outcomes(self, seconds: float = 30.0) -> list[Outcome]:
        """In the order of asking, once all are there; each has exactly one."""
        with self.change:
            assert self.change.wait_for(lambda: len(self.arrived) >= self.asked, seconds), self.arrived
        assert sorted(number for number, _ in self.arrived) == list(range(self.asked))
        return [outcome for _, outcome in sorted(self.arrived)]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Workers that run `fake_worker`."""
    monkeypatch.setattr(worker, "serve", fake_worker.serve)
    made: list[Workers] = []

    def start(checker: str = "", timeout: float = 0.8, count: int = 1, stall: float = 30.0) -> Asked:
        made.append(Workers(checker, timeout, count, stall))
        return Asked(made[-1])

    yield start
    for crew in made:
        crew.close()
    assert running() == []


def running() -> list[int]:
    """Processes of the workers, without those of other test files' verifiers."""
    return [p.pid for p in multiprocessing.active_children() if p.name == "reasonrl-verify" and p.pid not in BEFORE]


BEFORE: set[int | None] = set()


@pytest.fixture(autouse=True)
def before() -> None:
    BEFORE.clear()
    BEFORE.update(p.pid for p in multiprocessing.active_children())


def as_one_batch(asked: Asked, *answers: str) -> list[Outcome]:
    """Ask while the worker is busy, so that all of them wait and go out together."""
    asked.put("sleep 0.3")
    asked.put(*answers)
    return asked.outcomes()[1:]


def test_a_hang_costs_one_verdict_and_the_rest_of_its_batch_goes_on(make: Make) -> None:
    asked = make(timeout=1.5)
    found = as_one_batch(asked, *"abc", "hang", *"defgh")
    assert found == [RIGHT] * 3 + [Outcome(False, "timeout", "no verdict in 1.5 s")] + [RIGHT] * 5
    assert [number for number, _ in asked.arrived] == list(range(10))  # in front of the queue again
    assert 1.4 < asked.times[4] - asked.times[3] < 2.9


def test_each_comparison_has_the_whole_deadline(make: Make) -> None:
    """Six take longer together than one may alone."""
    assert as_one_batch(make(timeout=1.0), *["sleep 0.2"] * 6) == [RIGHT] * 6


def test_a_death_costs_the_comparison_in_hand(make: Make) -> None:
    found = as_one_batch(make(), "a", "die", "b")
    assert found == [RIGHT, Outcome(False, "error", "the worker process died, exit code -9"), RIGHT]


def test_an_exception_is_an_error_and_the_process_stays(make: Make) -> None:
    asked = make()
    assert as_one_batch(asked, "raise", "b") == [Outcome(False, "error", "ValueError: odd"), RIGHT]
    assert len(running()) == 1


def test_a_worker_that_retires_is_replaced_and_nothing_is_lost(make: Make) -> None:
    assert as_one_batch(make("retires"), *map(str, range(40))) == [RIGHT] * 40


def test_workers_that_die_at_the_start_end_as_errors_not_in_a_loop(make: Make) -> None:
    asked = make("dies")
    asked.put("a", "b")
    for outcome in asked.outcomes():
        assert (outcome.status, outcome.message) == ("error", "no worker process: it died, exit code 3")


def test_a_process_that_cannot_be_started_is_an_error(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no more processes")

    monkeypatch.setattr(workers, "_Process", refuse)
    asked = make()
    asked.put("a")
    assert asked.outcomes() == [Outcome(False, "error", "no worker process: OSError('no more processes')")]


def test_a_worker_that_never_takes_its_batch_is_given_up(make: Make) -> None:
    asked = make("deaf", timeout=0.3, stall=0.3)
    asked.put("a")
    assert asked.outcomes() == [Outcome(False, "error", "no worker answered for 0.6 s")]


def test_processes_start_as_they_are_needed(make: Make) -> None:
    asked = make(count=3)
    asked.put("a")
    asked.outcomes()
    assert len(running()) == 1
    asked.put(*["sleep 0.5"] * 6)
    asked.outcomes()
    assert len(running()) == 3


def test_hangs_do_not_wait_for_each_other_while_a_process_is_free(make: Make) -> None:
    asked = make(count=4, timeout=1.0)
    asked.put(*["sleep 0.1"] * 4)
    asked.outcomes()
    started = time.monotonic()
    asked.put(*["hang"] * 4)
    assert {outcome.status for outcome in asked.outcomes()[4:]} == {"timeout"}
    assert time.monotonic() - started < 3.5  # one after the other would take over 4 s


def test_a_long_queue_is_served_in_batches(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    send = workers._Process.send
    monkeypatch.setattr(workers._Process, "send", lambda self, batch: sizes.append(len(batch)) or send(self, batch))
    as_one_batch(make(), *map(str, range(100)))
    assert max(sizes) == BATCH
    assert len(sizes) < 25


def test_closing_ends_what_waits_and_what_is_asked_later(make: Make) -> None:
    asked = make(timeout=30.0, count=2)
    asked.put(*["hang"] * 2, *"abcdefgh")
    time.sleep(0.5)
    started = time.monotonic()
    asked.crew.close()
    asked.put("later")
    found = asked.outcomes(1.0)
    assert {outcome.status for outcome in found} <= {"error", "ok"}
    assert found[-1] == CLOSED
    assert time.monotonic() - started < 5.0


def test_warming_up_says_what_is_broken(make: Make) -> None:
    with (
        Verifier(VerifyConfig(timeout=0.5)) as verifier,
        pytest.raises(VerifierError, match=r"verify=either calls \\frac\{2\}\{4\} and \\frac\{1\}\{2\} different"),
    ):
        verifier.warm_up()  # the fake knows no fractions


# with the real worker

HOSTILE = [
    r"9^{9^{9^{9}}}",
    r"100000000!",
    r"\sum_{k=1}^{10^{12}} k^{k}",
    r"\int_0^1 \int_0^x \sin(\cos(\exp(z^7+\sqrt{z}))) dz dx",
]


def test_a_poisoned_set_ends_by_the_bound_of_its_deadlines() -> None:
    """A tenth of it hangs; one more is too long to be compared. Everybody else's verdict is what it was."""
    timeout, crew, restart = 0.6, 2, 2.0
    pairs = [(rf"so \boxed{{\frac{{{2 * n}}}{{{4 * n + 2}}}}}", rf"\frac{{{n}}}{{{2 * n + 1}}}") for n in range(1, 61)]
    with Verifier(VerifyConfig(checker="math_verify", workers=crew, timeout=timeout)) as verifier:
        verifier.warm_up()
        started = time.monotonic()
        assert all(verdict.correct for verdict in verifier.verify_many(pairs))
        plain = time.monotonic() - started
    hostile = range(5, 60, 10)
    for number, at in enumerate(hostile):
        pairs[at] = (rf"so \boxed{{{HOSTILE[number % len(HOSTILE)]}+{number}}}", r"\frac{1}{3}")
    pairs.append((r"\boxed{" + "1+" * 5_000 + "1}", r"\frac{1}{3}"))
    bound = (math.ceil(len(hostile) / crew) + 1) * (timeout + restart) + plain
    with Verifier(VerifyConfig(checker="math_verify", workers=crew, timeout=timeout)) as verifier:
        verifier.warm_up()
        started = time.monotonic()
        verdicts = verifier.verify_many(pairs)
        assert time.monotonic() - started < bound
    assert [verdicts[at].status for at in hostile] == ["timeout"] * len(hostile)
    assert [at for at, verdict in enumerate(verdicts) if not verdict.correct] == [*hostile, 60]


def test_a_worker_that_has_grown_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, theirs = multiprocessing.Pipe()
    monkeypatch.setattr(worker, "initialize", lambda checker: None)
    monkeypatch.setattr(worker, "RETIRE_BYTES", worker._resident_bytes() // 2)
    old = signal.getsignal(signal.SIGINT)
    try:
        worker.serve(theirs, "exact", 1.0)  # comes back at once: this process is larger than allowed
    finally:
        signal.signal(signal.SIGINT, old)
    assert not pipe.poll(0)


def test_a_worker_is_the_fast_one_and_small() -> None:
    """In a process of its own, because it changes Math-Verify."""
    code = """
from reasonrl.verify import worker
worker.initialize("either")
from latex2sympy2_extended.latex2sympy2 import _Latex2Sympy
assert hasattr(_Latex2Sympy.create_parser, "faster")
assert 0 < worker._resident_bytes() < worker.RETIRE_BYTES / 3
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
