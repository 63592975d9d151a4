"""A backend answers known questions before it serves: a wrong kernel would write files that nobody can read.

On small shapes that take every family of kernels through its paths (one row, a few, and enough for matrix units; two
groups; atoms that fill no tile), rotations and sums of atoms must be those of the noise law to the bit, searches must
give the law's atoms, and scores and norms must fit these. The known answers are checksums of the reference's
(tests/backends/test_selftest.py). Residuals are exact in few bits, and scores that decide differ by 1e-3 or more.

A passed test is remembered by what it depends on (`Backend.identity`) in the cache of libraries, under the same rules
of trust; a failed one is repeated by the next process.
"""

from __future__ import annotations

import hashlib
import threading
import zlib
from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor

from ddcm_fast.codebook import library_cache
from ddcm_fast.codebook.backends.base import Backend
from ddcm_fast.codebook.law import KINDS, CodebookSpec

DIM, SIZE, GROUPS, SEED, STEP, MOST = 300, 200, 2, 0x82468ACF13579BDF, 0xFEDCBA98, 3
BATCHES = (1, 3, 20)

#: Checksums of the law's answers.
KNOWN: dict[str, int] = {
    "gaussian rotation": 0xF035E32B,
    "gaussian atoms of 1": 0x1A746892,
    "gaussian noise of 1": 0x17FCF072,
    "gaussian atoms of 3": 0x3BBF4525,
    "gaussian noise of 3": 0xA138D9EC,
    "gaussian atoms of 20": 0x763C1B8B,
    "gaussian noise of 20": 0xCED1DA26,
    "sign rotation": 0x59EDD49B,
    "sign atoms of 1": 0xFB659BA9,
    "sign noise of 1": 0x49E98F45,
    "sign atoms of 3": 0x67F59D5C,
    "sign noise of 3": 0x3F173767,
    "sign atoms of 20": 0x4DE68E01,
    "sign noise of 20": 0x1F57A6E8,
    "hadamard rotation": 0x59EDD49B,
    "hadamard atoms of 1": 0xCE1B742F,
    "hadamard noise of 1": 0x2C231094,
    "hadamard atoms of 3": 0xCD5F975D,
    "hadamard noise of 3": 0x7FCB9ECD,
    "hadamard atoms of 20": 0x38C8BAAF,
    "hadamard noise of 20": 0x896E612C,
}

#: Relative error of scores and norms that no right kernel comes near.
_TOLERANCE = 1e-4


def residual(batch: int) -> Tensor:
    """(batch, DIM) float32: multiples of 1/32 between -4 and 4, exact on every device and in every format."""
    i = torch.arange(DIM, dtype=torch.int64, device="cpu")
    b = torch.arange(batch, dtype=torch.int64, device="cpu").unsqueeze(1)
    return (((i * i * 31 + i * 73 + b * (i + 7) * 11) % 257) - 128).float() / 32


def _checksum(*tensors: Tensor) -> int:
    value = 0
    for tensor in tensors:
        value = zlib.crc32(tensor.cpu().contiguous().numpy().tobytes(), value)
    return value


def _group_sums(spec: CodebookSpec, x: Tensor) -> Tensor:
    """(B, D) -> (B, G) float64."""
    parts = [x[:, spec.group_start(g) : spec.group_start(g + 1)] for g in range(spec.groups)]
    return torch.stack([part.double().sum(-1) for part in parts], dim=-1)


def _near(found: Tensor, expected: Tensor) -> bool:
    return bool(((found.double() - expected.double()).abs() <= _TOLERANCE * expected.double().abs().amax()).all())


def answers(backend: Backend, device: torch.device) -> Iterator[tuple[str, int | bool]]:
    """(question, answer) of every question, asked one after the other: a checksum, or whether numbers fit."""
    step = torch.full((), STEP, dtype=torch.int64, device=device)
    for kind in KINDS:
        spec = CodebookSpec(kind, DIM, SIZE, GROUPS, SEED)
        image = residual(BATCHES[-1]).to(device)
        every = backend.to_codebook_order(spec, image)
        yield f"{kind} rotation", _checksum(every, backend.to_image_order(spec, image))
        for batch in BATCHES:
            w = every[:batch].contiguous()
            index, sign, score = backend.search(spec, w, step, True, None)
            best = backend.topk(spec, w, step, MOST, False, None)
            yield f"{kind} atoms of {batch}", _checksum(index, sign, *best[:2])
            coefficient = torch.arange(1, MOST + 1, dtype=torch.float32, device=device).expand_as(best[2]).contiguous()
            yield f"{kind} noise of {batch}", _checksum(backend.combine(spec, best[0], coefficient, step))
            y = backend.combine(spec, index.unsqueeze(-1), sign.float().unsqueeze(-1), step)
            scores, norms = backend.scores_and_norms(spec, w, step)
            chosen = scores.gather(-1, index.unsqueeze(-1)).squeeze(-1) * sign
            yield f"{kind} scores of {batch}", _near(chosen, _group_sums(spec, y * w)) and _near(chosen, score)
            chosen = norms.expand(batch, -1, -1).gather(-1, index.unsqueeze(-1)).squeeze(-1)
            yield f"{kind} norms of {batch}", _near(chosen, _group_sums(spec, y * y))


def ask(backend: Backend, device: torch.device) -> str | None:
    """What a backend answered wrongly, or None."""
    try:
        for question, answer in answers(backend, device):
            if answer is not True and answer != KNOWN.get(question):
                return f"its self-test failed: {question} rows is not what the noise law says (ddcm doctor tells more)"
    except Exception as error:  # of a driver, a compiler, or another package's code
        return f"its self-test could not run ({' '.join(str(error).split())[:300]})"
    return None


@cache
def failure(name: str, backend: Backend, device: torch.device) -> str | None:
    """Why a backend that can run on a device is not to be trusted there, or None. Asked once a process and device."""
    if not backend.asked(device):
        return None
    identity = backend.identity(device)
    known = repr((identity, sorted(KNOWN.items())))
    record = f"passed-{name}-{hashlib.sha256(known.encode()).hexdigest()[:32]}"
    if identity is not None and library_cache.recall(record) == identity:
        return None
    found: list[str | None] = []
    # A thread of its own is free of what its caller's is in: autocast, inference mode, fake tensors, a default device.
    thread = threading.Thread(target=lambda: found.append(ask(backend, device)), name="ddcm-selftest")
    thread.start()
    thread.join()
    if found[0] is None and identity is not None:
        library_cache.keep(record, identity)
    return found[0]
