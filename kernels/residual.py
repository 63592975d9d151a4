"""What the kinds' residuals share: cutting a codebook among programs, and the two things asked of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional

import torch
from ddcm_fast.kernels.launch import ceil_div
from torch import Tensor

from ddcm_fast.codebook.law import CodebookSpec

#: Programs that share the atoms of one group: enough to fill a GPU several times over, and the bound on what a
#: search writes, O(B * G * PROGRAMS).
_PROGRAMS = 2048


@dataclass(frozen=True)
class Work:
    """What a launch of a scoring kernel is to do, with `span` of the atoms first .. last - 1 for each program.

    With keys, each program's best goes to out and keys (B, G, programs); without, all scores to out
    (B, groups, last - first), of the groups from first_group on, and, if given, squared norms to norms (G, K).
    """

    step: Tensor
    bias: Optional[Tensor]
    signed: bool
    first: int
    last: int
    span: int
    out: Tensor
    keys: Optional[Tensor]
    norms: Optional[Tensor] = None
    first_group: int = 0

    @property
    def programs(self) -> int:
        """Programs that share the atoms of one group."""
        return ceil_div(self.last - self.first, self.span)

    @property
    def targets(self) -> tuple[Any, ...]:
        """Kernel arguments step_ptr, bias_ptr, out_ptr, key_ptr."""
        return self.step, self.bias, self.out, self.keys

    @property
    def groups(self) -> tuple[int, int]:
        """Kernel arguments first_group, num_held: the groups that are scored."""
        return self.first_group, self.out.shape[1]

    @property
    def atoms(self) -> tuple[int, ...]:
        """Kernel arguments first, last, span, num_programs, stride_out (between rows of out, and of keys)."""
        return self.first, self.last, self.span, self.programs, self.out.stride(-2)


class Residual:
    """A batch of residuals laid out for a kind's kernels, to be scored against any ranges of atoms.

    Attributes:
        spec: the codebook.
        batch: number of residuals B.
        images: how many of them a program scores.
        tile: atoms that a program scores are a multiple of.
        align: a range of atoms begins at a multiple of this.
    """

    spec: CodebookSpec
    batch: int
    images: int
    tile: int
    align = 1

    def best(self, step: Tensor, bias: Optional[Tensor], signed: bool) -> tuple[Tensor, Tensor]:
        """Scores and keys (B, G, programs) of the best atom that each program saw, for ranking.finish."""
        span = self._span(0, self.spec.size, self.spec.groups)
        shape = (self.batch, self.spec.groups, ceil_div(self.spec.size, span))
        out = torch.empty(shape, dtype=torch.float32, device=step.device)
        keys = torch.empty(shape, dtype=torch.int64, device=step.device)
        self.launch(Work(step, bias, signed, 0, self.spec.size, span, out, keys))
        return out, keys

    def scores(
        self,
        step: Tensor,
        first: int,
        last: int,
        out: Tensor,
        norms: Optional[Tensor] = None,
        first_group: int = 0,
    ) -> None:
        """Scores of atoms first .. last - 1 -> out, contiguous (B, groups, last - first) float32.

        Of as many groups as out has from first_group on. `gaussian` fills norms (G, K) float32 too, if given.
        """
        span = self._span(first, last, out.shape[1])
        self.launch(Work(step, None, False, first, last, span, out, None, norms, first_group))

    @property
    def blocks(self) -> int:
        """Programs that share the batch."""
        return ceil_div(self.batch, self.images)

    def _span(self, first: int, last: int, groups: int) -> int:
        """Atoms one program scores, a multiple of the tile, so that about _PROGRAMS share the range."""
        share = max(1, _PROGRAMS // (groups * self.blocks))
        return ceil_div(ceil_div(last - first, share), self.tile) * self.tile

    def launch(self, work: Work) -> None:
        """Run the kind's scoring kernel."""
        raise NotImplementedError
