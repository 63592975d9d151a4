"""Searches of one codebook by many processes, each on a device of its own (torch.distributed).

Noise is a function of its indices, so nothing is stored or sent but what each process found: 16 bytes a row and group.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from ddcm_fast.codebook.codebook import Codebook

#: Of a row that is not finite: below every key.
_NOTHING = -(2**63)


def search(
    codebook: Codebook,
    residual: Tensor,
    step: int | Tensor,
    bias: Tensor | None = None,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`codebook.search` with each process of a group searching its share of the atoms.

    Every process calls it with the same arguments, and gets the same answer: that of one process alone, ties to the
    lower index. One collective call. Residuals are on each process's own device.

    Raises what `Codebook.search` raises.
    """
    processes, rank = dist.get_world_size(group), dist.get_rank(group)
    spec = codebook.spec
    shards = min(processes, -(-spec.size // spec.atoms_made_together))
    # A process beyond the ranges that there are repeats the last: the answers, and what is refused, stay the same.
    index, sign, score = codebook.search(residual, step, bias, shard=(min(rank, shards - 1), shards))
    value = score
    if bias is not None:
        value = score + bias.to(torch.float32).expand(spec.groups, -1).gather(-1, index.clamp(min=0).T).T
    mine = torch.stack((_key(value, index), score.view(torch.int32).to(torch.int64) << 1 | (sign < 0)))
    everyone = [torch.empty_like(mine) for _ in range(processes)]
    dist.all_gather(everyone, mine, group=group)
    keys, rest = torch.stack(everyone).unbind(1)  # (processes, B, G)
    best = keys.argmax(0, keepdim=True)
    key, rest = keys.gather(0, best).squeeze(0), rest.gather(0, best).squeeze(0)
    unknown = key == _NOTHING
    index = (0xFFFFFFFF - (key & 0xFFFFFFFF)).masked_fill(unknown, -1)
    sign = (1 - 2 * (rest & 1)).to(torch.int8)
    return index, sign, (rest >> 1).to(torch.int32).view(torch.float32)


def _key(value: Tensor, index: Tensor) -> Tensor:
    """int64 that are ordered as (value float32, lower index first); the lowest of all for index -1."""
    bits = (value + 0.0).view(torch.int32).to(torch.int64)  # -0 is 0
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return (ordered << 32 | (0xFFFFFFFF - index.clamp(min=0))).masked_fill(index < 0, _NOTHING)
