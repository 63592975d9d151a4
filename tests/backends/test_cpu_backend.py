"""The cpu backend alone: instruction sets, threads, forks and signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest
import torch
from backend_checks import CASES, SEED, STEP, answers, check_selection, step_tensor

from ddcm_fast.codebook import backends, reference
from ddcm_fast.codebook.backends import cpu
from ddcm_fast.codebook.codebook import Codebook
from ddcm_fast.codebook.law import CodebookSpec
from ddcm_fast.errors import BackendError

pytestmark = pytest.mark.skipif(backends.why_not("cpu", "cpu") is not None, reason=str(backends.why_not("cpu", "cpu")))

CPU = backends.load("cpu")
INSTRUCTION_SETS = ("avx512vnni", "avx512", "avx2", "portable")
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
    assert torch.equal(CPU.to_codebook_order(spec, answer.residual), answer.w)
    scores = CPU.scores(spec, answer.w, step)
    assert (scores - answer.scores).abs().le(answer.tolerance).all()
    m = min(case.size, 20)
    check_selection(answer, True, None, CPU.topk(spec, answer.w, step, m, True, None))
    check_selection(answer, False, answer.bias, CPU.topk(spec, answer.w, step, m, False, answer.bias))
    index = torch.arange(3 * case.groups).view(1, case.groups, 3) % case.size
    coefficient = torch.linspace(-2, 3, index.numel()).view(index.shape)
    y = CPU.combine(spec, index, coefficient, step)
    assert torch.equal(y, reference.combine(spec, index, coefficient, STEP))
    z = CPU.to_image_order(spec, y)
    assert torch.equal(z, reference.to_image_order(spec, y))


def test_norms_of_instruction_sets(instruction_set):
    for kind, dim in (("gaussian", 1000), ("sign", 70), ("hadamard", 700)):
        spec = CodebookSpec(kind, dim, 300, 3, SEED)
        w, step = torch.randn(260, dim), step_tensor(STEP, "cpu")  # more rows than a task takes
        scores, norms = CPU.scores_and_norms(spec, w, step)
        assert torch.equal(norms, reference.norms(spec, STEP))
        assert torch.equal(scores, CPU.scores(spec, w, step))


def test_every_halfword(instruction_set):
    """Entries of many atoms visit all 65536 halfwords (the library itself checks them when loaded)."""
    spec = CodebookSpec("gaussian", 1 << 20, 4, 1, SEED)
    index, one = torch.tensor([[[2]]]), torch.ones(1, 1, 1)
    y = CPU.combine(spec, index, one, step_tensor(STEP, "cpu"))
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
                    *CPU.search(spec, w, step, True, None),
                    *CPU.topk(spec, w, step, 33, True, None),
                    CPU.scores(spec, w, step),
                    *CPU.scores_and_norms(spec, w, step),
                    CPU.combine(spec, index, coefficient, step),
                    CPU.to_codebook_order(spec, w),
                    CPU.to_image_order(spec, w),
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
        together = CPU.scores(spec, w, step)
        alone = torch.cat([CPU.scores(spec, row.unsqueeze(0), step) for row in w])
        assert torch.equal(together, alone)


@pytest.mark.parametrize(
    ("dim", "size", "groups", "batch"),
    [(4096, 5000, 1, 3), (300, 5000, 2, 5), (257, 2048, 1, 1), (64, 33000, 3, 2), (700, 1003, 1, 7)],
)
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("biased", [True, False])
def test_coarse_scores_find_what_exact_ones_do(instruction_set, dim, size, groups, batch, signed, biased):
    """With vectors `sign` is searched by coarse scores first: the answer is the exact scores', ties included."""
    spec, step = CodebookSpec("sign", dim, size, groups, SEED), step_tensor(STEP, "cpu")
    draws = torch.Generator().manual_seed(dim)
    w = torch.randn(batch, dim, generator=draws)
    bias = 5 * torch.randn(groups, size, generator=draws) if biased else None
    few = torch.where(w > 2.2, w, 0)
    few[:, : dim // 4] = 0  # whole tiles of zeros
    for residual in (w, w**7, 1e-30 * w, few, (w > 1.5).float(), w / torch.arange(1, dim + 1) ** 2):
        scores = CPU.scores(spec, residual, step)
        value = (scores.abs() if signed else scores) + (0 if bias is None else bias)
        wanted = value.argmax(-1)  # the first of equals
        index, sign, score = CPU.search(spec, residual, step, signed, bias)
        assert torch.equal(index, wanted)
        found = scores.gather(-1, wanted[..., None])[..., 0]
        assert torch.equal(sign * score, found)
        for m in (1, 20, 300):
            index, sign, score = CPU.topk(spec, residual, step, m, signed, bias)
            wanted = value.argsort(dim=-1, descending=True, stable=True)[..., :m]
            assert torch.equal(index, wanted)
            assert torch.equal(sign * score, scores.gather(-1, index))
    assert CPU.search(spec, torch.zeros(1, dim), step, signed, None)[0].tolist() == [[0] * groups]


@pytest.mark.parametrize(("first", "last"), [(1, 8999), (777, 3001), (4097, 4800)])
def test_coarse_scores_of_a_range(instruction_set, first, last):
    spec, step = CodebookSpec("sign", 1000, 9000, 1, SEED), step_tensor(STEP, "cpu")
    w = torch.randn(5, 1000, generator=torch.Generator().manual_seed(first))
    wanted = CPU.scores(spec, w, step)[..., first:last].abs().argmax(-1) + first
    assert torch.equal(CPU.search_range(spec, w, step, True, None, first, last)[0], wanted)


def test_more_rows_than_a_task_takes():
    spec = CodebookSpec("sign", 40, 100, 1, SEED)
    w, step = torch.randn(600, 40), step_tensor(STEP, "cpu")
    index, _, _ = CPU.search(spec, w, step, True, None)
    expected, _, _ = reference.search(spec, w, STEP, True)
    assert torch.equal(index, expected)
    index, _, _ = CPU.topk(spec, w, step, 5, True, None)
    assert torch.equal(index[..., :1].squeeze(-1), expected)


@pytest.mark.parametrize("size", [100, 1000])  # without coarse scores, with them
def test_nonfinite_rows_get_index_minus_one(instruction_set, size):
    spec = CodebookSpec("sign", 40, size, 2, SEED)
    w = torch.randn(4, 40)
    w[1, 3], w[2, 39] = float("nan"), float("inf")
    step = step_tensor(STEP, "cpu")
    for index in (
        CPU.search(spec, w, step, True, None)[0],
        CPU.topk(spec, w, step, 100, True, None)[0],
    ):
        assert (index[1:3] == -1).all() and (index[[0, 3]] >= 0).all()


def test_calls_from_many_threads():
    spec = CodebookSpec("sign", 4096, 4096, 1, SEED)
    w, step = torch.randn(1, 4096), step_tensor(STEP, "cpu")
    expected = CPU.scores(spec, w, step)
    results: list[torch.Tensor] = []
    workers = [threading.Thread(target=lambda: results.append(CPU.scores(spec, w, step))) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(results) == 8 and all(torch.equal(r, expected) for r in results)


def _run(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
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
    code = "from ddcm_fast.codebook.backends import cpu; print(cpu.instruction_set())"
    done = _run(code, DDCM_CPU_ISA="portable")
    assert done.stdout.strip() == "portable", done.stderr
    code = """
from ddcm_fast.codebook import backends
from ddcm_fast.errors import BackendError
print(backends.resolve("auto", "cpu"), backends.resolve("auto", "cpu"))
try:
    backends.resolve("cpu", "cpu")
except BackendError as error:
    print(error)
"""
    done = _run(code, DDCM_CPU_ISA="mmx", DDCM_BACKEND="")
    served, refused = done.stdout.splitlines()
    assert served == "reference reference" and "DDCM_CPU_ISA=mmx is unknown" in refused
    assert done.stderr.count("the slow reference serves (cpu: DDCM_CPU_ISA=mmx is unknown") == 1


# ---- signals -------------------------------------------------------------------------------------

INTERRUPTED = """
import os, signal, threading, torch
signal.signal(signal.SIGINT, signal.default_int_handler)  # who starts the tests may have it ignored
from ddcm_fast.codebook import Codebook
r = torch.randn(2, 4096)
for kind, threads, groups in (("gaussian", 2, 1), ("sign", 1, 1), ("hadamard", 2, 1), ("sign", 2, 16)):
    for operation, more in (("search", ()), ("topk", (4,))):
        torch.set_num_threads(threads)
        small, huge = (Codebook(kind, 4096, size, groups=groups, backend="cpu") for size in (640, 1 << 32))
        expected = small.topk(r, 0, 4)
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            getattr(huge, operation)(r, 0, *more)
        except KeyboardInterrupt:
            assert all(torch.equal(a, b) for a, b in zip(small.topk(r, 0, 4), expected))
            print(operation, kind)
"""


def test_ctrl_c_ends_a_long_call():
    """These would take minutes to hours; what comes after an interrupted call is right."""
    done = _run(INTERRUPTED)
    assert len(done.stdout.splitlines()) == 8, done.stderr


def test_a_handler_that_raises_nothing_changes_nothing():
    codebook = Codebook("gaussian", 16384, 1 << 17, backend="cpu")
    r = torch.randn(1, 16384)
    expected, ticks = codebook.search(r, 0), []

    def handler(*_):
        ticks.append(Codebook("sign", 4096, 640, backend="cpu").search(torch.ones(1, 4096), 0))

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
        result = codebook.search(r, 0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert ticks and all(torch.equal(a, b) for a, b in zip(result, expected, strict=True))


def test_other_threads_finish_their_calls():
    """A signal handler runs on the main thread alone."""
    codebook, results = Codebook("sign", 4096, 1 << 15, backend="cpu"), []
    r = torch.randn(1, 4096)
    expected = codebook.search(r, 0)
    worker = threading.Thread(target=lambda: results.append(codebook.search(r, 0)))
    with pytest.raises(KeyboardInterrupt):
        worker.start()
        signal.raise_signal(signal.SIGINT)
        worker.join()
    worker.join()
    assert all(torch.equal(a, b) for a, b in zip(results[0], expected, strict=True))
