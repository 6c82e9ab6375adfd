"""One program in one sandbox, watched from outside.

Each program gets a bubblewrap of its own: namespaces for users, processes, network, IPC, host name and control groups,
a read-only `/usr`, an empty home of 16 MiB in memory, no capability, no way to new namespaces, a filter of system calls.
Started as root, the sandbox runs as nobody, because limits on processes do not bind root.

The kernel limits each process; the watchdog here limits what all processes of a program use together, and ends the
whole pid namespace. What a program used is read from outside, so that it cannot say otherwise.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import marshal
import os
import select
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from reasonrl.config import ConfigError
from reasonrl.eval.judge import inside, seccomp
from reasonrl.verify.judge.types import Job, Outcome, Program

NOBODY = 65534
TICK = 0.1  # seconds between two looks of the watchdog
CPU_SLACK = 0.05  # seconds that several processes together may be over, before the watchdog calls it a timeout
DRIVER_SECONDS = 2.0  # CPU seconds of the tests themselves, beyond the program's
IDLE_AFTER, IDLE_SHARE = 0.3, 0.1  # after so many seconds, a program on less than this share of a core is waiting
LONGEST_STARVED = 4  # times its wall time, for a program that others keep from running
END_SECONDS = 5.0  # that a killed sandbox may take to be gone
HOME_BYTES = 16 << 20
LARGEST_STDIN = HOME_BYTES - (1 << 20)  # which lies in the home, where the program may write too
DIAGNOSIS_BYTES = 4096
TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
BWRAP = "/usr/bin/bwrap"
# Compiles `inside` with the interpreter that will run it: bytecode differs between versions.
COMPILE = (
    "import sys,marshal;c=marshal.dumps(compile(sys.stdin.read(),'inside.py','exec',dont_inherit=True));"
    "sys.stdout.buffer.write(repr((sys.base_prefix,tuple(sys.version_info[:2]),sys.version.split()[0])).encode()+b'\\n'+c)"
)
BOOT = (
    "import marshal,os\nb=b''\nwhile len(b)<{size}:b+=os.read(0,{size}-len(b))\n"
    "s={{'__name__':'inside'}}\nexec(marshal.loads(b),s)\ns['main']({result},{out},{err})"
)
TELLS = {  # what bubblewrap says -> why, and the way out
    "No permissions to create new namespace": (
        "this kernel or container does not let an ordinary user make namespaces. In Docker run the container with "
        "--security-opt seccomp=unconfined (or a profile that allows unshare and clone); on an older Debian set "
        "sysctl kernel.unprivileged_userns_clone=1"
    ),
    "setting up uid map: Permission denied": (
        "AppArmor forbids user namespaces here, as Ubuntu does from 23.10 on: set "
        "sysctl kernel.apparmor_restrict_unprivileged_userns=0, or give /usr/bin/bwrap a profile that allows userns"
    ),
    "Creating new namespace failed": (
        "no namespace can be made here: the limit user.max_user_namespaces is 0 or used up, or this is itself a sandbox "
        "that forbids nesting"
    ),
    "Can't mount proc": (
        "the container hides parts of /proc, so that no new one may be mounted: run it with "
        "--security-opt systempaths=unconfined"
    ),
    "Unknown option --disable-userns": "this bubblewrap is too old: it must be 0.8.0 or later",
}


@dataclass(frozen=True)
class Image:
    """The interpreter that programs get, and what else of this machine they see."""

    python: str
    version: str
    folders: tuple[str, ...]  # bound read-only beside /usr
    packages: tuple[str, ...]  # appended to sys.path
    driver: bytes  # `inside`, compiled by this interpreter

    @property
    def identity(self) -> str:
        """The same identity, the same verdicts."""
        parts = (self.python.encode(), self.version.encode(), repr(self.packages).encode(), self.driver)
        return hashlib.sha256(b"\0".join(parts)).hexdigest()


@functools.cache
def as_nobody() -> dict[str, Any]:
    """Arguments of Popen that start a process as nobody where we are root.

    None where root may not become another user: root of a container without rights, often an ordinary user outside. If
    the limit on processes does not bind it either, a canary tells.
    """
    drop: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
    if os.geteuid() != 0:
        return {}
    try:
        subprocess.run(["/bin/true"], cwd="/", env={}, check=True, **drop)
    except (OSError, subprocess.SubprocessError):
        return {}
    return drop


def find_image(python: str | None = None, packages: str | None = None) -> Image:
    """python: the interpreter; default this one, or /usr/bin/python3 where the sandbox's user cannot reach this one.

    packages: a folder that programs may import from, "none", or the default: this installation's, if the interpreter
    has the same version. Raises ConfigError.
    """
    own = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    why = []
    for path in [python] if python else dict.fromkeys((own, "/usr/bin/python3")):
        try:
            found = subprocess.run(
                [path, "-I", "-S", "-B", "-c", COMPILE],
                input=Path(inside.__file__).read_bytes(),
                capture_output=True,
                cwd="/",
                env={},
                timeout=60,
                check=True,
                **as_nobody(),
            ).stdout
        except (OSError, subprocess.SubprocessError) as error:
            told = getattr(error, "stderr", b"") or str(error).encode()
            why.append(f"{path}: {told.decode(errors='replace').strip().splitlines()[-1]}")
            continue
        head, _, driver = found.partition(b"\n")
        base, minor, version = ast.literal_eval(head.decode())
        folders = () if base == "/usr" or base.startswith("/usr/") else (os.path.realpath(base),)
        places = _packages(packages, minor)
        bound = tuple(place for place in places if not place.startswith(("/usr/", *(f"{f}/" for f in folders))))
        return Image(os.path.realpath(path), version, folders + bound, places, driver)
    hint = "This is root, so programs run as nobody. " if as_nobody() else ""
    raise ConfigError(
        f"no interpreter for the sandbox ({'; '.join(why)}). {hint}Install python3 in /usr, or give python= one that "
        "every user may run"
    )


def _packages(wanted: str | None, minor: tuple[int, int]) -> tuple[str, ...]:
    if wanted == "none":
        return ()
    if wanted is not None:
        path = os.path.realpath(wanted)
        if not _readable(path):
            raise ConfigError(f"packages={wanted}: the sandbox's user cannot read that folder")
        return (path,)
    if minor != sys.version_info[:2]:
        return ()
    places = dict.fromkeys(os.path.realpath(sysconfig.get_path(name)) for name in ("purelib", "platlib"))
    # the sandbox has a /tmp of its own, which would hide a folder of ours in there
    return tuple(place for place in places if _readable(place) and not place.startswith("/tmp/"))


def _readable(folder: str) -> bool:
    try:
        return subprocess.run(["/bin/ls", folder], capture_output=True, cwd="/", **as_nobody()).returncode == 0
    except OSError:
        return False


@dataclass(frozen=True)
class Usage:
    """What the processes of a program have used and hold."""

    cpu_seconds: float = 0.0  # of the program's
    driver_seconds: float = 0.0  # of process 1
    resident_bytes: int = 0
    processes: int = 0
    first: int | None = None  # pid of process 1 outside


class Sandbox:
    """Runs programs; safe to use from many threads."""

    def __init__(
        self,
        *,
        bwrap: str | None = None,
        python: str | None = None,
        packages: str | None = None,
        unsafe_local: bool = False,
    ) -> None:
        """unsafe_local: no sandbox at all, limits only. Raises ConfigError when there is no bubblewrap or interpreter."""
        self.isolation = "none" if unsafe_local else "bwrap"
        self.bwrap = bwrap or (BWRAP if os.path.exists(BWRAP) else shutil.which("bwrap") or BWRAP)
        if not unsafe_local and not os.access(self.bwrap, os.X_OK):
            raise ConfigError(
                f"no bubblewrap at {self.bwrap}: apt-get install bubblewrap (0.8.0 or later; the PyPI package of that "
                "name is something else), or give bwrap=<its path>"
            )
        if not os.path.exists(f"/proc/self/task/{os.getpid()}/children"):
            raise ConfigError("this kernel lacks CONFIG_PROC_CHILDREN, which the judge's watchdog needs")
        self.image = find_image(python, packages)
        self.filter = None if unsafe_local else seccomp.program()
        self.argv = self._argv()

    def _argv(self) -> list[str]:
        if self.isolation == "none":
            return []
        argv = [self.bwrap, "--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent"]
        argv += ["--new-session", "--as-pid-1", "--clearenv", "--cap-drop", "ALL"]
        argv += ["--uid", str(NOBODY), "--gid", str(NOBODY), "--hostname", "sandbox", "--ro-bind", "/usr", "/usr"]
        for name in ("bin", "lib", "lib32", "lib64", "libx32", "sbin"):
            if os.path.islink(f"/{name}"):
                if name in ("bin", "lib", "lib64"):
                    argv += ["--symlink", os.readlink(f"/{name}"), f"/{name}"]
            elif os.path.isdir(f"/{name}") and name in ("bin", "lib", "lib64"):
                argv += ["--ro-bind", f"/{name}", f"/{name}"]
        for folder in self.image.folders:
            argv += ["--ro-bind", folder, folder]
        argv += ["--proc", "/proc", "--dev", "/dev", "--remount-ro", "/dev"]
        argv += ["--size", str(HOME_BYTES), "--tmpfs", "/tmp", "--remount-ro", "/", "--chdir", "/tmp"]
        return [*argv, "--setenv", "PATH", "/usr/bin:/bin", "--setenv", "HOME", "/tmp"]

    def run(self, task: Job | Program, on_idle: Callable[[], None] | None = None) -> Outcome:
        """What happened to it. A program never raises here, whatever it does; it is an outcome.

        on_idle: called once, from this thread, when the program waits instead of computing.
        """
        if isinstance(task, Program) and len(task.stdin.encode("utf-8", "surrogatepass")) > LARGEST_STDIN:
            return Outcome("sandbox_error", f"an input of more than {LARGEST_STDIN} bytes does not fit", again=False)
        begin = time.monotonic()
        with contextlib.ExitStack() as stack:
            try:
                running = _Running(self, task, stack)
                running.watch(on_idle)
            except OSError as error:
                return Outcome("sandbox_error", f"{type(error).__name__}: {error}")
            outcome = running.outcome()
        return replace(outcome, wall_seconds=round(time.monotonic() - begin, 3))

    def packed(self, task: Job | Program) -> bytes:
        """The task for `inside`."""
        limits = asdict(task.limits)
        job: dict[str, Any] = {
            "mode": "program",
            "code": task.code,
            "packages": list(self.image.packages),
            "limits": {**limits, "memory_bytes": task.limits.memory_mb << 20},
        }
        if isinstance(task, Program):
            job["stdin"] = task.stdin.encode("utf-8", "surrogatepass")
        else:
            job.update(mode=task.mode, tests=task.tests, prelude=task.prelude, names=list(task.names))
        packed = marshal.dumps(job, 4)
        return self.image.driver + len(packed).to_bytes(4, "little") + packed


class _Running:
    """One program under way."""

    def __init__(self, sandbox: Sandbox, task: Job | Program, stack: contextlib.ExitStack) -> None:
        self.sandbox, self.task, self.limits = sandbox, task, task.limits
        self.reason: str | None = None  # why we ended it
        self.message = ""
        self.ended_at: float | None = None
        self.usage = Usage()
        self.peak = 0
        self.waited: dict[int, float] = {}  # seconds that each process waited for a core; of those that ended, too
        self.read: dict[int, bytearray] = {}
        self.began = time.monotonic()
        fds = stack.enter_context(_Fds())
        ends = {name: fds.pipe() for name in ("result", "out", "err", "tell")}
        self.result, self.out, self.err, self.tell = (ends[name][0] for name in ("result", "out", "err", "tell"))
        most = self.limits.output_bytes
        self.most = {self.out: most, self.err: most, self.result: 1 << 20, self.tell: DIAGNOSIS_BYTES}
        for fd in self.most:
            os.set_blocking(fd, False)
            self.read[fd] = bytearray()
        theirs = [ends[name][1] for name in ("result", "out", "err")]
        boot = BOOT.format(size=len(sandbox.image.driver), result=theirs[0], out=theirs[1], err=theirs[2])
        argv = list(sandbox.argv)
        if sandbox.filter is not None:
            source, sink = fds.pipe()
            os.write(sink, sandbox.filter)
            fds.close(sink)
            theirs.append(source)
            argv += ["--seccomp", str(source)]
        folder = "/"
        if sandbox.isolation == "none":
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="judge-", ignore_cleanup_errors=True))
            os.chmod(folder, 0o777)
        else:
            argv.append("--")
        self.process = subprocess.Popen(
            [*argv, sandbox.image.python, "-I", "-S", "-B", "-c", boot],
            stdin=subprocess.PIPE,
            stdout=ends["tell"][1],
            stderr=ends["tell"][1],
            pass_fds=theirs,
            cwd=folder,
            env={"PATH": "/usr/bin:/bin", "HOME": folder} if sandbox.isolation == "none" else {},
            start_new_session=True,
            bufsize=0,
            **as_nobody(),
        )
        stack.callback(self.end)
        for name in ends:
            fds.close(ends[name][1])
        assert self.process.stdin is not None
        stack.callback(self.process.stdin.close)  # unbuffered: nothing is left to fail
        self.input = self.process.stdin.fileno()
        os.set_blocking(self.input, False)
        self.unsent = memoryview(sandbox.packed(task))

    def watch(self, on_idle: Callable[[], None] | None) -> None:
        """Until it has ended, or we have ended it."""
        poll = select.poll()
        open_fds = set(self.most)
        for fd in open_fds:
            poll.register(fd, select.POLLIN)
        poll.register(self.input, select.POLLOUT)
        looked = self.began
        idle_from: tuple[float, float] = (self.began, 0.0)
        while open_fds:
            for fd, _ in poll.poll(TICK * 1000):
                if fd == self.input:
                    if self._feed():
                        poll.unregister(fd)
                elif not self._drain(fd):
                    poll.unregister(fd)
                    open_fds.discard(fd)
            now = time.monotonic()
            if now - looked >= TICK and open_fds:
                looked = now
                if self.ended_at is None:
                    self._look(now)
                elif now - self.ended_at > END_SECONDS:
                    break
                if self.sandbox.isolation == "none" and self.process.poll() is not None:
                    break  # a stray process may hold the pipes
                if on_idle is not None and now - idle_from[0] >= IDLE_AFTER:
                    spent = self.usage.cpu_seconds + self.usage.driver_seconds
                    if spent - idle_from[1] < IDLE_SHARE * (now - idle_from[0]):
                        on_idle()
                        on_idle = None
                    idle_from = (now, spent)
        self.end()

    def _feed(self) -> bool:
        """Give it more of its job; True when there is no more."""
        try:
            while self.unsent:
                self.unsent = self.unsent[os.write(self.input, self.unsent[: 1 << 16]) :]
        except BlockingIOError:
            return False
        except OSError:  # it died before it had read all
            self.unsent = memoryview(b"")
        return True

    def _drain(self, fd: int) -> bool:
        """Read what is there; False at the end."""
        while True:
            try:
                part = os.read(fd, 1 << 16)
            except BlockingIOError:
                return True
            if not part:
                return False
            room = self.most[fd] - len(self.read[fd])
            self.read[fd] += part[:room]
            if len(part) > room and fd in (self.out, self.err):
                self._stop("output_limit", f"more than {self.most[fd]} bytes of output")
                return True

    def _look(self, now: float) -> None:
        """The watchdog."""
        usage = self.usage = usage_of(self.process.pid, self.sandbox.isolation != "none") or self.usage
        self.peak = max(self.peak, usage.resident_bytes)
        if usage.cpu_seconds > self.limits.cpu_seconds + CPU_SLACK:
            self._stop("timeout_cpu")
        elif usage.driver_seconds > self.limits.cpu_seconds + DRIVER_SECONDS:
            self._stop("timeout_cpu", "the tests themselves took too long")
        elif usage.resident_bytes > self.limits.memory_mb << 20:
            self._stop("memory", "all its processes together")
        elif now - self.began > self.limits.wall and now - self.began - self._starved() > self.limits.wall:
            busy = usage.cpu_seconds + usage.driver_seconds >= self.limits.cpu_seconds
            self._stop("timeout_cpu" if busy else "timeout_wall")

    def _starved(self) -> float:
        """Seconds that it was ready to run while others had the core: a busy machine is not its fault."""
        wrapped = self.sandbox.isolation != "none"
        for pid in _tree(self.process.pid)[wrapped:]:
            self.waited[pid] = max(self.waited.get(pid, 0.0), _waited_for_a_core(pid))
        most: float = (LONGEST_STARVED - 1) * self.limits.wall
        return min(sum(self.waited.values()), most)

    def _stop(self, reason: str, message: str = "") -> None:
        if self.reason is None:
            self.reason, self.message = reason, message
            self.ended_at = time.monotonic()
            self.end(wait=False)

    def end(self, wait: bool = True) -> None:
        """Kill whatever is left: the end of process 1 is the end of its pid namespace."""
        if self.process.returncode is None:
            self.usage = usage_of(self.process.pid, self.sandbox.isolation != "none") or self.usage
            if self.sandbox.isolation == "none":
                for pid in reversed(_tree(self.process.pid)):
                    _kill(pid)
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self.process.pid, signal.SIGKILL)
            elif self.usage.first is not None and self.process.poll() is None:
                _kill(self.usage.first)  # bubblewrap waits for it, and it for all others: then nothing is left
            if self.sandbox.isolation == "none" or self.usage.first is None:
                self.process.kill()
        if wait:
            try:
                self.process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def outcome(self) -> Outcome:
        """What to make of it."""
        stdout, stderr, told = (self.read[fd].decode("utf-8", "replace") for fd in (self.out, self.err, self.tell))
        cpu = round(self.usage.cpu_seconds, 3)
        if self.reason is not None:
            return Outcome(self.reason, self.message, cpu, 0.0, stdout, stderr)
        try:
            found = inside.decode(self.read[self.result].decode(), _no_objects)
            verdict, message, cpu, code = (found[name] for name in ("verdict", "message", "cpu", "exit"))
        except (ValueError, KeyError, TypeError):
            if self.usage.driver_seconds >= self.limits.cpu_seconds:
                return Outcome("timeout_cpu", "the tests themselves took too long", cpu, 0.0, stdout, stderr)
            return Outcome("sandbox_error", explained(told, self.process.returncode), cpu, 0.0, stdout, stderr)
        cpu = round(cpu, 3)
        message = message.encode("utf-8", "backslashreplace").decode()  # half a character cannot be sent on
        if verdict == "bad_job":
            return Outcome("sandbox_error", message, cpu, 0.0, stdout, stderr, again=False)
        if verdict == "ended":  # a Program
            last = stderr.rstrip().rpartition("\n")[2]
            verdict = "passed" if code == 0 else "memory" if last.startswith("MemoryError") else "error"
        if isinstance(self.task, Job):
            code = None  # the driver ends it, whatever it did
        return Outcome(verdict, message, cpu, 0.0, stdout, stderr, code)


def explained(told: str, code: int | None) -> str:
    """Why the sandbox did not work, from what bubblewrap said."""
    told = told.strip() or f"the sandbox ended with code {code} and said nothing"
    why = next((f": {text}" for tell, text in TELLS.items() if tell in told), "")
    return f"{told[-500:]}{why}"


def usage_of(pid: int, wrapped: bool) -> Usage | None:
    """Of a running sandbox, by the pid of its bubblewrap (or of the driver, where there is none); None if it is over."""
    tree = _tree(pid)
    if wrapped:
        tree = tree[1:]  # bubblewrap itself
    stats = [(each, stat) for each in tree if (stat := _stat(each)) is not None]
    if not stats:
        return None
    first, (own, _, _) = stats[0]
    cpu = sum(each + reaped for _, (each, reaped, _) in stats[1:]) + stats[0][1][1]
    return Usage(cpu, own, sum(resident for _, (_, _, resident) in stats), len(stats), first)


def _tree(pid: int) -> list[int]:
    """`pid` and all its descendants, parents first."""
    found = [pid]
    for each in found:
        with contextlib.suppress(OSError):
            for thread in os.listdir(f"/proc/{each}/task"):
                with open(f"/proc/{each}/task/{thread}/children") as file:
                    found += map(int, file.read().split())
        if len(found) > 4096:
            break
    return found


def _stat(pid: int) -> tuple[float, float, int] | None:
    """CPU seconds of a process, those of the children it has waited for, resident bytes."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    user, system, c_user, c_system = (int(fields[place]) / TICKS_A_SECOND for place in (11, 12, 13, 14))
    return user + system, c_user + c_system, int(fields[21]) * PAGE_BYTES


def _waited_for_a_core(pid: int) -> float:
    """Seconds; 0 where the kernel does not count them (CONFIG_SCHED_INFO)."""
    try:
        with open(f"/proc/{pid}/schedstat") as file:
            return int(file.read().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0


def _no_objects(tag: str, _: object) -> Any:
    raise ValueError(tag)


class _Fds:
    """File descriptors, each closed once: a number closed twice may be another thread's by then."""

    def __init__(self) -> None:
        self.open: set[int] = set()

    def pipe(self) -> tuple[int, int]:
        """Its two ends."""
        ends = os.pipe()
        self.open.update(ends)
        return ends

    def close(self, fd: int) -> None:
        """One of them."""
        self.open.remove(fd)
        os.close(fd)

    def __enter__(self) -> _Fds:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in list(self.open):
            self.close(fd)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)
