"""A worker without libraries, for tests of the side that asks: the answer's text says what happens to it."""

import os
import signal
import time
from multiprocessing.connection import Connection

from reasonrl.verify.worker import HAVE_IT, RIGHT, WRONG


def serve(pipe: Connection, checker: str, timeout: float) -> None:
    """`checker`: "dies" before any batch, "deaf" never takes one, "retires" after each batch, or anything else."""
    if checker == "dies":
        os._exit(3)
    if checker == "deaf":
        time.sleep(600)
    while True:
        try:
            batch = pipe.recv()
        except EOFError:
            return
        pipe.send_bytes(HAVE_IT)
        for extracted, gold in batch:
            verb, _, seconds = extracted.partition(" ")
            if verb in ("sleep", "hang"):
                time.sleep(float(seconds or 600))
            if verb == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            pipe.send_bytes(b"ValueError: odd" if verb == "raise" else RIGHT if extracted == gold else WRONG)
        if checker == "retires":
            return
