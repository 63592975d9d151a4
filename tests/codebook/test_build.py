"""How libraries are compiled, named and made sure of."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from building import COMPILER, tiny_sources

from ddcm_fast.codebook import build

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")


def test_a_library_is_named_by_its_sources_and_its_bytes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tiny_sources(monkeypatch, tmp_path)
    library, umask = build.cpu_library(), os.umask(0)
    try:
        path = build.build(library, tmp_path)
    finally:
        os.umask(umask)
    assert build.candidates(library, tmp_path) == [path] and build.is_intact(path)
    assert path.stat().st_mode & 0o777 == 0o755
    assert not list(tmp_path.glob(f"{build.SCRATCH_PREFIX}*"))
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert not build.is_intact(path)


def test_changed_sources_are_not_served_by_an_old_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sources = tiny_sources(monkeypatch, tmp_path)
    names = set()
    for name in ("noise.h", "cpu/one.cpp", "cpu/one.h"):
        (sources / name).open("a").write("// changed\n")
        names.add(build.cpu_library().stem())
    assert len(names) == 3
    (sources / "cpu" / "table.py").touch()
    (sources / "cuda").mkdir()
    assert build.cpu_library().stem() in names
    assert build.cuda_library((9, 0)).stem() != build.cuda_library((8, 0)).stem()


def test_a_wheel_for_another_processor_has_its_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sources, own = tiny_sources(monkeypatch, tmp_path), build.cpu_library().stem()
    (sources / "cpu" / "avx2.cpp").write_text("#ifdef __AVX2__\n#error for another processor\n#endif\n")
    monkeypatch.setenv("_PYTHON_HOST_PLATFORM", "linux-aarch64")
    assert build.machine() == "aarch64" and build.cpu_library().stem() != own
    assert build.candidates(build.cpu_library(), tmp_path) == []
    build.build(build.cpu_library(), tmp_path)


def test_no_compiler_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(build.BuildError, match=r"install g\+\+ or clang\+\+, or set CXX"):
        build.build(build.cpu_library(), tmp_path)


@pytest.mark.parametrize(
    ("compiler", "words"),
    [("no-such-compiler -O1", "no-such-compiler"), (f"{sys.executable} -c 1/0", "ZeroDivisionError")],
)
def test_a_wrong_compiler_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, compiler: str, words: str) -> None:
    monkeypatch.setenv("CXX", compiler)
    with pytest.raises(build.BuildError, match=words):
        build.build(build.cpu_library(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_compiler_without_instruction_sets_builds_all_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sources = tiny_sources(monkeypatch, tmp_path)
    (sources / "cpu" / "one.cpp").rename(sources / "cpu" / "avx2.cpp")
    monkeypatch.setattr(build, "_X86_FLAGS", {"avx2.cpp": ("-mno-such-instructions",)})
    assert build.is_intact(build.build(build.cpu_library(), tmp_path))
