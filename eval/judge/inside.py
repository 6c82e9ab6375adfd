"""What runs inside the sandbox: process 1 is the driver, its child the candidate.

The driver forks before it reads the job, so that the candidate's memory never holds a test. Then it makes itself
unreadable (not dumpable); as process 1 of its pid namespace it cannot be killed from inside either. It runs the tests,
and where they call the candidate's functions, asks the candidate through a pipe: values travel as text (`encode`), so
that an object with an `__eq__` of its own never reaches a comparison. What is not plain data travels as a number and
is a `Remote` in the tests: it can be called, read, written and iterated, and it equals nothing but itself.

The service sends this file as compiled code, so it stands alone; it imports nothing slow, because each job pays for it.
Standard library of Python 3.8 or later.
"""

import _json
import _signal
import builtins
import marshal
import os
import select
import sys

LARGEST_MESSAGE = 8 << 20  # bytes of one value
DEEPEST = 100  # lists in lists
MESSAGE_CHARS = 1000
MAP_NAME = "candidate"
RESULT = "result"


class NotPlain(Exception):
    """A value that cannot travel as text."""


class Unparseable(Exception):
    """The candidate's program does not compile."""


class Ended(BaseException):
    """The candidate is gone; no test may catch it by `except Exception`."""


# -- values as text --------------------------------------------------------------------------------------------------


def tagged(name, text):
    """The JSON of a value that JSON does not know."""
    return '{"' + name + '":' + text + "}"


def encode(value, handle, depth=0):
    """JSON text of a value. `handle(value)` gives tag and number of one that is no plain data, or raises NotPlain."""
    if value is None:
        return "null"
    if value is True:
        return "true"
    if value is False:
        return "false"
    if depth > DEEPEST:
        raise NotPlain(f"lists nested more than {DEEPEST} deep")

    def listed(values):
        return "[" + ",".join([encode(each, handle, depth + 1) for each in values]) + "]"

    # A subclass travels as its base, read by the base's own methods: its `__eq__` stays here.
    if isinstance(value, int):
        value = int.__pos__(value)
        return int.__repr__(value) if -(2**63) <= value < 2**63 else tagged("int", f'"{value:x}"')
    if isinstance(value, float):
        value = float.__pos__(value)
        return float.__repr__(value) if value - value == 0 else tagged("float", f'"{value!r}"')
    if isinstance(value, str):
        return _json.encode_basestring_ascii(str.__str__(value))
    if isinstance(value, list):
        return listed(list.__iter__(value))
    if isinstance(value, dict):
        return tagged("dict", "[" + ",".join([listed(pair) for pair in dict.items(value)]) + "]")
    for kind in (tuple, set, frozenset):
        if isinstance(value, kind):
            return tagged(kind.__name__, listed(kind.__iter__(value)))
    for kind in (bytes, bytearray):
        if isinstance(value, kind):
            return tagged(kind.__name__, f'"{kind.hex(value)}"')
    if isinstance(value, complex):
        return tagged("complex", listed((value.real, value.imag)))
    if isinstance(value, range):
        return tagged("range", listed((value.start, value.stop, value.step)))
    if value is Ellipsis:
        return tagged("ellipsis", "0")
    kind = type(value)
    if kind.__module__ == "decimal" and kind.__name__ == "Decimal":
        return tagged("decimal", encode(str(value), handle, depth + 1))
    if kind.__module__ == "fractions" and kind.__name__ == "Fraction":
        return tagged("fraction", listed((value.numerator, value.denominator)))
    if kind.__module__ == "numpy" and hasattr(kind, "item") and getattr(value, "ndim", 1) == 0:
        return encode(value.item(), handle, depth + 1)
    if kind is type and getattr(builtins, value.__name__, None) is value:
        return tagged("type", f'"{value.__name__}"')
    tag, number = handle(value)
    return tagged(tag, str(number))


class _Scanner:
    """What the C scanner of JSON wants to know."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = float


_scan = _json.make_scanner(_Scanner)


def decode(text, handle):
    """The value that `text` means. Raises ValueError for anything that `encode` would not have written."""
    try:
        value, end = _scan(text, 0)
    except (StopIteration, RecursionError) as error:
        raise ValueError("not a value") from error
    if end != len(text):
        raise ValueError("more than one value")
    return build(value, handle)


def build(value, handle):
    """The value from its JSON."""
    if isinstance(value, list):
        return [build(each, handle) for each in value]
    if not isinstance(value, dict):
        return value
    if len(value) != 1:
        raise ValueError("not one tag")
    ((tag, inner),) = value.items()
    if tag == "tuple":
        return tuple([build(each, handle) for each in inner])
    if tag == "dict":
        return {build(k, handle): build(v, handle) for k, v in inner}
    if tag == "set":
        return {build(each, handle) for each in inner}
    if tag == "frozenset":
        return frozenset([build(each, handle) for each in inner])
    if tag == "int":
        return int(inner, 16)
    if tag == "float":
        return float(inner)
    if tag == "bytes":
        return bytes.fromhex(inner)
    if tag == "bytearray":
        return bytearray.fromhex(inner)
    if tag == "complex":
        return complex(*build(inner, handle))
    if tag == "range":
        return range(*build(inner, handle))
    if tag == "ellipsis":
        return Ellipsis
    if tag == "type":
        found = getattr(builtins, inner)
        if not isinstance(found, type):
            raise ValueError("not a type")
        return found
    if tag == "decimal":
        import decimal

        return decimal.Decimal(inner)
    if tag == "fraction":
        import fractions

        above, below = build(inner, handle)
        if type(above) is not int or type(below) is not int:  # "1e1000000000" would take for ever
            raise ValueError("not a fraction")
        return fractions.Fraction(above, below)
    return handle(tag, inner)


# -- pipes -----------------------------------------------------------------------------------------------------------


def read_exactly(fd, size):
    """`size` bytes of `fd`. Raises EOFError."""
    parts = []
    while size:
        part = os.read(fd, min(size, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def write_all(fd, data):
    """All of `data`."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def send(fd, data):
    """A message: its length in four bytes, then itself."""
    write_all(fd, len(data).to_bytes(4, "little") + data)


def receive(fd):
    """A message from a trusted end."""
    return read_exactly(fd, int.from_bytes(read_exactly(fd, 4), "little"))


# -- the candidate ---------------------------------------------------------------------------------------------------


def limit(limits):
    """The limits of the candidate and of all that it starts; none can be raised again."""
    import resource

    # The watchdog outside ends it at the limit itself; the kernel counts whole seconds, and by ticks, up to 10 % early.
    cpu = 1 - int(-limits["cpu_seconds"] // 1)
    for name, most in (
        ("RLIMIT_CPU", cpu),
        ("RLIMIT_AS", limits["memory_bytes"]),
        ("RLIMIT_FSIZE", limits["file_bytes"]),
        ("RLIMIT_NOFILE", limits["open_files"]),
        ("RLIMIT_NPROC", limits["processes"] + 1),  # the driver is one of them
        ("RLIMIT_CORE", 0),
        ("RLIMIT_STACK", 8 << 20),
        ("RLIMIT_MSGQUEUE", 0),
        ("RLIMIT_MEMLOCK", 0),
    ):
        which = getattr(resource, name)
        hard = resource.getrlimit(which)[1]
        if hard != resource.RLIM_INFINITY:
            most = min(most, hard)
        resource.setrlimit(which, (most, most))


def with_packages(folders):
    """What is installed can be imported; one thread each, or a machine of many cores would exceed the limits."""
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
    sys.path.extend(folders)


def candidate(asked, answers, out, err):
    """The life of the candidate's process."""
    job = marshal.loads(receive(asked))
    null = os.open(os.devnull, os.O_RDONLY)
    if job["mode"] == "program" and job["stdin"]:
        source = os.open("stdin", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        os.unlink("stdin")
        write_all(source, job["stdin"])
        os.lseek(source, 0, os.SEEK_SET)
    else:
        source = null
    high = [os.dup(fd) for fd in (asked, answers)]
    os.dup2(source, 0)
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.dup2(high[0], 3)
    os.dup2(high[1], 4)
    asked, answers = 3, 4
    os.closerange(3 if job["mode"] == "program" else 5, 4096)
    with_packages(job["packages"])
    sys.argv = ["main.py"]
    builtins.exit = builtins.quit = sys.exit  # `site` would have added them; it is left out because it is slow
    _signal.signal(_signal.SIGINT, _signal.default_int_handler)
    limit(job["limits"])
    if job["mode"] == "program":
        run_program(job)
    elif job["mode"] == "nonce":
        run_with_tests(job, answers)
    else:
        Served(job, asked, answers).live()


def module(name):
    """A fresh module, to be the candidate's namespace."""
    made = type(sys)(name)
    made.__builtins__ = builtins
    sys.modules[name] = made
    return made.__dict__


def run_program(job):
    """A whole program with its stdin; its exit code is the answer."""
    code = 1
    try:
        exec(compile(job["code"], "main.py", "exec", dont_inherit=True), module("__main__"))
        code = 0
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            code = (stop.code or 0) & 255
        else:
            print(stop.code, file=sys.stderr)
    except BaseException as error:
        import traceback

        there = error.__traceback__.tb_next if error.__traceback__ is not None else None
        traceback.print_exception(type(error), error, there)
    sys.exit(code)  # the interpreter waits for threads, runs what was registered and flushes


def run_with_tests(job, answers):
    """The candidate and its tests in one namespace: what it says of itself is only as good as the nonce is secret."""
    nonce = job.pop("nonce")
    tests = job.pop("tests")
    space = module(MAP_NAME)
    try:
        stage = "unparseable"
        program = compile(job["code"], "main.py", "exec", dont_inherit=True)
        checks = compile(tests, "tests.py", "exec", dont_inherit=True)
        stage = "error"
        exec(program, space)
        stage = "tests"
        exec(checks, space)
    except BaseException as error:
        verdict = stage
        if stage == "tests":
            verdict = "failed" if isinstance(error, AssertionError) else "error"
        if isinstance(error, MemoryError):
            verdict = "memory"
        flush()
        send(answers, encode([verdict, told(error)], None).encode())
        os._exit(1)
    flush()
    send(answers, encode(["passed", nonce], None).encode())
    os._exit(0)


def told(error):
    """`ValueError: why`, of an exception whose own methods may misbehave."""
    try:
        return f"{type(error).__name__}: {error}"[:MESSAGE_CHARS]
    except BaseException:
        return type(error).__name__


def flush():
    """What was printed goes out, if the candidate has left its streams as they were."""
    for stream in (sys.stdout, sys.stderr):
        try:  # noqa: SIM105  (contextlib would cost each program a millisecond)
            stream.flush()
        except BaseException:
            pass


class Served:
    """The candidate's side of the pipe: loads the program, then does what the tests ask."""

    def __init__(self, job, asked, answers):
        self.job, self.asked, self.answers = job, asked, answers
        self.objects = []
        self.numbers = {}
        self.space = {}

    def handle(self, value):
        """The number of an object that stays here."""
        if id(value) not in self.numbers:
            self.numbers[id(value)] = len(self.objects)
            self.objects.append(value)  # kept, so that its id stays its own
        return "object", self.numbers[id(value)]

    def known(self, tag, number):
        """And back."""
        if tag != "object":
            raise ValueError(tag)
        return self.objects[number]

    def live(self):
        """Until the driver closes the pipe."""
        self.answer(self.load)
        while True:
            try:
                request = receive(self.asked)
            except EOFError:
                os._exit(0)
            self.answer(lambda request=request: self.do(*decode(request.decode(), self.known)))

    def answer(self, work):
        """The result of `work`, or what it raised."""
        try:
            reply = encode(["ok", work()], self.handle)
            if len(reply) > LARGEST_MESSAGE:
                reply = encode(["raised", "ValueError", f"a result of {len(reply)} bytes", []], None)
        except Unparseable as error:
            reply = encode(["unparseable", "SyntaxError", str(error), []], None)
        except BaseException as error:
            bases = [base.__name__ for base in type(error).__mro__ if base.__module__ == "builtins"]
            try:
                words = str(error)[:MESSAGE_CHARS]
            except BaseException:
                words = ""
            reply = encode(["raised", type(error).__name__, words, bases], None)
        flush()  # it is killed in the end, and what it printed is to be seen
        send(self.answers, reply.encode())

    def load(self):
        """The program itself."""
        try:
            program = compile(self.job["code"], "main.py", "exec", dont_inherit=True)
        except (SyntaxError, ValueError, RecursionError, OverflowError) as error:
            raise Unparseable(told(error)) from None
        self.space = module(MAP_NAME)
        exec(program, self.space)

    def do(self, verb, target, args, kwargs):
        """One request of the tests."""
        if verb == "names":
            return {name: self.space[name] for name in args if name in self.space}
        if verb == "call":
            return target(*args, **kwargs)
        if verb == "get":
            return getattr(target, args[0])
        if verb == "set":
            return setattr(target, args[0], args[1])
        if verb == "item":
            return target[args[0]]
        if verb == "put":
            target[args[0]] = args[1]
            return None
        if verb == "len":
            return len(target)
        if verb == "list":
            return list(target)
        if verb == "next":
            return next(target)
        if verb == "bool":
            return bool(target)
        if verb == "str":
            return str(target)
        raise ValueError(verb)


# -- the driver ------------------------------------------------------------------------------------------------------


class Remote:
    """An object of the candidate's, seen from the tests."""

    __slots__ = ("_ask", "_number")

    def __init__(self, ask, number):
        object.__setattr__(self, "_ask", ask)
        object.__setattr__(self, "_number", number)

    def __call__(self, *args, **kwargs):
        return self._ask("call", self, list(args), kwargs)

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return self._ask("get", self, [name], {})

    def __setattr__(self, name, value):
        self._ask("set", self, [name, value], {})

    def __getitem__(self, key):
        return self._ask("item", self, [key], {})

    def __setitem__(self, key, value):
        self._ask("put", self, [key, value], {})

    def __len__(self):
        return self._ask("len", self, [], {})

    def __iter__(self):
        return iter(self._ask("list", self, [], {}))

    def __next__(self):
        return self._ask("next", self, [], {})

    def __bool__(self):
        return self._ask("bool", self, [], {}) is True

    def __str__(self):
        return str(self._ask("str", self, [], {}))

    __repr__ = __str__

    def __eq__(self, other):
        return isinstance(other, Remote) and self._number == other._number

    def __hash__(self):
        return self._number


class BadJob(Exception):
    """The job itself cannot be judged, whatever the candidate does."""


class Link:
    """The driver's side of the pipe."""

    def __init__(self, child, ask_fd, answer_fd):
        self.child, self.ask_fd, self.answer_fd = child, ask_fd, answer_fd
        self.raised = None  # the last exception that the candidate raised
        self.over = False
        self.why = ""  # why it is over, if the candidate said so
        self.bad = None
        self.poll = select.poll()
        self.poll.register(answer_fd, select.POLLIN)

    def handle(self, value):
        if isinstance(value, Remote):
            return "object", value._number
        self.bad = f"the tests pass a {type(value).__name__} to the candidate, which strict mode cannot send"
        raise BadJob(self.bad)

    def known(self, tag, number):
        if tag != "object" or type(number) is not int or number < 0:
            raise ValueError("an unknown tag")
        return Remote(self.ask, number)

    def ask(self, verb, target, args, kwargs):
        """What the candidate answers. Raises what it raised, or Ended."""
        if self.over:
            raise Ended
        request = encode([verb, target, args, kwargs], self.handle).encode()
        try:
            send(self.ask_fd, request)
        except OSError:
            self.over = True
            raise Ended from None
        return self.answer()

    def answer(self):
        """Its next message."""
        try:
            size = int.from_bytes(self.read(4), "little")
            if size > 2 * LARGEST_MESSAGE:
                raise ValueError("too long")
            kind, *rest = decode(self.read(size).decode(), self.known)
            if kind == "ok":
                (value,) = rest
                return value
            name, words, bases = rest
            if not all(type(each) is str for each in [kind, name, words, *bases]):
                raise ValueError("an unknown answer")
            told = f"{name[:100]}: {words[:MESSAGE_CHARS]}"
            self.raised = make_exception(kind, words, [name, *bases], told)
            if self.raised is None:
                self.why = told
                raise EOFError
        except (
            EOFError,
            OSError,
            ValueError,
            TypeError,
            KeyError,
            RecursionError,
            ArithmeticError,
            ImportError,
            AttributeError,
        ) as error:
            self.over = True
            raise Ended from error
        raise self.raised

    def read(self, size):
        """Bytes of the answer; EOFError also when a stranger holds the pipe open for a candidate that has ended."""
        parts = []
        while size:
            while not self.poll.poll(100):
                if os.waitid(os.P_PID, self.child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                    raise EOFError
            part = os.read(self.answer_fd, min(size, 1 << 20))
            if not part:
                raise EOFError
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


def make_exception(kind, words, names, told):
    """The nearest built-in exception, so that `except ValueError` of a test works; None for SystemExit and its like."""
    if kind == "unparseable":
        return Unparseable(words)
    if kind != "raised":
        raise ValueError("an unknown answer")
    for name in names:
        found = getattr(builtins, name, None)
        if isinstance(found, type) and issubclass(found, Exception):
            try:
                made = found(words)
            except TypeError:  # UnicodeDecodeError and the like want more
                continue
            made.judge_told = told
            return made
    return None


def names_in(code):
    """Every global name that the code and the functions in it may look up."""
    found = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, type(code)):
            found |= names_in(constant)
    return found


def modules_among(names, tests):
    """Modules of the standard library that the tests use and do not import: `math` is never the candidate's."""
    likely = [name for name in names if name in getattr(sys, "stdlib_module_names", ())]
    if not likely:
        return {}
    import ast

    nodes = list(ast.walk(ast.parse(tests)))
    used = [node.id for node in nodes if isinstance(node, ast.Name)]
    dotted = [node.value.id for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)]
    return {name: __import__(name) for name in likely if 0 < used.count(name) == dotted.count(name)}


def drive(job, link):
    """Run the tests; returns (verdict, message)."""
    try:
        prelude = compile(job["prelude"], "prompt.py", "exec", dont_inherit=True)
        tests = compile(job["tests"], "tests.py", "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        return "bad_job", f"the tests do not compile: {told(error)}"
    space = {"__name__": "tests", "__builtins__": builtins}
    try:
        exec(prelude, space)
    except BaseException as error:
        return "bad_job", f"the prompt does not run: {told(error)}"
    verdict, message = "passed", ""
    try:
        link.answer()  # loading
        served = list(job["names"])
        for name in served:
            space.pop(name, None)
        wanted = [name for name in names_in(tests) if name not in space and not hasattr(builtins, name)]
        space.update(modules_among(wanted, job["tests"]))
        wanted = [name for name in wanted if name not in space]
        space.update(link.ask("names", None, sorted({*wanted, *served}), {}))
        missing = [name for name in served if name not in space]
        if missing:
            return "error", f"the program defines no {', '.join(missing)}"
        if job["names"]:
            space.setdefault("candidate", space[job["names"][0]])
        exec(tests, space)
    except Ended:
        verdict, message = "ended", ""
    except Unparseable as error:
        verdict, message = "unparseable", str(error)
    except BadJob as error:
        verdict, message = "bad_job", f"{error}; give mode=nonce"
    except BaseException as error:
        verdict, message = "failed", told(error) + where(error)
        if error is link.raised:
            verdict, message = "memory" if isinstance(error, MemoryError) else "error", error.judge_told
    if link.over:
        verdict = "ended"
    if link.bad and verdict != "bad_job":
        verdict, message = "bad_job", f"{link.bad}; give mode=nonce"
    return verdict, message


def where(error):
    """The line of the tests where it happened."""
    line, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "tests.py":
            line = trace.tb_lineno
        trace = trace.tb_next
    return f" (line {line} of the tests)" if line else ""


def has_ended(child, seconds=0.3):
    """Whether it does within so many seconds: a pipe closes a moment before its process is over."""
    for _ in range(int(seconds * 100)):
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return True
        select.select([], [], [], 0.01)
    return False


def unreadable():
    """No process of the same user may look into this one: prctl(PR_SET_DUMPABLE, 0)."""
    import _ctypes

    prctl = _ctypes.dlsym(_ctypes.dlopen(None, 0), "prctl")
    if _ctypes.call_function(prctl, (4, 0, 0, 0, 0)) != 0 or _ctypes.call_function(prctl, (3, 0, 0, 0, 0)) != 0:
        raise OSError("PR_SET_DUMPABLE")


def main(result, out, err):
    """Process 1: the job comes at fd 0; one line goes to the fd `result`; the candidate's output to `out`, `err`."""
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    ask_read, ask_write = os.pipe()
    answer_read, answer_write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(result)
        os.close(ask_write)
        os.close(answer_read)
        candidate(ask_read, answer_write, out, err)
        os._exit(1)
    unreadable()
    for fd in (ask_read, answer_write, out, err):
        os.close(fd)
    job = marshal.loads(receive(0))
    os.close(0)
    nonce = os.urandom(16).hex()
    link = Link(child, ask_write, answer_read)
    known = ("mode", "code", "limits", "packages", "stdin")
    share = {name: job[name] for name in known if name in job}
    if job["mode"] == "nonce":
        share.update(tests=job["tests"], nonce=nonce)
    send(ask_write, marshal.dumps(share))
    verdict, message = "ended", ""
    if job["mode"] == "strict":
        import resource

        cpu = int(job["limits"]["cpu_seconds"]) + 2
        resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu))
        memory = job["limits"]["memory_bytes"]
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        if hasattr(sys, "set_int_max_str_digits"):
            sys.set_int_max_str_digits(4300)
        with_packages(job["packages"])
        verdict, message = drive(job, link)
    elif job["mode"] == "nonce":
        try:
            size = int.from_bytes(link.read(4), "little")
            verdict, message = decode(link.read(min(size, LARGEST_MESSAGE)).decode(), link.known)
        except (EOFError, ValueError, TypeError, OSError):
            verdict = "ended"
        if verdict == "passed":
            verdict, message = ("passed", "") if message == nonce else ("failed", "it claims to have passed")
        elif verdict not in ("failed", "error", "unparseable", "memory") or type(message) is not str:
            verdict = "ended"
    if job["mode"] == "strict":
        if verdict == "ended" and not link.why and not has_ended(child):
            link.why = "it broke off the conversation"
        if verdict != "ended" or link.why:
            os.kill(child, 9)
    _, status, usage = os.wait4(child, 0)
    cpu = usage.ru_utime + usage.ru_stime
    if job["mode"] == "nonce" and verdict == "passed" and status != 0:
        verdict, message = "error", "it passed and then failed to end"
    code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)
    if verdict == "ended":
        if not link.why and code in (-9, -24) and cpu >= 0.8 * job["limits"]["cpu_seconds"]:
            verdict, message = "timeout_cpu", ""
        elif job["mode"] != "program":
            verdict = "error"
            message = f"exit code {code}" if code >= 0 else f"signal {-code}"
            message = f"the program ended itself: {link.why or message}"
    message = str(message)[: 2 * MESSAGE_CHARS]  # the candidate may have chosen it, and only so much is read
    write_all(result, encode({"verdict": verdict, "message": message, "cpu": cpu, "exit": code}, None).encode())
    os._exit(0)
