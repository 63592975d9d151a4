"""The cpu backend alone: instruction sets, threads, forks, building and caching."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
import torch
from backend_checks import CASES, SEED, STEP, answers, check_selection, step_tensor

from ddcm_fast import backends, build, reference
from ddcm_fast.backends import cpu
from ddcm_fast.errors import BackendError
from ddcm_fast.law import CodebookSpec

pytestmark = pytest.mark.skipif(backends.why_not("cpu", "cpu") is not None, reason=str(backends.why_not("cpu", "cpu")))

INSTRUCTION_SETS = ("avx512", "avx2", "portable")
KINDS = ("gaussian", "sign", "hadamard")


@pytest.fixture(params=INSTRUCTION_SETS)
def instruction_set(request):
    """Each instruction set this machine has, in turn."""
    try:
        cpu.select_instruction_set(request.param)
    except BackendError as error:
        pytest.skip(str(error))
    yield request.param
    cpu.select_instruction_set("auto")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_instruction_sets(instruction_set, case):
    answer, step, spec = answers(case), step_tensor(STEP, "cpu"), case.spec
    assert torch.equal(cpu.to_codebook_order(spec, answer.residual), answer.w)
    scores = cpu.scores(spec, answer.w, step)
    assert (scores - answer.scores).abs().le(answer.tolerance).all()
    m = min(case.size, 20)
    check_selection(answer, True, None, cpu.topk(spec, answer.w, step, m, True, None))
    check_selection(answer, False, answer.bias, cpu.topk(spec, answer.w, step, m, False, answer.bias))
    index = torch.arange(3 * case.groups).view(1, case.groups, 3) % case.size
    coefficient = torch.linspace(-2, 3, index.numel()).view(index.shape)
    y = cpu.combine(spec, index, coefficient, step)
    assert torch.equal(y, reference.combine(spec, index, coefficient, STEP))
    z = cpu.to_image_order(spec, y)
    assert torch.equal(z, reference.to_image_order(spec, y))


def test_norms_of_instruction_sets(instruction_set):
    for kind, dim in (("gaussian", 1000), ("sign", 70), ("hadamard", 700)):
        spec = CodebookSpec(kind, dim, 300, 3, SEED)
        w, step = torch.randn(260, dim), step_tensor(STEP, "cpu")  # more rows than a task takes
        scores, norms = cpu.scores_and_norms(spec, w, step)
        assert torch.equal(norms, reference.norms(spec, STEP))
        assert torch.equal(scores, cpu.scores(spec, w, step))


def test_every_halfword(instruction_set):
    """Entries of many atoms visit all 65536 halfwords (the library itself checks them when loaded)."""
    spec = CodebookSpec("gaussian", 1 << 20, 4, 1, SEED)
    index, one = torch.tensor([[[2]]]), torch.ones(1, 1, 1)
    y = cpu.combine(spec, index, one, step_tensor(STEP, "cpu"))
    assert torch.equal(y, reference.combine(spec, index, one, STEP))
    assert len(y.unique()) > 1700


@pytest.mark.parametrize(
    ("kind", "dim", "size", "groups", "batch"),
    [
        # Enough work for each operation to wake every thread.
        ("gaussian", 4099, 3001, 1, 3),
        ("gaussian", 6000, 257, 37, 2),
        ("sign", 4099, 3001, 1, 3),
        ("sign", 6000, 1000, 37, 40),
        ("hadamard", 4097, 20000, 1, 128),
        ("hadamard", 6000, 3000, 37, 90),
    ],
)
def test_threads_do_not_matter(kind, dim, size, groups, batch):
    spec = CodebookSpec(kind, dim, size, groups, SEED)
    w, step = torch.randn(batch, dim), step_tensor(STEP, "cpu")
    index = torch.randint(0, size, (batch, groups, 2))
    coefficient = torch.randn(batch, groups, 2)
    before, seen = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            seen.append(
                (
                    *cpu.search(spec, w, step, True, None),
                    *cpu.topk(spec, w, step, 33, True, None),
                    cpu.scores(spec, w, step),
                    *cpu.scores_and_norms(spec, w, step),
                    cpu.combine(spec, index, coefficient, step),
                    cpu.to_codebook_order(spec, w),
                    cpu.to_image_order(spec, w),
                )
            )
    finally:
        torch.set_num_threads(before)
    for other in seen[1:]:
        for a, b in zip(seen[0], other, strict=True):
            assert torch.equal(a, b)


def test_rows_do_not_matter():
    """A row's scores are the same alone and in a batch."""
    for kind in KINDS:
        spec = CodebookSpec(kind, 700, 90, 2, SEED)
        w, step = torch.randn(11, 700), step_tensor(STEP, "cpu")
        together = cpu.scores(spec, w, step)
        alone = torch.cat([cpu.scores(spec, row.unsqueeze(0), step) for row in w])
        assert torch.equal(together, alone)


def test_more_rows_than_a_task_takes():
    spec = CodebookSpec("sign", 40, 100, 1, SEED)
    w, step = torch.randn(600, 40), step_tensor(STEP, "cpu")
    index, _, _ = cpu.search(spec, w, step, True, None)
    expected, _, _ = reference.search(spec, w, STEP, True)
    assert torch.equal(index, expected)
    index, _, _ = cpu.topk(spec, w, step, 5, True, None)
    assert torch.equal(index[..., :1].squeeze(-1), expected)


def test_nonfinite_rows_get_index_minus_one():
    spec = CodebookSpec("sign", 40, 100, 2, SEED)
    w = torch.randn(4, 40)
    w[1, 3], w[2, 39] = float("nan"), float("inf")
    step = step_tensor(STEP, "cpu")
    for index in (
        cpu.search(spec, w, step, True, None)[0],
        cpu.topk(spec, w, step, 100, True, None)[0],
    ):
        assert (index[1:3] == -1).all() and (index[[0, 3]] >= 0).all()


def test_calls_from_many_threads():
    spec = CodebookSpec("sign", 4096, 4096, 1, SEED)
    w, step = torch.randn(1, 4096), step_tensor(STEP, "cpu")
    expected = cpu.scores(spec, w, step)
    results: list[torch.Tensor] = []
    workers = [threading.Thread(target=lambda: results.append(cpu.scores(spec, w, step))) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(results) == 8 and all(torch.equal(r, expected) for r in results)


def _run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_after_a_fork():
    code = """
import os, torch
from ddcm_fast import Codebook
torch.set_num_threads(2)
codebook = Codebook("sign", 4096, 4096, backend="cpu")
r = torch.randn(1, 4096)
index = codebook.search(r, 0)[0]
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(codebook.search(r, 0)[0], index) else 3)
assert os.waitpid(child, 0)[1] == 0
assert torch.equal(codebook.search(r, 0)[0], index)
"""
    done = _run(code.replace("from ddcm_fast import", "from ddcm_fast.codebook import"))
    assert done.returncode == 0, done.stderr


def test_instruction_set_from_the_environment():
    code = "from ddcm_fast.backends import cpu; print(cpu.instruction_set())"
    done = _run(code, DDCM_CPU_ISA="portable")
    assert done.stdout.strip() == "portable", done.stderr
    code = "import torch; from ddcm_fast import backends; print(backends.why_not('cpu', 'cpu'))"
    done = _run(code, DDCM_CPU_ISA="mmx")
    assert "DDCM_CPU_ISA=mmx" in done.stdout, done.stderr


# ---- building ------------------------------------------------------------------------------------


@pytest.fixture
def no_shipped_library(monkeypatch, tmp_path):
    """A package without a ready library, and an empty cache."""
    monkeypatch.setattr(build, "SHIPPED_DIR", tmp_path / "none")
    monkeypatch.setenv("DDCM_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path


def test_no_compiler_says_what_to_do(no_shipped_library, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(no_shipped_library))
    with pytest.raises(build.BuildError, match="install g\\+\\+ or clang\\+\\+, or set CXX"):
        build.ensure_library()


def test_without_a_library_other_backends_serve(tmp_path):
    code = f"""
import os
from pathlib import Path
from ddcm_fast import build
build.SHIPPED_DIR = Path({str(tmp_path)!r})
os.environ["PATH"] = {str(tmp_path)!r}
import torch
from ddcm_fast import backends
from ddcm_fast.codebook import Codebook
codebook = Codebook("sign", 64, 16)
codebook.search(torch.randn(1, 64), 0)
print(codebook.backend("cpu"), "|", backends.why_not("cpu", "cpu"))
"""
    done = _run(code, DDCM_CACHE_DIR=str(tmp_path), CXX="", DDCM_BACKEND="", TRITON_INTERPRET="0")
    name, _, reason = done.stdout.partition("|")
    assert name.strip() == "reference", done.stderr
    assert "no C++ compiler" in reason


def test_wrong_compiler_is_named(no_shipped_library, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler -O1")
    with pytest.raises(build.BuildError, match="no-such-compiler"):
        build.ensure_library()


def test_failing_compiler_shows_its_words(no_shipped_library, monkeypatch):
    monkeypatch.setenv("CXX", f"{sys.executable} -c 1/0")
    with pytest.raises(build.BuildError, match="ZeroDivisionError"):
        build.ensure_library()


def test_cache_that_cannot_be_written(no_shipped_library, monkeypatch):
    file = no_shipped_library / "file"
    file.touch()
    monkeypatch.setenv("DDCM_CACHE_DIR", str(file / "below"))
    with pytest.raises(build.BuildError, match="DDCM_CACHE_DIR"):
        build.ensure_library()


def test_changed_sources_are_not_served_by_an_old_library(monkeypatch, tmp_path):
    sources = tmp_path / "csrc"
    (sources / "cpu").mkdir(parents=True)
    for path in (*build.source_dir().glob("*.h"), *build.source_dir().glob("cpu/*")):
        target = sources / path.relative_to(build.source_dir())
        target.write_bytes(path.read_bytes())
    monkeypatch.setattr(build, "source_dir", lambda: sources)
    before = build.library_name()
    header = sources / "noise.h"
    header.write_text(header.read_text() + "// changed\n")
    assert build.library_name() != before


def test_cache_directory(monkeypatch, tmp_path):
    monkeypatch.delenv("DDCM_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert build.cache_dir() == tmp_path / "ddcm_fast"
    monkeypatch.setenv("DDCM_CACHE_DIR", str(tmp_path / "own"))
    assert build.cache_dir() == tmp_path / "own"
