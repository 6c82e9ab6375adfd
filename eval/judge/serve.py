"""`reasonrl judge`: the service, from knobs to the last drained job."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import resource
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reasonrl.config import ConfigError
from reasonrl.eval.prm.knobs import read_knobs, require
from reasonrl.verify.judge.types import TOKEN_FILE, TOKEN_VARIABLE, Limits

if TYPE_CHECKING:
    from reasonrl.eval.judge.sandbox import Sandbox

HELP = """\
reasonrl judge [port=8078] [key=value ...]

Runs programs that nobody trusts, each in a sandbox of its own (bubblewrap), and says whether they pass their tests.
Before it serves, it tries to break out of the sandbox in every way it knows, and stops if one works.

  port=8078               on 127.0.0.1; 0: any free one, told in the first line
  socket=                 a Unix socket instead, for this user only (mode 0600), without a token
  token_file=             who may ask; default ~/.cache/reasonrl/judge-token, made if it is missing (mode 0600).
                          REASONRL_JUDGE_TOKEN goes before it. Clients: Authorization: Bearer <token>, or
                          http://:<token>@127.0.0.1:8078/run_code, for verl's reward.sandbox_fusion.url
  host=127.0.0.1          another one needs tls_cert= and tls_key=: files in PEM

  cores=                  programs that compute at once; default all cores of this machine
  queue=1024              jobs that may wait; more are told to come again (429)
  cache=65536             verdicts remembered; 0: every job is run

  cpu_seconds=3           CPU time of a program: the clock of the verdict
  wall_seconds=           for programs that wait; default 4 times cpu_seconds
  memory_mb=1024          below 600 numpy does not load
  most_cpu_seconds=60     what a request may ask for
  most_memory_mb=4096
  most_body_mb=1          what a request may hold; the inputs of contest problems are longer

  python=                 the programs' interpreter; default this one, or /usr/bin/python3 where nobody cannot run it
  packages=               a folder that programs may import from; default this installation's; none
  bwrap=/usr/bin/bwrap    Debian's package bubblewrap, 0.8.0 or later
  unsafe_local=false      true: no sandbox. Any program can read, change and send what you can. Loopback only
  end_with_stdin=false    true: stop when stdin is closed, so that it never outlives who started it

POST /v1/judge, POST /v1/run, POST / (the released FTTT judge), POST /run_code (SandboxFusion), GET /healthz, GET /metrics.
SIGTERM or Ctrl-C: what was accepted is still answered, nothing more is accepted.
"""
COMMAND = "reasonrl judge"
SHORTEST_TOKEN = 16


@dataclass(frozen=True)
class JudgeKnobs:
    """See `HELP`."""

    port: int = 8078
    socket: str | None = None
    host: str = "127.0.0.1"
    token_file: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    cores: int | None = None
    queue: int = 1024
    cache: int = 65_536
    cpu_seconds: float = 3.0
    wall_seconds: float | None = None
    memory_mb: int = 1024
    most_cpu_seconds: float = 60.0
    most_memory_mb: int = 4096
    most_body_mb: int = 1
    python: str | None = None
    packages: str | None = None
    bwrap: str | None = None
    unsafe_local: bool = False
    end_with_stdin: bool = False

    def __post_init__(self) -> None:
        """Raises ConfigError for a value out of range, or a service that would be open to others."""
        require(0 <= self.port < 65536, f"port must be 0 (any free one) to 65535, got {self.port}")
        require(self.cores is None or self.cores >= 1, f"cores must be at least 1, got {self.cores}")
        require(self.queue >= 1, f"queue must be at least 1, got {self.queue}")
        require(self.cache >= 0, f"cache must be at least 0, got {self.cache}")
        require(1 <= self.most_body_mb <= 1024, f"most_body_mb must be 1 to 1024, got {self.most_body_mb}")
        try:
            limits = self.limits()
        except ValueError as error:
            raise ConfigError(str(error)) from error
        require(
            limits.cpu_seconds <= self.most_cpu_seconds and limits.memory_mb <= self.most_memory_mb,
            "cpu_seconds and memory_mb must not be more than most_cpu_seconds and most_memory_mb",
        )
        require((self.tls_cert is None) == (self.tls_key is None), "tls_cert= and tls_key= belong together")
        if self.socket is not None:
            require(self.host == "127.0.0.1", "socket= and host= exclude each other")
            return
        if not loopback(self.host):
            require(not self.unsafe_local, f"unsafe_local=true runs on this machine only, not on host={self.host}")
            require(
                self.tls_cert is not None,
                f"host={self.host} is open to others: give tls_cert= and tls_key=, or leave host= out and forward the "
                "port over ssh",
            )

    def limits(self) -> Limits:
        """Of jobs that ask for none. Raises ValueError."""
        return Limits(self.cpu_seconds, self.wall_seconds, self.memory_mb)


def loopback(host: str) -> bool:
    """Whether only this machine reaches it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def run(args: Sequence[str]) -> int:
    """The command; returns its exit code. Raises ConfigError."""
    if any(arg in ("-h", "--help", "help") for arg in args):
        print(HELP)
        return 0
    knobs = read_knobs(JudgeKnobs, args, COMMAND)
    from reasonrl.eval.judge.canaries import check
    from reasonrl.eval.judge.sandbox import Sandbox

    sandbox = Sandbox(bwrap=knobs.bwrap, python=knobs.python, packages=knobs.packages, unsafe_local=knobs.unsafe_local)
    cores = knobs.cores or len(os.sched_getaffinity(0))
    tried = check(sandbox, cores)
    listener, address, token = listen(knobs)
    if knobs.unsafe_local:
        print("reasonrl judge: unsafe_local=true: NO SANDBOX, programs can do whatever you can", file=sys.stderr)
    if knobs.end_with_stdin:
        threading.Thread(target=_end_with_stdin, name="judge-stdin", daemon=True).start()
    print(
        f"judge at {address}: {sandbox.isolation}, python {sandbox.image.version}, {cores} cores, {tried} canaries held"
    )
    sys.stdout.flush()
    try:
        serve(sandbox, knobs, cores, listener, token)
    finally:
        listener.close()
        if knobs.socket is not None:
            Path(knobs.socket).unlink(missing_ok=True)
    return 0


def serve(sandbox: Sandbox, knobs: JudgeKnobs, cores: int, listener: socket.socket, token: str | None) -> None:
    """Until SIGTERM or SIGINT, and then until all that was accepted is answered."""
    import uvicorn

    from reasonrl.eval.judge.desk import SLEEPERS, Desk
    from reasonrl.eval.judge.service import make_app

    need = 16 * SLEEPERS * cores + 2 * knobs.queue + 256
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < need:
        resource.setrlimit(resource.RLIMIT_NOFILE, (need if hard == resource.RLIM_INFINITY else min(need, hard), hard))
    desk = Desk(sandbox, cores, knobs.queue, knobs.cache)
    app = make_app(
        desk,
        token=token,
        limits=knobs.limits(),
        most_cpu_seconds=knobs.most_cpu_seconds,
        most_memory_mb=knobs.most_memory_mb,
        largest_body=knobs.most_body_mb << 20,
    )
    tls: dict[str, Any] = {"ssl_certfile": knobs.tls_cert, "ssl_keyfile": knobs.tls_key} if knobs.tls_cert else {}
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, lifespan="on", server_header=False, backlog=4096, **tls
    )
    for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn drains, then raises the signal once more
        signal.signal(number, lambda *_: None)
    uvicorn.Server(config).run(sockets=[listener])
    print(
        f"stopped; {desk.accepted} jobs accepted, {desk.answered} answered, {desk.hits} without a run, "
        f"{desk.rejected} refused for a full queue",
        file=sys.stderr,
    )


def listen(knobs: JudgeKnobs) -> tuple[socket.socket, str, str | None]:
    """The listening socket, its address, and the token. Raises ConfigError."""
    if knobs.socket is not None:
        token = own_token(knobs.token_file) if knobs.token_file else None
        return _unix(knobs.socket), f"unix:{os.path.abspath(knobs.socket)}", token
    token = own_token(knobs.token_file)
    family = socket.AF_INET6 if ":" in knobs.host else socket.AF_INET
    try:
        listener = socket.create_server((knobs.host, knobs.port), family=family, backlog=4096)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {knobs.host}:{knobs.port} ({error.strerror}): give another port=, 0 for any free one"
        ) from error
    host = f"[{knobs.host}]" if family == socket.AF_INET6 else knobs.host
    return listener, f"{'https' if knobs.tls_cert else 'http'}://{host}:{listener.getsockname()[1]}", token


def _unix(path: str) -> socket.socket:
    with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
        with socket.socket(socket.AF_UNIX) as other:
            other.connect(path)
        raise ConfigError(f"socket={path}: another judge answers there; stop it, or give another path")
    listener = socket.socket(socket.AF_UNIX)
    try:
        if os.path.lexists(path) and not Path(path).is_socket():
            raise ConfigError(f"socket={path} is there and is no socket: give another path")
        Path(path).unlink(missing_ok=True)
        before = os.umask(0o177)  # 0600 from its first moment
        try:
            listener.bind(path)
        finally:
            os.umask(before)
        listener.listen(4096)
    except OSError as error:
        listener.close()
        raise ConfigError(f"cannot make socket={path}: {error}") from error
    return listener


def own_token(file: str | None) -> str:
    """The service's token; makes the file if there is none. Raises ConfigError."""
    token = os.environ.get(TOKEN_VARIABLE, "").strip()
    where = TOKEN_VARIABLE
    if not token or file is not None:
        path = Path(file or TOKEN_FILE).expanduser()
        where = f"token_file={path}"
        try:
            token = _token_in(path)
        except OSError as error:
            raise ConfigError(f"{where}: {error.strerror}") from error
    if len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(f"{where}: a token has at least {SHORTEST_TOKEN} printable characters without blanks")
    return token


def _token_in(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(fd, "w") as fresh:
            fresh.write(secrets.token_urlsafe(32) + "\n")
    if path.stat().st_mode & 0o077:
        raise ConfigError(f"token_file={path}: others may read it; chmod 600 {path}")
    return path.read_text().strip()


def _end_with_stdin() -> None:
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    while True:  # the first may come when nobody listens yet, and a judge that is left behind stays for ever
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
