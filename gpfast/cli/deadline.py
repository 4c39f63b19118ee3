"""A limit on how long something may take, say a compiler."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

AGAIN_SECONDS = 5.0


class TookTooLong(BaseException):
    """Raised in the middle of what took too long; no Exception, so that nothing on the way mistakes it for its own."""


@contextlib.contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Raises TookTooLong in the block once `seconds` have passed, and again every 5 s should anything swallow it.

    It needs the main thread and SIGALRM, which Windows has not; elsewhere the block may take as long as it likes.
    """
    if not hasattr(signal, "SIGALRM") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def late(*_) -> None:
        raise TookTooLong

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
