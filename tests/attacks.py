"""Programs that want to pass without being right, or to get out: data of test_judge_attacks.py.

Each is to double a number; TESTS are its tests. A heading names it and the verdicts that it may get.

    ##    the whole program
    ###   something attempted while the program loads; then it answers 0, or rightly where it is to pass

In attempts FILE is a file of this machine that everybody may read, VARIABLE an environment variable, PORT a listening
port, ABSTRACT a listening abstract socket, MARK a path to leave a trace at, `libc` the C library. A program that gets
what it must not prints LEAK.

    python attacks.py START STEP [UID]    runs every STEP-th from START, prints a line of JSON each; as user UID
"""

from __future__ import annotations

import concurrent.futures.thread  # noqa: F401  (what is needed must be loaded before root is given up)
import contextlib
import ctypes
import encodings.idna  # noqa: F401
import json
import os
import re
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path

from reasonrl.eval.judge import canaries
from reasonrl.eval.judge.sandbox import Sandbox, _tree
from reasonrl.verify.judge.types import Job, Limits

TESTS = "assert double(2) == 4\nassert double(-3) == -6"
LIMITS = Limits(cpu_seconds=0.6, wall_seconds=2.0, memory_mb=512)
WRONG = "\ndef double(x):\n    return 0\n"
RIGHT = "\ndef double(x):\n    return 2 * x\n"
LIBC = "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
BAIT = ("FILE", "VARIABLE", "PORT", "ABSTRACT", "MARK")


@dataclass(frozen=True)
class Attack:
    """A program, and the verdicts that it may get."""

    name: str
    code: str
    verdicts: tuple[str, ...]


def every_fd(payload: str) -> str:
    """Writes to everything that is open."""
    return (
        f"import os\nfor fd in range(3, 64):\n    try:\n        os.write(fd, {payload})\n"
        f"    except OSError:\n        pass\n{WRONG}"
    )


def message(text: str) -> str:
    """The expression of a message to the driver."""
    data = text.encode()
    return repr(len(data).to_bytes(4, "little") + data)


def attacks(text: str) -> list[Attack]:
    """Those of one of the texts below."""
    found = []
    for section in re.split(r"^(?=##)", text, flags=re.MULTILINE)[1:]:
        heading, _, code = section.partition("\n")
        marks, name, verdicts = re.fullmatch(r"(##+) (.+) -> ([a-z_ ]+)", heading).groups()  # type: ignore[union-attr]
        may = tuple(verdicts.split())
        found.append(Attack(name, code if marks == "##" else attempt(code, may), may))
    return found


def attempt(code: str, verdicts: tuple[str, ...]) -> str:
    """The program around something attempted."""
    body = "\n".join(f"    {line}" for line in f"{LIBC if 'libc.' in code else ''}{code}".strip().splitlines())
    failed = "except (Exception, MemoryError) as error:\n    print(repr(error)[:200])"
    return f"import os\ntry:\n{body}\n{failed}\n{RIGHT if 'passed' in verdicts else WRONG}"


PASSING = r"""
## an object equal to everything -> failed
class E:
    def __eq__(s, o):
        return True
def double(x):
    return E()

## a class equal to everything -> failed
class M(type):
    def __eq__(s, o):
        return True
    def __hash__(s):
        return 0
class E(metaclass=M):
    pass
def double(x):
    return E

## an int equal to everything -> failed
class I(int):
    def __eq__(s, o):
        return True
    def __ne__(s, o):
        return False
    __hash__ = int.__hash__
def double(x):
    return I(0)

## an int that shows another value -> failed
class I(int):
    def __pos__(s):
        return 4
    def __int__(s):
        return 4
    def __index__(s):
        return 4
    def __repr__(s):
        return '4'
def double(x):
    return I(0)

## a list equal to everything -> failed
class L(list):
    def __eq__(s, o):
        return True
def double(x):
    return L()

## not a number -> failed
def double(x):
    return float('nan')

## an object that is true -> failed
class E:
    def __bool__(s):
        return True
    def __len__(s):
        return 4
def double(x):
    return E()

## frames: locals called result -> failed
import sys
def double(x):
    f = sys._getframe()
    while f:
        for d in (f.f_locals, f.f_globals):
            for k in list(d):
                if k in ('result', 'verdict', 'passed', 'ok', 'over', 'bad'):
                    d[k] = 'passed'
        f = f.f_back
    return 0

## no assertions -> failed
import builtins, sys
builtins.AssertionError = type('A', (BaseException,), {})
def double(x):
    return 0

## built-ins replaced -> failed error
import builtins
for n in ('all', 'any', 'abs', 'len', 'isinstance', 'compile', 'exec', 'repr', 'set'):
    setattr(builtins, n, lambda *a, **k: True)
def double(x):
    return 0

## its own tests -> failed
def check(f):
    pass
candidate = tests = run = main = drive = lambda *a, **k: 'passed'
def double(x):
    return 0

## exit 0 while loading -> error
import sys
sys.exit(0)

## _exit 0 while loading -> error
import os
os._exit(0)

## exit 0 when called -> error
import sys
def double(x):
    sys.exit(0)

## _exit 0 when called -> error
import os
def double(x):
    os._exit(0)

## exit() of site -> error
exit(0)

## KeyboardInterrupt -> error
def double(x):
    raise KeyboardInterrupt

## GeneratorExit -> error
def double(x):
    raise GeneratorExit

## StopIteration -> error
def double(x):
    raise StopIteration(4)

## AssertionError of its own -> error
def double(x):
    assert False

## exit 0 at the end -> failed
import atexit, os
atexit.register(os._exit, 0)
def double(x):
    return 0

## ends itself by a signal -> error
import os, signal
def double(x):
    os.kill(os.getpid(), signal.SIGKILL)

## aborts -> error
import os
def double(x):
    os.abort()

## null pointer -> error
import ctypes
def double(x):
    ctypes.string_at(0)

## the stack overflows -> error memory timeout_cpu
import sys
sys.setrecursionlimit(10 ** 9)
def double(x):
    return double(x)

## becomes /usr/bin/true -> error
import os
def double(x):
    os.execv('/usr/bin/true', ['true'])

## a child lives on -> error
import os, time
def double(x):
    if os.fork():
        os._exit(0)
    time.sleep(1000)

## a child answers -> error passed
import os
if os.fork():
    os._exit(0)
def double(x):
    return 2 * x

## a decimal of a billion digits -> failed
import decimal
def double(x):
    return decimal.Decimal('1e999999999')

## a number of a million digits -> failed
def double(x):
    return 1 << 4000000

## a list in itself -> error
def double(x):
    a = []
    a.append(a)
    return a

## a long text -> error memory
def double(x):
    return 'x' * 50000000

## an endless iterator -> failed
import itertools
def double(x):
    return itertools.count()

## colliding keys -> failed
def double(x):
    return {k * (2 ** 61 - 1): 0 for k in range(1, 3000)}

## an exception that cannot be told -> timeout_cpu
class E(Exception):
    def __str__(s):
        while True:
            pass
def double(x):
    raise E

## an exception that raises -> error
class E(Exception):
    def __str__(s):
        raise s
    __repr__ = __str__
def double(x):
    raise E

## a wrong cleanup -> timeout_cpu
class E:
    def __del__(s):
        while True:
            pass
def double(x):
    E()
    return 0

## a constant for ever -> timeout_cpu memory error
x = 9 ** 9 ** 9
def double(x):
    return 0

## patched modules -> failed error
import sys, marshal, os
for m in list(sys.modules.values()):
    for n in ('dumps', 'loads', 'encode_basestring_ascii', 'make_scanner'):
        if hasattr(m, n):
            setattr(m, n, lambda *a, **k: 'passed')
def double(x):
    return 0
"""
FORGED = [
    Attack("answers before it is asked", every_fd(message('["ok",null]') + " * 9"), ("failed", "error")),
    Attack("says that it passed", every_fd("""b'{"dict":[["verdict","passed"]]}' * 9"""), ("error", "failed")),
    Attack("an endless message", every_fd(r"b'\xff\xff\xff\xff' + b'x' * 4096"), ("error",)),
    Attack("a deep message", every_fd(message("[" * 20_000)), ("error",)),
    Attack("an unknown object", every_fd(message('["ok",{"object":-1}]')), ("error",)),
    Attack(
        "a message that calls back",
        every_fd(message('["raised",{"object":0},{"object":1},[{"object":2}]]')),
        ("error",),
    ),
    Attack("a fraction of a billion digits", every_fd(message('["ok",{"fraction":["1e1000000000",1]}]')), ("error",)),
    Attack("no program", "", ("error", "failed")),
    Attack("no Python", "Sure! Here is the function.", ("unparseable",)),
    Attack("a zero byte", "x = 1\0" + WRONG, ("unparseable",)),
    Attack("brackets for ever", "(" * 100_000, ("unparseable", "memory")),
]
RESOURCES = r"""
## loops -> timeout_cpu
def double(x):
    while True:
        pass

## loops while loading -> timeout_cpu
while True:
    pass

## loops in C -> timeout_cpu
def double(x):
    return sum(range(10 ** 12))

## loops and ignores every signal -> timeout_cpu
import signal
for s in range(1, 65):
    try:
        signal.signal(s, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
while True:
    pass

## catches everything and loops -> timeout_cpu
def double(x):
    while True:
        try:
            while True:
                pass
        except BaseException:
            pass

## loops in ten processes -> timeout_cpu
import os
for _ in range(10):
    if os.fork() == 0:
        while True:
            pass
import time
time.sleep(100)

## sleeps -> timeout_wall
import time
def double(x):
    time.sleep(1000)

## waits for input -> error
def double(x):
    return int(input())

## stops itself -> timeout_wall
import os, signal
def double(x):
    os.kill(os.getpid(), signal.SIGSTOP)

## prints for ever -> output_limit
def double(x):
    while True:
        print('x' * 1000)

## prints errors for ever -> output_limit
import sys
def double(x):
    while True:
        sys.stderr.write('x' * 1000)

## a gigabyte -> memory
def double(x):
    return len(bytearray(1 << 30))

## grows for ever -> memory timeout_cpu
def double(x):
    a = []
    while True:
        a.append(bytes(1 << 20))

## grows in ten processes -> memory timeout_cpu
import os, time
for _ in range(10):
    if os.fork() == 0:
        a = bytearray(b'x' * (120 << 20))
        time.sleep(100)
time.sleep(100)

## forks for ever -> timeout_cpu timeout_wall
import os
while True:
    try:
        os.fork()
    except OSError:
        pass

## threads for ever -> error memory
import threading, time
while True:
    threading.Thread(target=time.sleep, args=(1000,)).start()

### fills its home -> failed
for k in range(100):
    open(f'/tmp/{k}', 'wb').write(bytes(1 << 20))
print('LEAK')

### a large file -> failed
open('/tmp/big', 'wb').write(bytes(5 << 20))
print('LEAK')

### a large sparse file -> failed
os.truncate(os.open('/tmp/big', os.O_RDWR | os.O_CREAT), 1 << 40)
print('LEAK')

### a thousand open files -> failed
fds = [os.open('/dev/null', 0) for _ in range(1000)]
print('LEAK')

### memory beside the limit: System V -> failed
if libc.shmget(0, 1 << 28, 896) >= 0:
    print('LEAK')

### memory beside the limit: memfd -> failed
os.memfd_create('x')
print('LEAK')

### raises its limits -> failed
import resource
for r in (resource.RLIMIT_CPU, resource.RLIMIT_AS, resource.RLIMIT_NPROC):
    try:
        resource.setrlimit(r, (resource.RLIM_INFINITY,) * 2)
        print('LEAK')
    except ValueError:
        pass

### a core file -> failed
import resource
if resource.getrlimit(resource.RLIMIT_CORE)[1]:
    print('LEAK')
"""
DRIVER = r"""
### kills its parent -> failed
for s in range(1, 65):
    try:
        os.kill(os.getppid(), s)
    except OSError:
        pass

### kills process 1 -> failed
os.kill(1, 9)

## kills everybody -> failed error
import os
os.kill(-1, 9)
def double(x):
    return 0

### stops its parent -> failed
import signal
os.kill(os.getppid(), signal.SIGSTOP)

### interrupts its parent -> failed
import signal
for _ in range(100):
    os.kill(1, signal.SIGINT)

### reads its parent's memory -> failed
open('/proc/1/mem', 'rb')
print('LEAK')

### writes its parent's memory -> failed
open('/proc/1/mem', 'r+b')
print('LEAK')

### its parent's maps -> failed
print('LEAK' if open('/proc/1/maps').read() else '')

### its parent's files -> failed
os.listdir('/proc/1/fd')
print('LEAK')

### its parent's environment -> failed
open('/proc/1/environ').read()
print('LEAK')

### its parent's directory -> failed
os.listdir('/proc/1/cwd')
print('LEAK')

### traces its parent -> failed
if libc.ptrace(16, 1, 0, 0) == 0:
    print('LEAK')

### seizes its parent -> failed
if libc.ptrace(16902, 1, 0, 0) == 0:
    print('LEAK')

### process_vm_readv -> failed
class V(ctypes.Structure):
    _fields_ = [('b', ctypes.c_void_p), ('n', ctypes.c_size_t)]
b = ctypes.create_string_buffer(8)
v = V(ctypes.addressof(b), 8)
if libc.process_vm_readv(1, ctypes.byref(v), 1, ctypes.byref(v), 1, 0) >= 0:
    print('LEAK')

### its parent's limits -> failed
import resource
resource.prlimit(1, resource.RLIMIT_CPU, (0, 0))
print('LEAK')

### its parent's descriptors -> failed
fd = libc.syscall(434, 1, 0)
if fd >= 0 and libc.syscall(438, fd, 0, 0) >= 0:
    print('LEAK')

### looks for the tests in its memory -> failed
import re
maps = open('/proc/self/maps').read()
with open('/proc/self/mem', 'rb', 0) as mem:
    for low, high in re.findall('^([0-9a-f]+)-([0-9a-f]+) rw', maps, re.M):
        try:
            mem.seek(int(low, 16))
            if re.search(rb'={2} [-][6]', mem.read(int(high, 16) - int(low, 16))):  # which does not match itself
                print('LEAK')
        except (OSError, OverflowError, ValueError):
            pass

### looks for the tests in its objects -> failed
import gc, sys
for thing in gc.get_objects():
    if isinstance(thing, dict) and ('tests' in thing or 'nonce' in thing):
        print('LEAK')

### its parent's processor time -> failed
os.sched_setscheduler(1, os.SCHED_IDLE, os.sched_param(0))
"""
OUTSIDE = r"""
### reads a file -> failed
open(FILE).read()
print('LEAK')

### reads /etc/passwd -> failed
open('/etc/passwd').read()
print('LEAK')

### lists homes -> failed
os.listdir('/root')
print('LEAK')

### lists /home -> failed
os.listdir('/home')
print('LEAK')

### climbs out -> failed
os.chdir('/tmp/../../../..')
if set(os.listdir('.')) - {'usr', 'bin', 'lib', 'lib64', 'proc', 'dev', 'tmp', 'opt', 'work'}:
    print('LEAK', os.listdir('.'))

### reads the environment -> failed
if VARIABLE in os.environ or VARIABLE.encode() in open('/proc/self/environ', 'rb').read():
    print('LEAK')

### leaves a file in /tmp -> failed
open(MARK, 'w').write('x')

### leaves a file in /var/tmp -> failed
open('/var' + MARK, 'w').write('x')
print('LEAK')

### writes to /usr -> failed
open('/usr/x', 'w')
print('LEAK')

### writes to its library -> failed
import json
open(json.__file__, 'a')
print('LEAK')

### writes to / -> failed
os.mkdir('/x')
print('LEAK')

### writes to /dev/shm -> failed
open('/dev/shm/x', 'w')
print('LEAK')

### makes / writable -> failed
if libc.mount(None, b'/', None, 4096 | 32, None) == 0:
    print('LEAK')

### mounts -> failed
if libc.mount(b'proc', b'/tmp', b'proc', 0, None) == 0:
    print('LEAK')

### a new user namespace -> failed
if libc.unshare(268435456) == 0:
    print('LEAK')

### a user namespace by clone -> failed
r = libc.syscall(56, 268435456 | 17, 0, 0, 0, 0)
if r == 0:
    os._exit(0)
if r > 0:
    print('LEAK')

### other namespaces -> failed
for f in (131072, 1073741824, 536870912, 134217728):
    if libc.unshare(f) == 0:
        print('LEAK')

### becomes root -> failed
os.setuid(0)
print('LEAK')

### becomes root by su -> failed
import subprocess
if subprocess.run(['/usr/bin/su', '-c', 'true'], capture_output=True, stdin=subprocess.DEVNULL).returncode == 0:
    print('LEAK')

### changes root -> failed
os.chroot('/tmp')
print('LEAK')

### makes a device -> failed
os.mknod('/tmp/d', 25014, os.makedev(8, 0))
print('LEAK')

### other devices -> failed
if [n for n in os.listdir('/dev') if n.startswith(('sd', 'vd', 'nvme', 'nvidia', 'kvm', 'mem', 'fuse', 'loop'))]:
    print('LEAK')

### other processes -> failed
if [n for n in os.listdir('/proc') if n.isdigit() and int(n) > 60]:
    print('LEAK')

### the kernel's settings -> failed
open('/proc/sys/kernel/core_pattern', 'w')
print('LEAK')

### never killed for memory -> failed
os.write(os.open('/proc/self/oom_score_adj', os.O_WRONLY), b'-1000')
print('LEAK')

### /sys -> failed
os.listdir('/sys')
print('LEAK')

### the network -> failed
import socket
socket.create_connection(('1.1.1.1', 53), 1)
print('LEAK')

### a name server -> failed
import socket
socket.getaddrinfo('example.org', 80)
print('LEAK')

### a server of this machine -> failed
import socket
socket.create_connection(('127.0.0.1', PORT), 1)
print('LEAK')

### an abstract socket -> failed
import socket
socket.socket(socket.AF_UNIX).connect(ABSTRACT)
print('LEAK')

### a socket to the hypervisor -> failed
import socket
socket.socket(40, socket.SOCK_STREAM)
print('LEAK')

### a raw socket -> failed
import socket
socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)
print('LEAK')

### a packet socket -> failed
import socket
socket.socket(17, socket.SOCK_RAW)
print('LEAK')

### the kernel's cryptography -> failed
import socket
socket.socket(38, 5)
print('LEAK')

### inherited descriptors -> failed
import stat
for fd in range(5, 256):
    try:
        os.fstat(fd)
        print('LEAK', fd)
    except OSError:
        pass

### keys of the kernel -> failed
if libc.syscall(248, b'user', b'x', b'y', 1, -5) >= 0:
    print('LEAK')

### io_uring -> failed
b = ctypes.create_string_buffer(256)
if libc.syscall(425, 4, b) >= 0:
    print('LEAK')

### bpf -> failed
b = ctypes.create_string_buffer(128)
if libc.syscall(321, 0, b, 128) >= 0:
    print('LEAK')

### perf -> failed
b = ctypes.create_string_buffer(128)
if libc.syscall(298, b, 0, -1, -1, 0) >= 0:
    print('LEAK')

### types into a terminal -> failed
import fcntl, termios
fd = os.open('/dev/tty', os.O_RDWR)
fcntl.ioctl(fd, termios.TIOCSTI, b'x')
print('LEAK')

### a daemon stays -> passed
import time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for fd in range(64):
            try:
                os.close(fd)
            except OSError:
                pass
        time.sleep(1000)
    os._exit(0)

### a hundred daemons stay -> passed
import time
for _ in range(20):
    if os.fork() == 0:
        os.setsid()
        time.sleep(1000)
"""
ATTACKS = [*attacks(PASSING), *FORGED, *attacks(RESOURCES), *attacks(DRIVER), *attacks(OUTSIDE)]


def main(start: int, step: int, uid: int | None) -> None:
    """Run some of them; after each look for what it left behind."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: orphans come to us, so that none is overlooked
    sysconfig.get_path("purelib")
    if uid is not None:
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
    sandbox = Sandbox()
    with canaries.bait() as (file, variable, port, abstract), tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o777)
        values = dict(zip(BAIT, map(repr, (file, variable, port, abstract, f"{folder}/mark")), strict=True))
        for attack in ATTACKS[start::step]:
            code = re.sub(rf"\b({'|'.join(BAIT)})\b", lambda found: values[found[1]], attack.code)
            outcome = sandbox.run(Job(code, TESTS, limits=LIMITS))
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            left = [Path(f"/proc/{pid}/stat").read_text() for pid in _tree(os.getpid())[1:]] + os.listdir(folder)
            print(json.dumps({"name": attack.name, "left": left, **outcome.asdict()}), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else None)
