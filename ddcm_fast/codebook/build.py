"""Compiles the package's shared libraries: csrc/cpu for the cpu backend, csrc/cuda for the cuda backend.

It imports neither torch nor the rest of the package: setup.py loads it by file path to ship a ready cpu library inside
a wheel. `ddcm_fast.codebook.library_cache` builds at first use what was not shipped, and keeps it. Both libraries have
a plain C interface and contain no torch or Python code, so one serves every version of either. The cpu library takes
any C++17 compiler with GCC's command line, the cuda library nvcc.

A library's name ends in two hashes: of what it was made from, so that a stale one is never loaded, and of its own
bytes, so that a damaged or foreign one is noticed before it is loaded.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

_LOG = logging.getLogger("ddcm_fast")

_PACKAGE = Path(__file__).resolve().parents[1]

#: Where setup.py puts the cpu library: in a wheel, or in the checkout of an editable install.
SHIPPED_DIR = _PACKAGE / "_lib"

#: Prefix of the folders that builds work in, beside the library to be.
SCRATCH_PREFIX = ".build-"

# -ffp-contract=off: the noise law rounds every product before its sum.
_CPU_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-ffp-contract=off", "-fvisibility=hidden", "-pthread")
_CUDA_FLAGS = ("-std=c++17", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden")
# GCC 12 takes the undefined lanes in its own AVX-512 header for a mistake of ours.
_AVX512_FLAGS = (
    *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma"),
    *("-Wno-uninitialized", "-Wno-maybe-uninitialized"),
)
_X86_FLAGS = {
    "avx2.cpp": ("-mavx2", "-mfma"),
    "avx512.cpp": _AVX512_FLAGS,
    "avx512vnni.cpp": (*_AVX512_FLAGS, "-mavx512vbmi", "-mavx512vnni"),
}


class BuildError(Exception):
    """A library could not be built; the message says why and what to do."""


# ---- sources and compilers ---------------------------------------------------------------------------------


def source_dir() -> Path:
    """The folder of C++ and CUDA sources: inside an installed package, or a checkout's csrc/.

    Raises BuildError if there is none.
    """
    for folder in (_PACKAGE / "csrc", _PACKAGE.parent / "csrc"):
        if (folder / "noise.h").is_file():
            return folder
    raise BuildError(f"the C++ sources are missing from {_PACKAGE / 'csrc'}; reinstall ddcm-fast")


def source_hash(part: str, *extra: str) -> str:
    """Hash of the sources in csrc/`part` (cpu or cuda) and of `extra` words: 16 hexadecimal digits."""
    digest = hashlib.sha256()
    folder = source_dir()
    sources = (path for path in sorted((folder / part).iterdir()) if path.suffix in (".h", ".cpp", ".cu"))
    for path in (folder / "noise.h", *sources):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    digest.update("\0".join(extra).encode())
    return digest.hexdigest()[:16]


def machine() -> str:
    """The processor that libraries are for: this one, or that of a wheel for another.

    Whoever builds such a wheel says so to setuptools in `_PYTHON_HOST_PLATFORM` (linux-aarch64), as CPython's own cross
    builds do, and names the compiler in `CXX`.
    """
    return os.environ.get("_PYTHON_HOST_PLATFORM", "").rpartition("-")[2] or platform.machine()


def compiler() -> list[str]:
    """The C++ compiler's command: `$CXX`, else the first of c++, g++ and clang++ on the path.

    Raises BuildError if there is none.
    """
    command = shlex.split(os.environ.get("CXX", ""))
    if command:
        if shutil.which(command[0]) is None:
            raise BuildError(f"the compiler $CXX={command[0]!r} does not exist; correct or unset CXX")
        return command
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name) is not None:
            return [name]
    raise BuildError("no C++ compiler was found; install g++ or clang++, or set CXX")


def nvcc() -> list[str]:
    """nvcc's command: that of `$CUDA_HOME` or `$CUDA_PATH` if set, else on the path, else in /usr/local/cuda.

    Raises BuildError if there is none.
    """
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    found = shutil.which("nvcc", path=os.path.join(home, "bin") if home else None)
    if found is None and not home:
        found = shutil.which("nvcc", path="/usr/local/cuda/bin")
    if found is None:
        raise BuildError("nvcc was not found: install the CUDA toolkit or set CUDA_HOME to compile the CUDA kernels")
    host = compiler() if os.environ.get("CXX") else []
    return [found, f"-ccbin={host[0]}"] if len(host) == 1 else [found]


# ---- libraries ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Library:
    """What a library is made of.

    Attributes:
        part: the folder of csrc/ it is made from; also the name of its backend.
        target: what it is made for, as in its name: "" or the compute capability.
        units: suffix of the files that are compiled, each for itself and side by side.
        flags: the compiler's, for every unit.
        command: finds the compiler; raises BuildError.
        duration: what to tell whoever waits for it.
    """

    part: str
    target: str
    units: str
    flags: tuple[str, ...]
    command: Callable[[], list[str]]
    duration: str

    def stem(self) -> str:
        """Its name without the hash of its bytes."""
        words = (*self.flags, repr(sorted(_X86_FLAGS.items())), sys.platform, machine())
        return f"libddcm_{self.part}{self.target}-{source_hash(self.part, *words)}"


def cpu_library() -> Library:
    """The library of the cpu backend."""
    return Library("cpu", "", ".cpp", _CPU_FLAGS, compiler, "some 15 seconds")


def cuda_library(capability: tuple[int, int]) -> Library:
    """The library of the cuda backend for a compute capability."""
    arch = capability[0] * 10 + capability[1]

    def command() -> list[str]:
        found = nvcc()
        return [*found, _gencode(found, arch)]

    return Library("cuda", f"-sm{arch}", ".cu", _CUDA_FLAGS, command, "10 to 30 seconds")


def _gencode(command: list[str], arch: int) -> str:
    """nvcc's flag for an architecture; for one newer than nvcc, PTX of its newest before, which the driver compiles."""
    done = subprocess.run([*command, "--list-gpu-arch"], capture_output=True, text=True)
    known = [int(number) for number in re.findall(r"^compute_(\d+)$", done.stdout, re.MULTILINE)]
    older = [number for number in known if number < arch]
    if arch in known or not older:
        return f"-gencode=arch=compute_{arch},code=sm_{arch}"
    return f"-gencode=arch=compute_{max(older)},code=compute_{max(older)}"


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:32]


def candidates(library: Library, folder: Path) -> list[Path]:
    """Files of a folder that say they are the library, newest first. There can be several, of several compilers."""
    found = [(path.lstat().st_mtime, path) for path in folder.glob(f"{library.stem()}-*.so")]
    return [path for _, path in sorted(found, reverse=True)]


def is_intact(path: Path) -> bool:
    """Whether a library's bytes are those its name tells. Takes a millisecond a megabyte."""
    return path.stem.rpartition("-")[2] == _digest(path)


# ---- compiling ---------------------------------------------------------------------------------------------


def _run(command: list[str], folder: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(folder), "LC_ALL": "C"}
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    if done.returncode == 0:
        return
    _LOG.debug("%s\n%s", shlex.join(command), done.stdout)
    for code in (errno.ENOSPC, errno.EDQUOT):
        if os.strerror(code) in done.stdout:
            raise OSError(code, os.strerror(code))
    lines = [line for line in done.stdout.splitlines() if line.strip()] or ["(no output)"]
    markers = ("error", "fatal", "cannot find")
    reason = next((line for line in lines if any(word in line.lower() for word in markers)), lines[-1])
    raise BuildError(f"the compiler {command[0]!r} failed: {reason.strip()}")


def _instruction_set_flags(command: list[str], source: Path, folder: Path) -> tuple[str, ...]:
    """Flags for one file: those of its instruction set, or none where the compiler knows none such."""
    flags = _X86_FLAGS.get(source.name, ())
    if not flags or machine() not in ("x86_64", "AMD64"):
        return ()
    empty = folder / f"empty-{source.name}"
    empty.touch()
    try:
        _run([*command, *flags, "-c", str(empty), "-o", f"{empty}.o"], folder)
    except BuildError:
        return ()
    return flags


def _compile_unit(command: list[str], source: Path, folder: Path) -> str:
    target = str(folder / f"{source.stem}.o")
    flags = _instruction_set_flags(command, source, folder)
    _run([*command, *flags, "-c", str(source), "-o", target], folder)
    return target


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def build(library: Library, folder: Path) -> Path:
    """Compile a library and put it into an existing folder, in one step. Returns its path.

    Raises BuildError if there is no compiler or it fails, OSError if the folder cannot be written.
    """
    if sys.platform == "win32":
        raise BuildError("the kernels are built on Linux and macOS only")
    command = [*library.command(), *library.flags]
    _LOG.info("compiling the %s backend in %s", library.part, folder)
    with tempfile.TemporaryDirectory(dir=folder, prefix=SCRATCH_PREFIX) as name:
        scratch = Path(name)
        units = sorted((source_dir() / library.part).glob(f"*{library.units}"))
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            objects = list(pool.map(lambda path: _compile_unit(command, path, scratch), units))
        output = scratch / "library.so"
        _run([*command, "-shared", *objects, "-o", str(output)], scratch)
        output.chmod(0o755)
        _fsync(output)
        target = folder / f"{library.stem()}-{_digest(output)}.so"
        output.replace(target)
    _fsync(folder)
    return target
