"""What a run over many has done: a line of JSON an item, beside the results.

Nothing in it is trusted. An item counts as done if its content, the settings and the result's bytes are still those of
the line. The line is on the disk before the result has its name, so that a file without a line is somebody else's. Each
worker appends to a file of its own and reads them all, so workers need no lock, on one machine or many.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ddcm_fast.errors import InputError

_NAME = "ddcm-manifest"
DONE, FAILED = "done", "failed"


def digest(data: bytes) -> str:
    """A short name of some bytes: 16 hexadecimal digits of their SHA-256."""
    return hashlib.sha256(data).hexdigest()[:16]


class Manifest:
    """The manifest of a folder, as one of `workers` workers writes it.

    Lines have name, status ("done" or "failed"), input and settings (digests); of what is done output, bytes, sha256
    (a digest of the output), seconds and the run's own facts; of what failed error.

    Args:
        folder: of the results; need not be there yet.
    """

    def __init__(self, folder: Path, rank: int = 0, workers: int = 1) -> None:
        self._folder = folder
        self.path = folder / (f"{_NAME}.jsonl" if workers == 1 else f"{_NAME}-{rank}-of-{workers}.jsonl")
        self._lines: dict[str, list[dict[str, Any]]] = {}
        for path in sorted(folder.glob(f"{_NAME}*.jsonl")):
            for line in _read(path):
                self._lines.setdefault(line["name"], []).append(line)

    def status(self, name: str, input: str, settings: str) -> dict[str, Any] | None:
        """The line of an item that holds now: done, its output as it was written; or failed. None: it is to be done."""
        held = None
        for line in self._lines.get(name, []):
            if line.get("input") != input or line.get("settings") != settings:
                continue
            if line.get("status") == DONE and self._is_there(line):
                return line
            if line.get("status") == FAILED:
                held = line
        return held

    def knows(self, output: str) -> bool:
        """Whether a result of this name was made, or begun, by a run into this folder; `output` has its ending."""
        name = output.rpartition(".")[0]
        return any(line.get("output") == output for line in self._lines.get(name, []))

    def add(self, line: dict[str, Any]) -> None:
        """Append a line, on the disk when this returns. Raises InputError."""
        data = json.dumps(line).encode() + b"\n"
        try:
            with self.path.open("ab+") as file:
                if file.tell() and not _ends_whole(self.path):
                    data = b"\n" + data  # whoever wrote the last line was killed in the middle of it
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise InputError(f"cannot write {self.path}: {error.strerror or error}") from error
        self._lines.setdefault(line["name"], []).append(line)

    def _is_there(self, line: dict[str, Any]) -> bool:
        try:
            path = self._folder / line["output"]
            return path.stat().st_size == line["bytes"] and digest(path.read_bytes()) == line["sha256"]
        except (OSError, KeyError, TypeError, ValueError):
            return False


def _ends_whole(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def _read(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a manifest; what is none is passed over, and its item done again."""
    try:
        with path.open("rb") as file:
            for text in file:
                try:
                    line = json.loads(text)
                except ValueError:
                    continue
                if isinstance(line, dict) and isinstance(line.get("name"), str):
                    yield line
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
