"""Compiles the cpu backend's C++ (csrc/cpu) into one shared library with a plain C interface.

It imports neither torch nor the rest of the package: setup.py loads it by file path to ship a ready
library inside a wheel, and `ddcm_fast.backends.cpu` calls it at first use where none was shipped or the
sources have changed since (an editable install). Any C++17 compiler with GCC's command line will do.

Libraries built at first use live in `$DDCM_CACHE_DIR`, else `$XDG_CACHE_HOME/ddcm_fast`, else
`~/.cache/ddcm_fast`. Their names carry a hash of all that went into them, so a stale one is never loaded,
and they are moved into place in one step, so that processes may build at the same time.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

_LOG = logging.getLogger("ddcm_fast")

_PACKAGE = Path(__file__).resolve().parent

#: Where setup.py puts the library of a wheel.
SHIPPED_DIR = _PACKAGE / "_lib"

# -ffp-contract=off: the noise law rounds every product before its sum.
_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-ffp-contract=off", "-fvisibility=hidden", "-pthread")
_X86_FLAGS = {
    "avx2.cpp": ("-mavx2", "-mfma"),
    # GCC 12 takes the undefined lanes in its own AVX-512 header for a mistake of ours.
    "avx512.cpp": (
        *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma"),
        *("-Wno-uninitialized", "-Wno-maybe-uninitialized"),
    ),
}


class BuildError(Exception):
    """The library could not be built; the message says why and what to do."""


def source_dir() -> Path:
    """The folder of C++ and CUDA sources: inside an installed package, or a checkout's csrc/.

    Raises BuildError if there is none.
    """
    for folder in (_PACKAGE / "csrc", _PACKAGE.parent / "csrc"):
        if (folder / "noise.h").is_file():
            return folder
    raise BuildError(f"the C++ sources are missing from {_PACKAGE / 'csrc'}; reinstall ddcm-fast")


def _sources() -> list[Path]:
    folder = source_dir()
    return [folder / "noise.h", *sorted(folder.glob("cpu/*.h")), *sorted(folder.glob("cpu/*.cpp"))]


def source_hash() -> str:
    """Hash of the cpu backend's sources, flags and machine type: 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for path in _sources():
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    digest.update(repr((_FLAGS, _X86_FLAGS, sys.platform, platform.machine())).encode())
    return digest.hexdigest()[:16]


def library_name() -> str:
    """File name of the library built from the present sources."""
    return f"libddcm_cpu-{source_hash()}.so"


def compiler() -> list[str]:
    """The C++ compiler's command: `$CXX`, else the first of c++, g++ and clang++ on the path.

    Raises BuildError if there is none.
    """
    asked = shlex.split(os.environ.get("CXX", ""))
    if asked:
        if shutil.which(asked[0]) is None:
            raise BuildError(f"the compiler $CXX={asked[0]!r} does not exist; correct or unset CXX")
        return asked
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name) is not None:
            return [name]
    raise BuildError("no C++ compiler was found; install g++ or clang++, or set CXX")


def cache_dir() -> Path:
    """The folder of libraries built at first use."""
    if asked := os.environ.get("DDCM_CACHE_DIR"):
        return Path(asked)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "ddcm_fast"


def _run(command: list[str]) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode == 0:
        return
    _LOG.debug("%s\n%s", shlex.join(command), done.stdout)
    lines = [line for line in done.stdout.splitlines() if line.strip()] or ["(no output)"]
    reason = next((line for line in lines if "error" in line.lower()), lines[-1])
    raise BuildError(f"the compiler {command[0]!r} failed: {reason.strip()}")


def _instruction_set_flags(cxx: list[str], source: Path, folder: Path) -> tuple[str, ...]:
    """Flags for one file: those of its instruction set, or none where the compiler knows none such."""
    flags = _X86_FLAGS.get(source.name, ())
    if not flags or platform.machine() not in ("x86_64", "AMD64"):
        return ()
    empty = folder / f"empty-{source.name}"
    empty.touch()
    try:
        _run([*cxx, *_FLAGS, *flags, "-c", str(empty), "-o", f"{empty}.o"])
    except BuildError:
        return ()
    return flags


def _compile_object(cxx: list[str], source: Path, folder: Path) -> str:
    target = str(folder / f"{source.stem}.o")
    flags = _instruction_set_flags(cxx, source, folder)
    _run([*cxx, *_FLAGS, *flags, "-c", str(source), "-o", target])
    return target


def compile_library(target: Path) -> None:
    """Compile the sources to the shared library `target`, put in place in one step.

    Raises BuildError if there is no compiler, it fails, or the folder cannot be written.
    """
    if sys.platform == "win32":
        raise BuildError("the cpu backend is built on Linux and macOS only")
    cxx = compiler()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as name:
            folder = Path(name)
            sources = [path for path in _sources() if path.suffix == ".cpp"]
            with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
                objects = list(pool.map(lambda path: _compile_object(cxx, path, folder), sources))
            library = str(folder / target.name)
            _run([*cxx, "-shared", "-pthread", *objects, "-o", library])
            os.replace(library, target)
    except OSError as error:
        raise BuildError(
            f"cannot write {target.parent}: {error.strerror}; set DDCM_CACHE_DIR to a folder you can write"
        ) from error


@lru_cache(maxsize=1)
def _compiler_version(command: tuple[str, ...]) -> str:
    done = subprocess.run([*command, "--version"], capture_output=True, text=True)
    return done.stdout


def cached_library() -> Path:
    """Where the present compiler's library lies, or will lie, in the cache. Raises BuildError."""
    cxx = tuple(compiler())
    key = hashlib.sha256(repr((cxx, _compiler_version(cxx))).encode()).hexdigest()[:8]
    name = library_name()
    return cache_dir() / f"{name.removesuffix('.so')}-{key}.so"


def ensure_library(rebuild: bool = False) -> Path:
    """Path of a library made from the present sources, built now if need be (some 15 seconds).

    Args:
        rebuild: build it even if the cache holds one (which turned out not to load).

    Raises BuildError, saying why it cannot be had.
    """
    shipped = SHIPPED_DIR / library_name()
    if shipped.is_file() and not rebuild:
        return shipped
    target = cached_library()
    if rebuild or not target.is_file():
        _LOG.info("compiling the cpu backend to %s", target)
        if sys.stderr.isatty():
            print("ddcm-fast: compiling its cpu backend, once (some 15 seconds)", file=sys.stderr)
        compile_library(target)
    return target
