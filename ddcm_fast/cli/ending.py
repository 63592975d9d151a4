"""The end of `ddcm app`: by Ctrl-C or a signal it ends soon, whatever runs, and leaves no file."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

from ddcm_fast.cli.terminal import INTERRUPTED, complain

#: Signals that end a server beside Ctrl-C's: of kill and of service managers, and of a terminal that is closed.
_SIGNALS = (signal.SIGTERM, signal.SIGHUP)

#: Seconds that runs have to come to the model's next prediction, where they end.
_PATIENCE = 2.0


@contextlib.contextmanager
def ending() -> Iterator[None]:
    """While this lasts the page's files are in a folder of their own, which goes at the end, also by a signal.

    To be entered before gradio is imported, which then learns where its files go. The exit status by a signal is 128
    and its number, as of a program that it ends.
    """
    try:
        with _signals(), _folder():
            yield
    except (KeyboardInterrupt, SystemExit) as end:
        _leave(end)
        raise


def stay(page: Any) -> None:
    """Serve a launched page until an exception ends that, then close it: what is asked for in the meantime is lost."""
    from ddcm_fast.app.work import end_runs

    try:
        while True:
            time.sleep(3600)
    finally:
        if page.server is not None:
            page.server.force_exit = True  # does not wait for browsers, which keep a connection as long as they can
            logging.getLogger("uvicorn.error").disabled = True  # and has nothing to say of that
        page.close(verbose=False)
        end_runs(_PATIENCE)


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    def end(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number, handler in before.items():
        if handler == signal.SIG_DFL:  # nohup has a signal ignored, and means it
            signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _folder() -> Iterator[None]:
    name = "GRADIO_TEMP_DIR"
    before = os.environ.get(name)
    with tempfile.TemporaryDirectory(prefix="ddcm-app-", dir=before, ignore_cleanup_errors=True) as folder:
        os.environ[name] = folder
        try:
            yield
        finally:
            del os.environ[name]
            if before is not None:
                os.environ[name] = before


def _leave(end: KeyboardInterrupt | SystemExit) -> None:
    """End the process at once if a run is in the midst of computing: Python's own end would have torch abort."""
    from ddcm_fast.app.work import running

    if running():
        if isinstance(end, KeyboardInterrupt):
            complain("interrupted")
        with contextlib.suppress(OSError, ValueError, AttributeError):
            sys.stdout.flush()
        os._exit(INTERRUPTED if isinstance(end, KeyboardInterrupt) else int(end.code or 0))
