"""The checks: a backend's operations against the reference (tests/backend_checks.py), streams, graphs, clusters."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import backend_checks as shared
import torch
from backend_checks import SEED
from gpu.report import Report
from torch import Tensor

from ddcm_fast.codebook import backends
from ddcm_fast.codebook.backends import cuda
from ddcm_fast.codebook.codebook import Codebook


def check_shape(report: Report, name: str, kind: str, shape: tuple[int, int, int, int], device: str) -> None:
    """Every operation of one backend on one shape against the reference, on fresh random input."""
    case, backend = shared.Case(kind, *shape), backends.load(name)
    answer = shared.make_answers(case, device, seed=int(torch.randint(2**31, ())), step=2**31 + case.dim)
    for what, comparison in shared.COMPARISONS.items():
        report.compare(name, f"{what} {case}", partial(comparison, backend, answer, device))


def check_kind(report: Report, name: str, kind: str, device: str) -> None:
    """Residuals that are not finite, and the public face."""
    not_finite = partial(shared.check_not_finite, backends.load(name), kind, device)
    report.compare(name, f"not finite {kind}", not_finite)
    report.compare(name, f"codebook {kind}", partial(shared.check_codebook, name, kind, device))


def check_large(report: Report, name: str, case: shared.Case, device: str) -> None:
    """More than 2^32 entries."""
    planted = partial(shared.check_planted, backends.load(name), case, device)
    report.compare(name, f"more than 2^32 entries {case}", planted)


def check_streams_and_graphs(report: Report, name: str, kind: str, device: str = "cuda") -> None:
    """A captured graph replayed with a changing step and residual; a stream that is not the default one."""
    codebook = Codebook(kind, 3000, 700, groups=2, seed=SEED, backend=name)
    spec, module = codebook.spec, backends.load(name)
    trellis = Codebook(kind, 3000, 1024, groups=20, seed=SEED, signed=False, backend=name).spec
    at = torch.tensor(0, device=device)
    r = torch.randn(3, 3000, device=device)

    def work() -> tuple[Tensor, ...]:
        w = module.to_codebook_order(spec, r)
        best = module.search(spec, w, at, True, None)
        top = module.topk(spec, w, at, 9, True, None)
        y = module.combine(spec, top[0], top[2], at)
        letters = module.trellis_search(trellis, w, at, 3)
        return *best, *top, module.to_image_order(spec, y), *module.scores_and_norms(spec, w, at), letters

    work()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        on_stream = work()
    torch.cuda.current_stream().wait_stream(stream)
    expected = work()
    same = all(torch.equal(a, b) for a, b in zip(on_stream, expected, strict=True))
    report.check(name, f"non-default stream {kind}", same)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = work()
    ok = True
    for step in (1, 2**32 - 1, 77):
        at.fill_(step)
        r.copy_(torch.randn_like(r))
        graph.replay()
        replayed = [t.clone() for t in captured]
        ok = ok and all(torch.equal(a, b) for a, b in zip(replayed, work(), strict=True))
    report.check(name, f"graph replay with changing steps {kind}", ok)


def check_clusters(report: Report, blocks: int, device: str) -> None:
    """Searches of few atoms, whose coordinates are cut among the blocks of clusters of at most some blocks."""
    kernels = cuda.Cuda(cuda.build(torch.cuda.get_device_capability()), max_cluster=blocks)
    for kind in ("sign", "gaussian"):
        for shape in ((65536, 300, 1, 1), (20000, 500, 2, 2), (40000, 200, 1, 7)):
            answer = shared.make_answers(shared.Case(kind, *shape), device)
            what = f"search in clusters of {blocks} {answer.case}"
            report.compare("cuda", what, partial(shared.check_search, kernels, answer, device))


def check_trellises(report: Report, name: str, kind: str, few: bool, device: str) -> None:
    """The best paths: of few shapes, or of all that a GPU takes."""
    for shape in shared.TRELLISES[:4] if few else shared.GPU_TRELLISES:
        comparison = partial(shared.check_trellis, backends.load(name), kind, shape, device)
        report.compare(name, f"trellis {kind} {shape}", comparison)


@contextlib.contextmanager
def one_configuration() -> Iterator[None]:
    """Triton's autotuned kernels have their first configuration only: for checks that saves most compilations."""
    from ddcm_fast.kernels import search_gaussian, search_sign

    modules = (search_gaussian, search_sign)
    kernels = [k for m in modules for k in (m.small_kernel, m.large_kernel) if hasattr(k, "configs")]
    before = [kernel.early_config_prune for kernel in kernels]

    def first_of(prune: Any) -> Any:
        return lambda configs, arguments, **meta: (prune(configs, arguments, **meta) if prune else configs)[:1]

    for kernel, prune in zip(kernels, before, strict=True):
        kernel.early_config_prune = first_of(prune)
    try:
        yield
    finally:
        for kernel, prune in zip(kernels, before, strict=True):
            kernel.early_config_prune = prune
