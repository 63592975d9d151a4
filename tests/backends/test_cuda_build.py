"""The CUDA library is built by nvcc: once, alone, and with a reason where it cannot be."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from building import COMPILER

from ddcm_fast.codebook import build
from ddcm_fast.codebook.backends import cuda
from ddcm_fast.errors import BackendError

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import sass

SPEC = (1, 132, 8, 16384, 4096, 1, 7)


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache, where there is an nvcc."""
    if sass.find_nvcc() is None or COMPILER is None:
        pytest.skip("no nvcc or no C++ compiler")
    monkeypatch.setenv("DDCM_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.slow  # nvcc takes half a minute
def test_builds_once_a_library_without_torch_in_it(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = cuda.build((9, 0))
    assert list(cache.glob("*.so")) == [library]
    needed = subprocess.run(["readelf", "-d", str(library)], capture_output=True, text=True, check=True).stdout
    needed = "\n".join(line for line in needed.splitlines() if "NEEDED" in line)
    assert "libc.so" in needed and "torch" not in needed and "c10" not in needed and "cudart" not in needed
    kernels = cuda.Cuda(library, multiprocessors=132, max_cluster=8, bit_products=True)
    workspace = kernels._library.ddcm_search_workspace(cuda._Spec(*SPEC), 1)
    assert 0 < workspace < cuda.WORKSPACE_LIMIT
    monkeypatch.setattr(build, "nvcc", lambda: pytest.fail("built twice"))
    assert cuda.build((9, 0)) == library


def test_a_failure_gives_the_compiler_s_reason(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "csrc" / "cuda"
    broken.mkdir(parents=True)
    (tmp_path / "csrc" / "noise.h").touch()
    (broken / "kernels.cu").write_text("int f() { return undeclared; }\n")
    monkeypatch.setattr(build, "source_dir", lambda: tmp_path / "csrc")
    for _ in range(2):  # the second try is not taken for a build that is up to date
        with pytest.raises(BackendError, match=r'the compiler .*nvcc.* failed: .*error: .*"undeclared"'):
            cuda.build((9, 0))
        assert not list(cache.glob("*.so")) and not list(cache.glob(".build-*"))


def test_an_unknown_architecture_is_named(cache: Path) -> None:
    with pytest.raises(BackendError, match="Unsupported gpu architecture"):
        cuda.build((1, 0))


def test_a_gpu_newer_than_nvcc_gets_the_newest_ptx(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The driver compiles it for the GPU; one that nvcc knows gets code of its own."""
    program = tmp_path / "bin" / "nvcc"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nprintf 'compute_80\\ncompute_90\\ncompute_100\\n'\n")
    program.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    expected = {(9, 0): (90, "sm_90"), (9, 9): (90, "compute_90"), (12, 1): (100, "compute_100"), (7, 5): (75, "sm_75")}
    for capability, (arch, code) in expected.items():
        command = build.cuda_library(capability).command()
        assert command == [str(program), f"-gencode=arch=compute_{arch},code={code}"]


def test_ptx_is_compiled_where_nvcc_has_no_code_for_the_gpu(cache: Path, tmp_path: Path) -> None:
    if sass.find_cuobjdump() is None:
        pytest.skip("no cuobjdump")
    source, made = tmp_path / "one.cu", tmp_path / "one.o"
    source.write_text("__global__ void one(int* at) { *at = 1; }\n")
    library = build.cuda_library((99, 9))
    subprocess.run([*library.command(), *library.flags, "-c", str(source), "-o", str(made)], check=True)
    for option, suffix, expected in (("-lptx", ".ptx", True), ("-lelf", ".cubin", False)):
        done = subprocess.run([str(sass.find_cuobjdump()), option, str(made)], capture_output=True, text=True)
        assert (suffix in done.stdout) == expected


def test_missing_nvcc_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DDCM_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(BackendError, match="nvcc was not found: install the CUDA toolkit or set CUDA_HOME"):
        cuda.build((9, 0))


def test_the_host_compiler_is_the_one_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    for name in ("nvcc", "host"):
        program = tmp_path / "bin" / name
        program.touch()
        program.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert build.nvcc() == [str(tmp_path / "bin" / "nvcc")]
    monkeypatch.setenv("CXX", str(program))
    assert build.nvcc() == [str(tmp_path / "bin" / "nvcc"), f"-ccbin={program}"]
