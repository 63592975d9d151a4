"""How the CUDA library launches its kernels, seen without a GPU: linked to a runtime that records (cuda_recorder.cpp).

The emulation runs the kernels and their sequence; here are the streams, grids, clusters and shared memory that the
device is asked for, and that nothing else is: what waits, allocates or copies would not link, so that every operation
can be captured into a CUDA graph.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from building import COMPILER, built_once

from ddcm_fast.codebook.backends import cuda
from ddcm_fast.codebook.build import source_dir, source_hash
from ddcm_fast.codebook.law import CodebookSpec
from ddcm_fast.errors import BackendError

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import sass

STREAM = 0xABCDE0
FLAGS = (
    *("-std=c++17", "-O1", "-Xcompiler=-fPIC,-fvisibility=hidden", "-gencode=arch=compute_90,code=compute_90"),
    *("-shared", "-cudart=none", "-Xlinker=--no-undefined"),
)

pytestmark = [
    pytest.mark.slow,  # nvcc takes a minute
    pytest.mark.skipif(sass.find_nvcc() is None or COMPILER is None, reason="no nvcc or no C++ compiler"),
]


class Launch(NamedTuple):
    kernel: str
    stream: int
    blocks: int
    threads: int
    shared: int  # bytes
    cluster: int
    early: int  # 1: may be on its way while the kernel before runs


class Recorder:
    """The operations of the library, and what they asked the runtime for."""

    def __init__(self, library: Path) -> None:
        self.library = library
        self.kernels = cuda.Cuda(library, multiprocessors=132, max_cluster=8, bit_products=True)
        self._library = ctypes.CDLL(str(library))
        self._library.recorder_take.restype = ctypes.c_char_p

    def take(self) -> list[list[str]]:
        """The calls since the last time, as words: what, kernel, and as the recorder has them."""
        return [line.split() for line in self._library.recorder_take().decode().splitlines()]

    def fail_after(self, calls: int) -> None:
        self._library.recorder_fail(calls)


@pytest.fixture(scope="module")
def library() -> Path:
    recorder = Path(__file__).with_name("cuda_recorder.cpp")

    def build(scratch: Path) -> Path:
        built = scratch / "recorder.so"
        parts = sorted(str(path) for path in (source_dir() / "cuda").glob("*.cu"))
        command = [str(sass.find_nvcc()), *FLAGS, *parts, str(recorder), "-o", str(built)]
        subprocess.run(command, check=True)
        return built

    digest = hashlib.sha256(source_hash("cuda", *FLAGS).encode() + recorder.read_bytes()).hexdigest()
    return built_once(f"recorder-{digest[:16]}.so", build)


@pytest.fixture
def recorder(library: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    @contextlib.contextmanager
    def on(device: torch.device) -> Iterator[int]:
        yield STREAM

    monkeypatch.setattr(cuda.Cuda, "_on", staticmethod(on))
    recorder = Recorder(library)
    yield recorder
    recorder.take()


def operations(kernels: cuda.Cuda, spec: CodebookSpec, batch: int) -> dict[str, Callable[[], object]]:
    w, step = torch.zeros(batch, spec.dim), torch.tensor(3)
    index, coefficient = torch.zeros(batch, spec.groups, 2, dtype=torch.int64), torch.ones(batch, spec.groups, 2)
    return {
        "search": lambda: kernels.search(spec, w, step, True, None),
        "topk": lambda: kernels.topk(spec, w, step, 5, True, None),
        "scores": lambda: kernels.scores(spec, w, step),
        "scores_and_norms": lambda: kernels.scores_and_norms(spec, w, step),
        "combine": lambda: kernels.combine(spec, index, coefficient, step),
        "to_codebook_order": lambda: kernels.to_codebook_order(spec, w),
        "to_image_order": lambda: kernels.to_image_order(spec, w),
    }


@pytest.mark.parametrize("kind", ["gaussian", "sign", "hadamard"])
@pytest.mark.parametrize("batch", [1, 2, 3, 7, 16, 24, 33, 100, 256])
@pytest.mark.parametrize(("dim", "size", "groups"), [(5000, 3000, 1), (777, 100, 3), (20000, 17000, 1)])
def test_every_launch_fits_the_device_and_the_stream(
    recorder: Recorder, kind: str, batch: int, dim: int, size: int, groups: int
) -> None:
    spec = CodebookSpec(kind, dim, size, groups, 7)
    for name, run in operations(recorder.kernels, spec, batch).items():
        run()
        allowed: dict[str, int] = {}
        launches = 0
        for what, kernel, *values in recorder.take():
            if what == "allow":
                allowed[kernel] = int(values[0])
                continue
            assert int(values[0]) == STREAM, name
            if what == "zero":
                continue
            launch = Launch(kernel, *map(int, values))
            launches += 1
            assert 1 <= launch.blocks < 2**31 and launch.blocks % launch.cluster == 0, launch
            assert launch.threads % 32 == 0 and 32 <= launch.threads <= 1024, launch
            # 48 KB are there unasked, 99 on every GPU from compute capability 8.0 on.
            assert launch.shared <= min(99 * 1024, allowed.get(kernel, 48 * 1024)), launch
            cuts = "SearchKernel" in kernel and name == "search"
            assert launch.cluster <= 8 and (cuts or launch.cluster == 1), launch
        assert launches >= 1, name


@pytest.mark.parametrize(
    ("batch", "traits", "without"),
    [
        *((1, "SignPlane, 3", "Sign, 3"), (2, "SignPlane, 6", "Sign, 3")),
        *((3, "Sign, 3", "Sign, 3"), (256, "Sign, 6", "Sign, 6")),
    ],
)
def test_signs_of_few_rows_are_bit_products_where_there_are(
    recorder: Recorder, batch: int, traits: str, without: str
) -> None:
    for bit_products, kernel in ((True, traits), (False, without)):
        engine = cuda.Cuda(recorder.library, multiprocessors=132, max_cluster=8, bit_products=bit_products)
        engine.search(CodebookSpec("sign", 3000, 5000, 1, 7), torch.zeros(batch, 3000), torch.tensor(1), True, None)
        names = [sass.kernel_name(call[1]) for call in recorder.take() if call[0] == "launch"]
        assert sum(name.startswith(f"SearchKernel<{kernel},") for name in names) == 1


@pytest.mark.parametrize(
    ("kind", "batch", "kernels"),
    [
        ("sign", 1, ["Max", "Prepare", "Search"]),
        ("sign", 64, ["Max", "Prepare", "Search"]),
        ("gaussian", 1, ["Max", "Prepare", "Search"]),
        ("hadamard", 1, ["Max", "Hadamard"]),
        ("hadamard", 2, ["Max", "HadamardSign", "Hadamard"]),
    ],
)
def test_a_search_is_few_launches_each_on_its_way_early(
    recorder: Recorder, kind: str, batch: int, kernels: list[str]
) -> None:
    """One clearing of memory, which all that comes before is waited for, then kernels close upon each other."""
    spec = CodebookSpec(kind, 16384, 4096, 1, 7)
    recorder.kernels.search(spec, torch.zeros(batch, spec.dim), torch.tensor(1), True, None)
    clearing, *calls = [call for call in recorder.take() if call[0] != "allow"]
    assert clearing[0] == "zero" and all(call[0] == "launch" for call in calls)
    assert [f"{name}Kernel" for name in kernels] == [sass.kernel_name(call[1]).split("<")[0] for call in calls]
    early = [Launch(call[1], *map(int, call[2:])).early for call in calls]
    assert early == [0] + [1] * (len(calls) - 1)
    # Where a GPU has no clusters it has no early launches either.
    alone = cuda.Cuda(recorder.library, multiprocessors=108, max_cluster=1, bit_products=True)
    alone.search(spec, torch.zeros(batch, spec.dim), torch.tensor(1), True, None)
    assert all(call[-1] == "0" for call in recorder.take() if call[0] == "launch")


@pytest.mark.parametrize(
    ("kind", "size", "blocks", "cluster"),
    [
        *(("sign", 1024, 64, 4), ("sign", 4096, 128, 2), ("sign", 16384, 256, 1)),
        *(("gaussian", 4096, 128, 2), ("gaussian", 16384, 256, 1)),
    ],
)
def test_few_atoms_fill_the_device(recorder: Recorder, kind: str, size: int, blocks: int, cluster: int) -> None:
    """64 atoms a block, and where that leaves multiprocessors without one, blocks that cut the coordinates."""
    spec = CodebookSpec(kind, 16384, size, 1, 7)
    recorder.kernels.search(spec, torch.zeros(1, spec.dim), torch.tensor(1), True, None)
    (call,) = [call for call in recorder.take() if call[0] == "launch" and "SearchKernel" in call[1]]
    launch = Launch(call[1], *map(int, call[2:]))
    assert (launch.blocks, launch.cluster) == (blocks, cluster)


@pytest.mark.parametrize(
    ("size", "m", "blocks"),
    [(4096, 1024, [3]), (16384, 64, [4 * 3, 3]), (17000, 1024, [5 * 3, 2 * 3, 3]), (2**20, 1, [256 * 3, 3])],
)
def test_a_selection_is_few_launches(recorder: Recorder, size: int, m: int, blocks: list[int]) -> None:
    """A block a slice of each row, then a block for so many lists as have the candidates of a slice."""
    spec = CodebookSpec("hadamard", 3000, size, 3, 7)
    recorder.kernels.topk(spec, torch.zeros(1, spec.dim), torch.tensor(1), m, True, None)
    launches = [Launch(call[1], *map(int, call[2:])) for call in recorder.take() if call[0] == "launch"]
    selects = [launch for launch in launches if "SliceKernel" in launch.kernel or "MergeKernel" in launch.kernel]
    assert [launch.blocks for launch in selects] == blocks
    assert launches[-len(blocks) :] == selects and all(launch.early for launch in selects)


#: Groups, bits of a letter and of memory, multiprocessors, most blocks of a cluster; blocks of a row and their
#: cluster, and the groups of every launch that extends paths.
PATHS = [
    (200, 5, 12, 132, 8, 8, 8, [64, 64, 64, 8]),  # the default preset's letters
    (200, 5, 12, 108, 1, 1, 1, [64, 64, 64, 8]),  # no clusters
    (20, 1, 6, 132, 8, 1, 1, [20]),
    (3, 5, 16, 132, 8, 128, 1, [1, 1, 1]),  # so many scores that blocks which cannot meet are worth a launch a group
]


@pytest.mark.parametrize(("groups", "bits", "memory", "multiprocessors", "most", "blocks", "cluster", "taken"), PATHS)
def test_paths_of_a_trellis(
    recorder: Recorder,
    groups: int,
    bits: int,
    memory: int,
    multiprocessors: int,
    most: int,
    blocks: int,
    cluster: int,
    taken: list[int],
) -> None:
    """For each stretch of groups what scores launches, and the paths; then the way back. Nothing else."""
    engine = cuda.Cuda(recorder.library, multiprocessors, max_cluster=most, bit_products=True)
    spec = CodebookSpec("hadamard", 12288, 1 << (memory + bits - 1), groups, 7)
    engine.trellis_search(spec, torch.zeros(1, spec.dim), torch.tensor(1), bits)
    calls = [call for call in recorder.take() if call[0] != "allow"]
    assert all(int(call[2]) == STREAM for call in calls)
    names = ["zero" if call[0] == "zero" else sass.kernel_name(call[1]).split("<")[0] for call in calls]
    scoring, alone = ["zero", "MaxKernel", "HadamardKernel"], len(taken) if blocks > cluster else 1
    stretch = [*scoring, *["PathKernel"] * alone]
    assert names == [*stretch * (len(taken) // alone), "TraceKernel"]
    launches = [Launch(call[1], *map(int, call[2:])) for call in calls if "PathKernel" in call[1]]
    assert {(launch.blocks, launch.cluster) for launch in launches} == {(blocks, cluster)}


def fail_every_call(recorder: Recorder, run: Callable[[], object], name: str) -> None:
    """Each call of an operation fails in turn: it is the last, and the next operation is not told of it."""
    run()
    calls = len(recorder.take())
    for at in range(calls):
        recorder.fail_after(at)
        with pytest.raises(BackendError, match="could not be started: recorded failure"):
            run()
        assert len(recorder.take()) == at + 1, name
        run()
        assert len(recorder.take()) == calls, name


@pytest.mark.parametrize("kind", ["gaussian", "sign", "hadamard"])
def test_a_failure_ends_the_operation_and_is_not_told_of_the_next(recorder: Recorder, kind: str) -> None:
    for name, run in operations(recorder.kernels, CodebookSpec(kind, 20000, 17000, 1, 7), 100).items():
        fail_every_call(recorder, run, name)
    letters = CodebookSpec(kind, 600, 1 << 14, 9, 7)
    for batch in (1, 5, 200):
        w = torch.zeros(batch, letters.dim)
        run = partial(recorder.kernels.trellis_search, letters, w, torch.tensor(1), 4)
        fail_every_call(recorder, run, f"trellis_search of {batch}")
