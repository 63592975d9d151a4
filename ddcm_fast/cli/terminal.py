"""What the commands say, and how they end: text that any terminal can take, one line for an error, an exit status."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from ddcm_fast.errors import DDCMError, SomeFailedError, explain, out_of_memory
from ddcm_fast.files import STDOUT

#: Exit statuses, see EXIT_HELP.
MISTAKE, SOME_FAILED, BUG, INTERRUPTED, CLOSED_PIPE, TERMINATED = 2, 3, 70, 130, 141, 143

EXIT_HELP = f"""Exit status: 0 done, {MISTAKE} something to mend (one line on standard error says what),
{SOME_FAILED} some of many images failed (the manifest says which), {BUG} a bug of ddcm itself (DDCM_DEBUG=1 prints the
traceback), {INTERRUPTED} interrupted, {CLOSED_PIPE} the output was closed, {TERMINATED} ended by SIGTERM."""


def printable(text: str) -> str:
    """Text without what a terminal would obey: control and format characters are written as \\x1b, \\u202e, ...

    Names, prompts and paths come from files and may hold anything; lone surrogates stand for bytes that are no UTF-8.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def say(text: str, stream: TextIO | None = None) -> None:
    """Print a line to standard output or another stream, with escapes for what its encoding lacks."""
    stream = stream or sys.stdout
    if stream is not None:  # closed from the start
        coding = stream.encoding or "ascii"
        print(printable(text).encode(coding, "backslashreplace").decode(coding), file=stream)


def tell(text: str, args: argparse.Namespace, facts: dict[str, Any] | None = None) -> None:
    """Say what was done, beside standard output where that carries the result; nothing with --quiet.

    With --json the line is `facts`, quiet or not.
    """
    stream = sys.stderr if getattr(args, "output", None) == STDOUT else None
    if facts is not None and args.json:
        say(json.dumps(facts), stream)
    elif not args.quiet:
        say(text, stream)


class _Said(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        complain(record.getMessage())


@contextlib.contextmanager
def telling_more(wanted: bool) -> Iterator[None]:
    """What the package logs goes to standard error, with --verbose."""
    logger, handler = logging.getLogger("ddcm_fast"), _Said()
    level = logger.level
    if wanted:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def complain(text: str) -> None:
    """Print one line about an error to standard error."""
    with contextlib.suppress(OSError, ValueError):  # nobody listens
        say("ddcm: " + " ".join(text.split()), sys.stderr)


def guarded(action: Callable[[], None]) -> int:
    """Run a command and return its exit status; whatever goes wrong is said in one line, never by a traceback."""
    try:
        try:
            action()
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        _drop_output()
        return CLOSED_PIPE
    except KeyboardInterrupt:
        complain("interrupted")
        return INTERRUPTED
    except Exception as error:
        if os.environ.get("DDCM_DEBUG"):
            traceback.print_exc()
        return _fail(error)
    return 0


def _fail(error: Exception) -> int:
    if isinstance(error, OSError) and not isinstance(error, DDCMError):
        _drop_output()
    complain(explain(error))
    return _status(error)


def _status(error: Exception) -> int:
    """The exit status of an error."""
    if isinstance(error, SomeFailedError):
        return SOME_FAILED
    return MISTAKE if isinstance(error, (DDCMError, OSError)) or out_of_memory(error) else BUG


def _drop_output() -> None:
    """Where standard output can no longer be written, have Python not try again at its end."""
    try:
        sys.stdout.flush()
    except (OSError, AttributeError):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
