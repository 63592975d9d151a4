"""The cpu backend's C++ under AddressSanitizer and UndefinedBehaviorSanitizer, over the grid of odd shapes."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from pathlib import Path

import pytest
from backend_checks import CASES
from building import COMPILER, built_once

from ddcm_fast.codebook import build
from ddcm_fast.codebook.law import KINDS, gaussian_table

pytestmark = [pytest.mark.slow, pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")]

DRIVER = Path(__file__).parent / "sanitize_cpu.cpp"
FLAGS = ("-std=c++17", "-O1", "-g", "-ffp-contract=off", "-pthread", "-fsanitize=address,undefined",
         "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")  # fmt: skip

#: kind, D, K, G, B: the tests' shapes, and every batch up to 9 with nothing a multiple of anything.
SHAPES = [(c.kind, c.dim, c.size, c.groups, c.batch) for c in CASES if c.dim * c.size * c.batch < 10**6]
SHAPES += [(kind, 61 * batch + 7, 67 + batch, 1 + batch % 4, batch) for kind in KINDS for batch in range(1, 10)]
SHAPES += [("sign", 90 * batch + 7, 600 + 31 * batch, 1, batch) for batch in (1, 2, 3, 7)]  # coarse scores first


def compile_driver(folder: Path) -> Path:
    """The sanitized program: the backend's files, each with its instruction set's flags, and the driver."""
    x86 = platform.machine() in ("x86_64", "AMD64")
    objects = []
    for source in (*sorted(build.source_dir().glob("cpu/*.cpp")), DRIVER):
        flags = build._X86_FLAGS.get(source.name, ()) if x86 else ()
        target = str(folder / f"{source.stem}.o")
        command = [COMPILER, *FLAGS, *flags, f"-I{build.source_dir()}", "-c", str(source), "-o", target]
        subprocess.run(command, check=True, capture_output=True, text=True)
        objects.append(target)
    program = folder / "sanitize_cpu"
    subprocess.run([COMPILER, *FLAGS, *objects, "-o", str(program)], check=True, capture_output=True, text=True)
    return program


@pytest.fixture(scope="module")
def program():
    """The built driver; skips where the compiler has no sanitizers."""
    digest = hashlib.sha256(repr((FLAGS, build.source_hash("cpu"), COMPILER)).encode() + DRIVER.read_bytes())
    try:
        return built_once(f"sanitize-cpu-{digest.hexdigest()[:16]}", compile_driver)
    except subprocess.CalledProcessError as error:
        if "sanitize" in error.stderr or "asan" in error.stderr:
            pytest.skip(f"the compiler has no sanitizers: {error.stderr.strip().splitlines()[-1]}")
        raise AssertionError(error.stderr) from error


def test_no_access_past_an_array_and_no_undefined_behaviour(program, tmp_path):
    table = tmp_path / "table"
    table.write_bytes(gaussian_table().numpy().tobytes())
    shapes = "".join(f"{KINDS.index(kind)} {d} {k} {g} {b}\n" for kind, d, k, g, b in SHAPES)
    done = subprocess.run([str(program), str(table)], input=shapes, capture_output=True, text=True, env={**os.environ})
    assert done.returncode == 0, done.stderr[-4000:]
    assert f"portable: {len(SHAPES)} shapes" in done.stdout
