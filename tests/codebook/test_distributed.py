"""Four processes search one codebook as one does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from ddcm_fast.codebook import distributed
from ddcm_fast.codebook.codebook import Codebook

PROCESSES = 4
CASES = [("sign", 700, True), ("gaussian", 3, False), ("hadamard", 300, True)]


def search(rank: int, folder: str) -> None:
    """One process's part: leave what it found."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=PROCESSES)
    found = []
    for kind, size, signed in CASES:
        book = Codebook(kind, 60, size, groups=2, seed=5, signed=signed)
        generator = torch.Generator().manual_seed(1)
        residual, bias = torch.randn(3, 60, generator=generator), torch.randn(2, size, generator=generator)
        rows = torch.cat((residual, torch.zeros(1, 60)))
        found += [distributed.search(book, rows, 7), distributed.search(book, rows, 7, bias)]
        found += [distributed.search(book, rows, 7, bias[0])]
    torch.save(found, f"{folder}/{rank}")
    dist.destroy_process_group()


def alone() -> list[tuple[torch.Tensor, ...]]:
    found = []
    for kind, size, signed in CASES:
        book = Codebook(kind, 60, size, groups=2, seed=5, signed=signed)
        generator = torch.Generator().manual_seed(1)
        residual, bias = torch.randn(3, 60, generator=generator), torch.randn(2, size, generator=generator)
        rows = torch.cat((residual, torch.zeros(1, 60)))
        found += [book.search(rows, 7), book.search(rows, 7, bias), book.search(rows, 7, bias[0])]
    return found


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="torch has no gloo")
@pytest.mark.slow  # four processes import torch
def test_four_processes_find_what_one_does(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(search, (str(tmp_path),), nprocs=PROCESSES)
    expected = alone()
    for rank in range(PROCESSES):
        for one, other in zip(torch.load(tmp_path / str(rank)), expected, strict=True):
            for i, (a, b) in enumerate(zip(one, other, strict=True)):
                assert torch.equal(a, b) if i < 2 else torch.allclose(a, b, rtol=1e-5)


def test_keys_are_ordered_as_value_then_lower_index() -> None:
    value = torch.tensor([-torch.inf, -2.0, -1e-40, -0.0, 0.0, 1e-40, 3.0, torch.inf])
    index = torch.tensor([5, 2**32 - 1, 0, 7, 8, 0, 2**31, 3])
    keys = distributed._key(value, index)
    order = [0, 1, 2, 4, 3, 5, 6, 7]  # of equal values the lower index is the better
    assert keys.argsort().tolist() == order and (keys > distributed._key(value[:1], torch.tensor([-1]))).all()
