"""Files in and out: an output is checked before the work, written whole or not at all, and destroys nothing.

The rules, for every file this package writes (docs/reliability.md):

* It is never the same file as an input or as another output, by whatever names or links.
* An existing file is replaced only if its content is of the kind being written (a .ddcm file, JSON, text or a picture
  of the same format), or it is empty; anything else, a read-only file and a disk need `force`.
* A regular file is written beside its place, synced and renamed; it keeps its mode, and its owner where that is
  allowed. A symbolic link is followed and stays. Devices, FIFOs, sockets and standard output are written through.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import socket
import stat
import sys
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ddcm_fast.errors import InputError

#: What the command line's "-" stands for.
STDIN, STDOUT = Path("/dev/stdin"), Path("/dev/stdout")

#: The longest .ddcm file that is read; the largest image at the largest bitrate takes 16 MiB.
MAX_FILE = 1 << 26

#: The longest image file that is read; the largest picture takes 192 MiB uncompressed in 32 bits a channel.
MAX_IMAGE_FILE = 1 << 28

#: What the names of unfinished files begin with; then come the machine's number and the process's.
_PART = ".ddcm-"


@dataclass(frozen=True)
class Kind:
    """What an output is: its name in messages, and whether an existing file has such content."""

    name: str
    holds: Callable[[Path], bool]


def _text(path: Path) -> bool:
    return path.stat().st_size <= MAX_FILE and path.read_text("utf-8") is not None


def _json(path: Path) -> bool:
    return path.stat().st_size <= MAX_FILE and isinstance(json.loads(path.read_text("utf-8")), (dict, list))


def _safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return length <= MAX_FILE and isinstance(json.loads(file.read(length)), dict)


#: UTF-8 text; JSON; a model's weights.
TEXT = Kind("text", _text)
JSON = Kind("JSON", _json)
SAFETENSORS = Kind("a safetensors file", _safetensors)


def picture(format: str) -> Kind:
    """A picture of one of Pillow's formats, as Pillow sees it ("PNG", "JPEG", ...), whatever its name says."""

    def holds(path: Path) -> bool:
        from PIL import Image

        with contextlib.suppress(Image.DecompressionBombError):  # large, but such a picture
            Image.open(path, formats=[format]).close()
        return True

    return Kind(f"a {format} picture", holds)


def _holds(kind: Kind, path: Path) -> bool:
    try:
        return kind.holds(path)
    except (OSError, ValueError, SyntaxError, RecursionError):  # Pillow's, and of foreign text
        return False


def _said(error: OSError) -> str:
    return error.strerror or str(error)


def _state(path: Path) -> os.stat_result | None:
    """A file's state, through links; None where there is none. Raises InputError where that cannot be known."""
    stream = {STDIN: sys.stdin, STDOUT: sys.stdout}.get(path)
    try:
        return os.stat(path) if stream is None else os.fstat(stream.fileno())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        if stream is not None:  # replaced by an object that is no file
            return None
        raise InputError(f"cannot use {path}: {_said(error) if isinstance(error, OSError) else error}") from error


def _regular(state: os.stat_result | None) -> bool:
    return state is None or stat.S_ISREG(state.st_mode)


def is_regular(path: Path) -> bool:
    """Whether a path is a regular file or nothing yet; not a folder, device, pipe, socket or standard stream."""
    return path not in (STDIN, STDOUT) and _regular(_state(path))


def _identity(path: Path, state: os.stat_result | None) -> object:
    """The same for two names of one file."""
    return os.path.realpath(path) if state is None else (state.st_dev, state.st_ino)


def _create(folder: Path) -> tuple[int, Path]:
    """A new, empty file in a folder, with the mode that new files get there."""
    while True:
        path = folder / f"{_PART}{_machine()}-{os.getpid()}-{secrets.token_hex(4)}"
        with contextlib.suppress(FileExistsError):
            return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666), path


def _machine() -> str:
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"


def sweep(folder: Path) -> None:
    """Remove, from a folder and those in it, unfinished files of processes of this machine that are no more."""
    for path in folder.rglob(f"{_PART}{_machine()}-*"):
        number = path.name.split("-")[-2]
        if number.isdecimal() and not _lives(int(number)):
            with contextlib.suppress(OSError):
                path.unlink()


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's, or no number of a process
        return True
    return True


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # not every system and file system has this
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _replace(path: Path, data: bytes, old: os.stat_result | None) -> None:
    """Write a regular file; `path` has no link in its last part."""
    handle, part = _create(path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            if old is not None:
                if hasattr(os, "fchown"):
                    with contextlib.suppress(OSError):
                        os.fchown(handle, old.st_uid, old.st_gid)
                os.chmod(part, stat.S_IMODE(old.st_mode) & 0o777)
            file.write(data)
            file.flush()
            os.fsync(handle)
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(part)
        raise
    _sync_folder(path.parent)


def _write_through(path: Path, data: bytes, mode: int) -> None:
    if stat.S_ISSOCK(mode):
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(str(path))
            peer.sendall(data)
        return
    with os.fdopen(os.open(path, os.O_WRONLY), "wb") as file:
        file.write(data)


class Outputs:
    """The files that one command writes.

    Args:
        inputs: files that the command reads; none of them may be an output.
        force: replace what is of another kind, too.
        folder: may be made, if it is not there, when the first file is written.

    Raises InputError: `folder` is a file.
    """

    def __init__(self, inputs: Iterable[Path | None] = (), force: bool = False, folder: Path | None = None) -> None:
        self._force, self._folder = force, folder
        self._kinds: dict[Path, Kind] = {}
        self._tried: set[Path] = set()  # folders where a file could be made
        self._owners = {_identity(path, _state(path)): (path, "input") for path in inputs if path is not None}
        if folder is not None and (state := _state(folder)) is not None and not stat.S_ISDIR(state.st_mode):
            raise InputError(f"{folder} is a file; name a folder")

    def add(self, path: Path, kind: Kind) -> None:
        """Check an output before the work.

        Raises InputError: the same file as another, of another kind, a folder, in no folder, not writable, or a name
        that is too long.
        """
        if path in self._kinds:
            raise InputError(f"two results would go to {path}; give them different names")
        state = self._check(path, kind)
        if _regular(state) and path != STDOUT:
            self._check_place(path)
        self._kinds[path] = kind
        self._owners[_identity(path, state)] = (path, "output")

    def write(self, path: Path, data: bytes) -> None:
        """Write an output that was added; what is there now is looked at again. Raises InputError."""
        state = self._check(path, self._kinds[path])
        try:
            if path == STDOUT:
                sys.stdout.buffer.write(data)
                sys.stdout.buffer.flush()
            elif state is not None and not _regular(state):
                _write_through(path, data, state.st_mode)
            else:
                target = Path(os.path.realpath(path))
                if self._folder is not None:
                    target.parent.mkdir(parents=True, exist_ok=True)
                _replace(target, data, state)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise InputError(f"cannot write {path}: {_said(error)}") from error
        self._owners[_identity(path, _state(path))] = (path, "output")

    def _check(self, path: Path, kind: Kind) -> os.stat_result | None:
        """The state of what is at an output's place; raises InputError if that must stay."""
        state = _state(path)
        own = (path, "output")
        other, what = self._owners.get(_identity(path, state), own)
        if _regular(state) and (other, what) != own:
            raise InputError(f"{path} is the same file as the {what} {other}; name another output")
        if path == STDOUT:
            if sys.stdout is None:
                raise InputError("standard output is closed; name a file")
            if sys.stdout.isatty() and not self._force:
                raise InputError(f"{kind.name} is nothing for a terminal: redirect the output, or name a file")
        elif state is not None and stat.S_ISDIR(state.st_mode):
            raise InputError(f"{path} is a folder; name a file")
        elif state is not None and not self._force:
            if stat.S_ISBLK(state.st_mode):
                raise InputError(f"{path} is a disk; name a file, or write to the disk with --force")
            if stat.S_ISREG(state.st_mode) and state.st_size and not _holds(kind, path):
                raise InputError(f"{path} exists and is not {kind.name}; name another file, or replace it with --force")
            if not state.st_mode & 0o222 or not os.access(path, os.W_OK):
                raise InputError(f"{path} is read-only; name another file, or replace it with --force")
        return state

    def _check_place(self, path: Path) -> None:
        """That a file can be made there, by making one."""
        target = Path(os.path.realpath(path))
        folder = target.parent
        if self._folder is None and not folder.is_dir():
            raise InputError(f"no such folder: {path.parent}")
        try:
            while not folder.exists() and folder != folder.parent:
                folder = folder.parent
            longest = os.pathconf(folder, "PC_NAME_MAX") if hasattr(os, "pathconf") else 255
            if any(len(os.fsencode(part)) > longest for part in target.relative_to(folder).parts):
                raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
            if folder not in self._tried:
                handle, part = _create(folder)
                os.close(handle)
                os.unlink(part)
                self._tried.add(folder)
        except OSError as error:
            raise InputError(f"cannot write {path}: {_said(error)}") from error


def write(path: Path, data: bytes, kind: Kind, force: bool = False) -> None:
    """Write one file by the rules above, its folder made if need be. Raises InputError."""
    outputs = Outputs(force=force, folder=path.parent)
    outputs.add(path, kind)
    outputs.write(path, data)


def write_json(path: Path, value: Any, indent: int | None = None) -> None:
    """Write a value as JSON. Raises InputError."""
    write(path, (json.dumps(value, indent=indent) + "\n").encode(), JSON)


def read(path: Path, most: int = MAX_FILE, start: bytes = b"") -> bytes:
    """A file's bytes, "-" of the command line being standard input.

    Of a file that does not begin with `start` only that many bytes are read.

    Raises InputError: it cannot be read, or has more than `most` bytes.
    """
    try:
        with _open(path) as file:
            head = file.read(len(start))
            data = head if head != start else head + file.read(most - len(head) + 1)
    except OSError as error:
        raise InputError(f"cannot read {path}: {_said(error)}") from error
    if len(data) > most:
        raise InputError(f"{path} has more than {most >> 20} MiB; such a file has at most that")
    return data


def _open(path: Path) -> contextlib.AbstractContextManager[IO[bytes]]:
    if path != STDIN:
        return path.open("rb")
    if sys.stdin is None:
        raise InputError("standard input is closed; name a file")
    return contextlib.nullcontext(sys.stdin.buffer)
