"""What tests compile, kept between runs."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from ddcm_fast.codebook import build

COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")


def built_once(name: str, make: Callable[[Path], Path]) -> Path:
    """The file of that name, built by whoever asks first: `make` makes it in a scratch folder and returns its path.

    The name holds a hash of whatever the file depends on. Processes that ask at the same time wait for the first.
    """
    folder = Path(tempfile.gettempdir()) / f"ddcm-fast-tests-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    assert folder.stat().st_uid == os.getuid(), f"{folder} is another user's; set TMPDIR"
    path = folder / name
    with open(folder / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.is_file():
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                make(Path(scratch)).replace(path)
    return path


def tiny_sources(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    """Let the package's cpu library be one of a single line, so that building it takes no time. Returns its csrc."""
    sources = folder / "csrc"
    (sources / "cpu").mkdir(parents=True)
    (sources / "noise.h").touch()
    (sources / "cpu" / "one.cpp").write_text("int one() { return 1; }\n")
    monkeypatch.setattr(build, "source_dir", lambda: sources)
    return sources
