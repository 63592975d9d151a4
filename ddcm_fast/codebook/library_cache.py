"""Where compiled libraries are kept, and which of them may be loaded; and notes of what was found out about them.

A library is code that runs as the user, so it is only taken from folders and files that belong to the user or to root
and that nobody else can write, and only if its bytes are those its name tells (build.py). Looked through in
turn: what was installed with the package; `$DDCM_CACHE_DIR`, else `$XDG_CACHE_HOME/ddcm_fast`, else
`~/.cache/ddcm_fast`; and a folder of the user's own in the folders for temporary files, for whoever has no home or
one that programs cannot be loaded from. What is found in none is compiled into the first that takes it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import stat
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

from ddcm_fast.codebook import build
from ddcm_fast.errors import DDCMWarning

#: Seconds to wait for another process that builds the same; then both do, which does no harm.
_PATIENCE = 300

#: Seconds after which what a killed build left behind is removed.
_LEFTOVER_AGE = 3600

_ALL_CAN_WRITE = stat.S_IWGRP | stat.S_IWOTH


# ---- folders -----------------------------------------------------------------------------------------------


def _own(folder: Path) -> Path:
    """A folder, or where all users share it as they do /tmp, the user's own folder in it."""
    try:
        shared = folder.stat().st_mode & stat.S_ISVTX
    except OSError:
        return folder
    return folder / f"ddcm_fast-{os.geteuid()}" if shared else folder


def preferred_folder() -> Path | None:
    """Where libraries built at first use belong; it need not exist. None for a user without a home."""
    if requested := os.environ.get("DDCM_CACHE_DIR"):
        return _own(Path(requested).absolute())
    if os.path.isabs(base := os.environ.get("XDG_CACHE_HOME") or ""):
        return Path(base) / "ddcm_fast"
    home = os.path.expanduser("~")  # "~" itself where there is neither HOME nor an entry for the user
    return Path(home) / ".cache" / "ddcm_fast" if os.path.isabs(home) else None


def temporary_folders() -> list[Path]:
    """What serves instead of the preferred folder: the user's own in those for temporary files."""
    roots = [Path("/var/tmp")]
    with contextlib.suppress(FileNotFoundError):  # raised where no folder for temporary files can be written
        roots.insert(0, Path(tempfile.gettempdir()))
    return [root / f"ddcm_fast-{os.geteuid()}" for root in dict.fromkeys(roots)]


def _untrusted(status: os.stat_result) -> str | None:
    if status.st_uid not in (0, os.geteuid()):
        return "belongs to another user"
    if status.st_mode & _ALL_CAN_WRITE:
        return "can be written by others (delete it, or take that right away with chmod go-w)"
    return None


def refusal(folder: Path) -> str | None:
    """Why no library is loaded from a folder or kept in it, or None. The folder need not exist."""
    folder = Path(os.path.realpath(folder))
    try:
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        status = existing.stat()
        no_exec = os.statvfs(existing).f_flag & getattr(os, "ST_NOEXEC", 0)
        for parent in folder.parents:
            if parent.exists() and parent.stat().st_mode & (stat.S_IWOTH | stat.S_ISVTX) == stat.S_IWOTH:
                return f"lies in {parent}, where everyone can replace it"
    except OSError as error:
        return f"cannot be used ({error.strerror})"
    if not stat.S_ISDIR(status.st_mode):
        return "cannot be used (Not a directory)"
    if no_exec:
        return "is on a file system that programs cannot be loaded from (noexec)"
    if existing == folder:
        return _untrusted(status)
    return "lies in a folder of another user" if status.st_uid not in (0, os.geteuid()) else None


def _create(folder: Path) -> None:
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(0o700, exist_ok=True)


# ---- libraries ---------------------------------------------------------------------------------------------


def _warn(text: str) -> None:
    warnings.warn(text, DDCMWarning, stacklevel=4)


def _find(library: build.Library, folder: Path, own: bool) -> Path | None:
    """A library of a folder that is whole and loads here, or None.

    In a folder of the user's own, files are to be trusted no less than the folder, and damaged ones are removed.
    """
    for path in build.candidates(library, folder):
        try:
            status = path.lstat()
            reason = None if stat.S_ISREG(status.st_mode) else "is no regular file"
            if own and (reason := reason or _untrusted(status)):
                _warn(f"{path} {reason}: it is not loaded")
                continue
            if not build.is_intact(path):
                _warn(f"{path} is damaged: the {library.part} backend's library is built again")
                if own:
                    path.unlink()
                continue
            ctypes.CDLL(str(path))
        except OSError:  # not loaded here: a shared home can have libraries of several systems
            continue
        return path
    return None


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which goes with the process that holds it; without it where it cannot be had."""
    import fcntl

    with open(folder / ".lock", "w") as lock:
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.1)
            except OSError:  # a file system without locks
                break
        yield


def _sweep(folder: Path) -> None:
    for path in folder.glob(f"{build.SCRATCH_PREFIX}*"):
        with contextlib.suppress(OSError):
            status = path.lstat()
            if status.st_uid == os.geteuid() and time.time() - status.st_mtime > _LEFTOVER_AGE:
                if stat.S_ISDIR(status.st_mode):
                    shutil.rmtree(path)
                else:
                    path.unlink()


def _build(library: build.Library, folder: Path) -> Path | str:
    """Build a library in a folder, unless another process has meanwhile: its path, or why it cannot be there."""
    try:
        _create(folder)
        reason = refusal(folder)  # some file systems give a new folder other modes than asked for
        if reason is not None:
            return reason
        with _locked(folder):
            path = _find(library, folder, own=True)
            if path is None:
                _sweep(folder)
                if sys.stderr.isatty():
                    text = f"ddcm-fast: compiling its {library.part} backend, once ({library.duration})"
                    print(text, file=sys.stderr)
                path = build.build(library, folder)
        ctypes.CDLL(str(path))
        return path
    except OSError as error:
        return f"cannot be used ({error.strerror or error})"


def ensure(library: build.Library) -> Path:
    """Path of a library that is whole and loads, built now if need be.

    A DDCMWarning says, once a process, which folders could not be used: of `$DDCM_CACHE_DIR` always, of the others
    when something is built.

    Raises build.BuildError, saying why it cannot be had.
    """
    path = _find(library, build.SHIPPED_DIR, own=False)
    if path is not None:
        return path
    preferred = preferred_folder()
    usable: list[Path] = []
    refused = [] if preferred else ["there is no home folder"]
    for folder in (*([preferred] if preferred else []), *temporary_folders()):
        if reason := refusal(folder):
            refused.append(f"{folder} {reason}")
        elif path := _find(library, folder, own=True):
            if refused and os.environ.get("DDCM_CACHE_DIR"):
                _warn(f"{'; '.join(refused)}: the {library.part} backend is loaded from {folder}")
            return path
        else:
            usable.append(folder)
    for folder in usable:
        built = _build(library, folder)
        if isinstance(built, Path):
            if refused:
                _warn(f"{'; '.join(refused)}: the {library.part} backend is kept in {folder}")
            return built
        refused.append(f"{folder} {built}")
    raise build.BuildError(f"{'; '.join(refused)}: set DDCM_CACHE_DIR to a folder of your own that programs load from")


# ---- notes -------------------------------------------------------------------------------------------------


def _note_folders() -> Iterator[Path]:
    preferred = preferred_folder()
    for folder in (*([preferred] if preferred else []), *temporary_folders()):
        if refusal(folder) is None:
            yield folder


def recall(name: str) -> str | None:
    """The text of a note, from folders and files that libraries would be loaded from, or None."""
    for folder in _note_folders():
        path = folder / name
        with contextlib.suppress(OSError, UnicodeDecodeError):
            status = path.lstat()
            if stat.S_ISREG(status.st_mode) and not _untrusted(status):
                return path.read_text()
    return None


def keep(name: str, text: str) -> None:
    """Keep a note in the first folder that takes it; where none does, it is made anew next time."""
    for folder in _note_folders():
        with contextlib.suppress(OSError):
            _create(folder)
            if refusal(folder) is None:
                with tempfile.NamedTemporaryFile("w", dir=folder, prefix=build.SCRATCH_PREFIX, delete=False) as note:
                    note.write(text)
                os.replace(note.name, folder / name)
                return
