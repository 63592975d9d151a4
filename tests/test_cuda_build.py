"""The CUDA library is built by torch's extension builder: once, alone, and with a reason where it cannot be."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from building import COMPILER
from torch.utils import cpp_extension

from ddcm_fast.backends import cuda
from ddcm_fast.errors import BackendError

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
import sass

SPEC = (1, 132, 8, 16384, 4096, 1, 7)


@pytest.fixture
def toolkit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The machine's nvcc where torch looks for it, and an empty cache.

    A torch without CUDA looks nowhere, and has none of the libraries that its builder names to the linker.
    """
    nvcc = sass.find_nvcc()
    if nvcc is None or COMPILER is None:
        pytest.skip("no nvcc or no C++ compiler")
    stubs = tmp_path / "stubs"
    stubs.mkdir()
    if torch.version.cuda is None:
        monkeypatch.setattr(cpp_extension, "CUDA_HOME", str(Path(nvcc).parent.parent))
        for name in ("c10_cuda", "torch_cuda"):
            empty = [COMPILER, "-shared", "-x", "c++", "/dev/null", "-o", str(stubs / f"lib{name}.so")]
            subprocess.run(empty, check=True)
        monkeypatch.setenv("LIBRARY_PATH", str(stubs))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ddcm_fast"


@pytest.mark.slow  # nvcc takes a minute
def test_builds_once_a_library_without_torch_in_it(toolkit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = cuda.build((9, 0))
    assert list(toolkit.iterdir()) == [library]
    needed = subprocess.run(["readelf", "-d", str(library)], capture_output=True, text=True, check=True).stdout
    needed = "\n".join(line for line in needed.splitlines() if "NEEDED" in line)
    assert "libc.so" in needed and "torch" not in needed and "c10" not in needed and "cudart" not in needed
    kernels = cuda.Kernels(library, multiprocessors=132)
    workspace = kernels._library.ddcm_search_workspace(cuda._Spec(*SPEC), 1)
    assert 0 < workspace < cuda.WORKSPACE_LIMIT
    monkeypatch.setattr(cpp_extension, "load", lambda **_: pytest.fail("built twice"))
    assert cuda.build((9, 0)) == library


def test_a_failure_gives_the_compiler_s_reason(toolkit: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "csrc" / "cuda"
    broken.mkdir(parents=True)
    (tmp_path / "csrc" / "noise.h").touch()
    (broken / "kernels.cu").write_text("int f() { return undeclared; }\n")
    monkeypatch.setattr(cuda, "sources", lambda: tmp_path / "csrc")
    for _ in range(2):  # the second try is not taken for a build that is up to date
        with pytest.raises(BackendError, match=r'could not be compiled: .*error: .*"undeclared"'):
            cuda.build((9, 0))
        assert not list(toolkit.iterdir())


def test_an_unknown_architecture_is_named(toolkit: Path) -> None:
    with pytest.raises(BackendError, match=r"Unsupported gpu architecture|Unknown CUDA arch"):
        cuda.build((99, 9))


def test_missing_ninja_is_named(toolkit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpp_extension, "is_ninja_available", lambda: False)
    with pytest.raises(BackendError, match="Ninja is required"):
        cuda.build((9, 0))


def test_missing_nvcc_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    for home in (None, str(tmp_path)):
        monkeypatch.setattr(cpp_extension, "CUDA_HOME", home)
        with pytest.raises(BackendError, match="nvcc was not found"):
            cuda.build((9, 0))
