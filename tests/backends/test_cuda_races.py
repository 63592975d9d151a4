"""The CUDA kernels' barriers, under ThreadSanitizer on a host: none missing, none that only some threads reach."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import pytest
from building import COMPILER, built_once

from ddcm_fast.codebook.build import source_hash

FOLDER = Path(__file__).parent / "races"
FLAGS = ("-O1", "-std=c++17", "-Wall", "-Wextra", "-Werror")
SANITIZED = ("-fsanitize=thread", "-ffp-contract=off")
CASES = (
    *("sign-1", "sign-split", "sign-2", "sign-8", "sign-16", "sign-16-tiles", "sign-cut"),
    *("gaussian-1", "gaussian-8", "gaussian-32", "gaussian-64", "gaussian-128-split", "gaussian-256", "gaussian-cut"),
    *("hadamard-64", "hadamard-256", "hadamard-1024", "hadamard-4096", "hadamard-16384"),
    *("topk", "trellis", "trellis-cluster", "trellis-apart"),
)

SMALLEST = ("sign-1", "gaussian-1", "hadamard-64", "trellis")


@pytest.fixture(scope="module")
def program() -> Path:
    """The checker, compiled once for these sources and this compiler."""
    assert COMPILER is not None, "no C++ compiler"
    sources = b"".join((FOLDER / name).read_bytes() for name in ("fibers.h", "fibers.cpp", "cuda.cpp"))
    digest = hashlib.sha256(sources + (source_hash("cuda", *FLAGS, *SANITIZED) + COMPILER).encode())

    def build(scratch: Path) -> Path:
        built, fibers = scratch / "races", scratch / "fibers.o"
        subprocess.run([str(COMPILER), *FLAGS, "-c", str(FOLDER / "fibers.cpp"), "-o", str(fibers)], check=True)
        done = subprocess.run(
            [str(COMPILER), *FLAGS, *SANITIZED, str(FOLDER / "cuda.cpp"), str(fibers), "-o", str(built)],
            capture_output=True,
            text=True,
        )
        if "tsan" in done.stderr and done.returncode != 0:
            pytest.skip("this compiler has no ThreadSanitizer")
        assert done.returncode == 0, done.stderr
        return built

    return built_once(f"races-{digest.hexdigest()[:16]}", build)


def run(program: Path, case: str) -> subprocess.CompletedProcess[str]:
    options = {"TSAN_OPTIONS": "halt_on_error=1 report_bugs=1"}
    return subprocess.run([str(program), case], capture_output=True, text=True, env={**os.environ, **options})


pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")


@pytest.mark.parametrize(
    "case", [case if case in SMALLEST else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
)
def test_every_kernel(program: Path, case: str) -> None:
    """No race, no deadlock, and bit for bit the results of the emulation that runs thread after thread."""
    done = run(program, case)
    assert done.returncode == 0, done.stderr[:4000]


def test_no_case_is_left_out(program: Path) -> None:
    assert tuple(run(program, "list").stdout.split()) == CASES


def test_the_checker_sees_races_and_deadlocks(program: Path) -> None:
    racy = run(program, "racy")
    assert racy.returncode == 66 and "data race" in racy.stderr
    stuck = run(program, "stuck")
    assert stuck.returncode == 3 and "deadlock" in stuck.stderr
