"""Exceptions of ddcm-fast. Everything a user can cause derives from DDCMError.

Each message is one line and says what to do; the command line prints it and exits with status 2.
"""

from __future__ import annotations

import os


class DDCMError(Exception):
    """Base class of every error this package raises on purpose."""


class ConfigError(DDCMError, ValueError):
    """An impossible parameter (K, M, C, G, T, kind, preset, size) or combination of them."""


class InputError(DDCMError, ValueError):
    """A tensor or image with the wrong shape, dtype or device, or with NaN or infinite entries."""


class BackendError(DDCMError, RuntimeError):
    """A backend that is not available here; the message names those that are."""


class FormatError(DDCMError, ValueError):
    """A file that is not a readable .ddcm file: foreign, truncated, corrupt or too new."""


class LimitError(DDCMError, ValueError):
    """A file or settings that ask for more than the limits allow; the message names what raises the limit."""


class ModelError(DDCMError, RuntimeError):
    """A model that cannot be loaded, or is not the one the file was made with."""


class PillowError(DDCMError, OSError):
    """What the plugin of Pillow cannot open or decode; an OSError, as programs that use Pillow expect."""


class MissingExtraError(DDCMError, ImportError):
    """An optional dependency is not installed; the message names the extra to install."""


class SomeFailedError(DDCMError, RuntimeError):
    """A run over many went to its end, and some of them failed; the command line exits with status 3."""


class DDCMWarning(UserWarning):
    """Something that works but differs from what the user may expect; the command line prints it."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, of the host or of a device; torch says it in several ways."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    said = str(error)
    return isinstance(error, RuntimeError) and any(
        text in said for text in ("can't allocate memory", "not enough memory", "out of memory", "CUBLAS_STATUS_ALLOC")
    )


def explain(error: BaseException) -> str:
    """One line that says what to do about an exception: ours, memory's, a file's, or else that it is a bug."""
    if isinstance(error, DDCMError):
        return str(error)
    if out_of_memory(error):
        return "out of memory; use a smaller image or codebook, fewer images, or another --device"
    if isinstance(error, OSError):
        name = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes)) else ""
        return f"{name}{error.strerror or error}"
    first = (str(error).strip().splitlines() or [""])[0]
    return f"a bug of ddcm, please report it with what DDCM_DEBUG=1 prints: {type(error).__name__}: {first}"


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type's name where it has none: for messages of one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
