"""Codebook: noise as a pure function of (seed, step, index, position), searched without storing it."""

from __future__ import annotations

import torch
from torch import Tensor

from ddcm_fast.codebook import backends, ops, reference
from ddcm_fast.codebook.law import MAX_STEP, MAX_TOPK, CodebookSpec, integer
from ddcm_fast.errors import InputError


class Codebook:
    """K atoms of D entries for each of G groups and every step; nothing of it is ever stored.

    Args:
        kind: "gaussian" (iid N(0,1), as in the DDCM paper), "sign" (random signs in a rotated basis) or
            "hadamard" (structured; searched by a fast transform). docs/noise-law.md defines them.
        dim: D, entries of the (latent) image.
        size: K, atoms a group; any integer from 1 to 2^32.
        groups: G; the coordinates are cut into G contiguous groups of (nearly) equal size, each with
            its own K atoms (a product codebook). An atom set of all groups is one noise vector.
        seed: 64 bit seed.
        signed: search z_k and -z_k, which doubles K for one bit.
        backend: "auto" (fastest present on the tensors' device; the environment variable
            DDCM_BACKEND overrides it), "cuda", "triton", "cpu" or "reference".

    `step` is an integer from 0 to 2^32 - 1, or a 0-d int64 tensor on the data's device where a compiled or captured
    graph is to be replayed for many steps.

    Any finite residual is searched as well as any other: rows beyond 2^-60 to 2^61 are multiplied by a power of two
    first. Their scores are multiplied back, so they are infinite where the true ones exceed float32.

    What only the data can tell: on a CPU, NaN or infinite entries of a residual, a NaN in a bias, an index outside the
    codebook and a step tensor out of range raise at once. On a GPU a check would wait for the device. There the
    search answers index -1, sign +1 and score NaN for such a residual or bias, and whoever brings the indices to the
    host checks them (`check_index`; the sampler and the codec do); an index is clamped, a step taken modulo 2^32.

    Nothing here depends on torch's default dtype or device, autocast or grad mode. `scores` has a gradient with respect
    to the residual, in which it is linear (in reverse mode, once); no other result has one.

    Raises:
        ConfigError: impossible parameters. BackendError: a backend that cannot serve the device.
        InputError: tensors of the wrong shape, dtype or device, or with NaN or infinite entries.
    """

    def __init__(
        self,
        kind: str,
        dim: int,
        size: int,
        groups: int = 1,
        seed: int = 0,
        signed: bool = True,
        backend: str = "auto",
    ) -> None:
        self.spec = CodebookSpec(kind, dim, size, groups, seed)
        self.signed = signed
        self._asked = backend
        self._texts: dict[torch.device, str] = {}
        if backend not in ("auto", *backends.names()):
            backends.resolve(backend, "cpu")  # raises, naming the choices

    def __repr__(self) -> str:
        s = self.spec
        return (
            f"Codebook({s.kind!r}, dim={s.dim}, size={s.size}, groups={s.groups}, seed={s.seed}, "
            f"signed={self.signed}, backend={self._asked!r})"
        )

    def backend(self, device: torch.device | str = "cpu") -> str:
        """Name of the backend that serves a device."""
        return self._text(torch.device(device)).partition(" ")[0]

    # ---- operations ------------------------------------------------------------------------------

    def search(
        self, residual: Tensor, step: int | Tensor, bias: Tensor | None = None, shard: tuple[int, int] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The atom of each group with the largest score + bias (DDCM, eq. for the chosen noise).

        Args:
            residual: (B, D) or any (B, ...) of D entries an image; floating point.
            step: index of the step.
            bias: optional additive per-atom bias, (K,) or (G, K); signed codebooks maximise |score| + bias.
                -inf forbids an atom (where all are forbidden, the answer is atom 0), inf prefers it to all finite ones.
            shard: (i, n) searches the i-th of n ranges of atoms alone, `spec.shard(i, n)`; indices are the whole
                codebook's. `ddcm_fast.codebook.distributed.search` puts the ranges' answers together.

        Returns:
            index (B, G) int64, sign (B, G) int8 (all +1 if unsigned) and score (B, G) float32
            = <sign * z_index, residual> restricted to the group, without the bias. Ties go to the lower index.
        """
        r = self._residual(residual)
        at, bias, text = self._step(step, r.device), self._bias(bias), self._text(r.device)
        if shard is None:
            return ops.search(r, at, bias, self.signed, text)
        return ops.search_range(r, at, bias, self.signed, *self.spec.shard(*shard), text)

    def topk(
        self, residual: Tensor, step: int | Tensor, m: int, bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The m best atoms of each group, best first; arguments as `search`, results (B, G, m)."""
        r, m = self._residual(residual), integer("m", m, 1, MAX_TOPK)
        return ops.topk(r, self._step(step, r.device), self._bias(bias), m, self.signed, self._text(r.device))

    def trellis_search(self, residual: Tensor, step: int | Tensor, letter_bits: int) -> Tensor:
        """The letters of the path through a trellis of this codebook's atoms that has the largest score.

        The groups' atoms are chosen together: group g's is named by its letter of `letter_bits` bits, 1 to 8, and by
        the `memory` bits of letters before it, K = 2^(memory + letter_bits - 1): atom
        state * 2^(letter_bits - 1) + letter // 2, with the sign - for odd letters (rule `trellis`; Viterbi 1967).

        residual as `search`. Returns letters (B, G) int64. Raises ConfigError if K is no such power of two, or the
        memory less than a letter's bits or more than 16.
        """
        r = self._residual(residual)
        return ops.trellis_search(r, self._step(step, r.device), letter_bits, self._text(r.device))

    def scores(self, residual: Tensor, step: int | Tensor) -> Tensor:
        """All scores <z_k, residual> of each group, unsigned: (B, G, K) float32."""
        r = self._residual(residual)
        return ops.scores(r, self._step(step, r.device), self._text(r.device))

    def scores_and_norms(self, residual: Tensor, step: int | Tensor) -> tuple[Tensor, Tensor]:
        """`scores` (B, G, K) and the squared norms of all atoms (G, K), float32, in one pass over the noise."""
        r = self._residual(residual)
        return ops.scores_and_norms(r, self._step(step, r.device), self._text(r.device))

    def atoms(self, index: Tensor, step: int | Tensor, sign: Tensor | None = None) -> Tensor:
        """Noise vectors from one index a group: index (B, G) integer, sign (B, G) of +1 and -1.

        Returns z (B, D) float32 in image order, bit-identical on every backend and device.
        """
        _dense("index", index)
        if index.dim() != 2:
            raise InputError(f"index has shape {tuple(index.shape)}; atoms() takes (B, G)")
        if sign is None:
            sign = torch.ones_like(index, dtype=torch.float32)
        return self.combine(index.unsqueeze(-1), _dense("sign", sign).unsqueeze(-1), step)

    def combine(self, index: Tensor, coefficient: Tensor, step: int | Tensor) -> Tensor:
        """Weighted sums of atoms: sum over m of coefficient[..., m] * z_{index[..., m]}.

        index (B, G, M) or, for one group, (B, M) integer; coefficient of the same shape. Returns (B, D) float32,
        bit-identical on every backend and device (docs/noise-law.md, section 6).
        """
        _dense("index", index)
        _dense("coefficient", coefficient)
        if index.dtype.is_floating_point or index.dtype == torch.bool:
            raise InputError(f"index has dtype {index.dtype}; it must be an integer tensor")
        if self.spec.groups == 1 and index.dim() == coefficient.dim() == 2:
            index, coefficient = index.unsqueeze(1), coefficient.unsqueeze(1)
        at = self._step(step, index.device)
        return ops.combine(index.to(torch.int64), coefficient.to(torch.float32), at, self._text(index.device))

    def check_index(self, index: Tensor) -> None:
        """Raise InputError for indices no search of this codebook returns (free for CPU tensors only).

        On a GPU tensor it does nothing, since it would have to wait for the device: kernels there clamp
        an index into range, and the caller checks once on the host.
        """
        if index.device.type == "cpu":
            ops.see_index(index, self.spec.size)

    def initial_noise(self, batch: int, device: torch.device | str = "cpu") -> Tensor:
        """x_T: (batch, D) float32, the same standard normal vector in every row (section 7)."""
        return reference.initial_noise(self.spec.dim, self.spec.seed, device).repeat(batch, 1)

    # ---- what the ops take -----------------------------------------------------------------------

    def _text(self, device: torch.device) -> str:
        if device not in self._texts:
            self._texts[device] = ops.codebook_text(self.spec, backends.resolve(self._asked, device))
        return self._texts[device]

    @staticmethod
    def _step(step: int | Tensor, device: torch.device) -> Tensor:
        if isinstance(step, Tensor):
            return step
        return torch.full((), integer("step", step, 0, MAX_STEP), dtype=torch.int64, device=device)

    @staticmethod
    def _bias(bias: Tensor | None) -> Tensor | None:
        return None if bias is None else _dense("bias", bias).to(torch.float32)

    @staticmethod
    def _residual(residual: Tensor) -> Tensor:
        if not _dense("the residual", residual).dtype.is_floating_point:
            raise InputError(f"the residual is {residual.dtype}; it must be a floating point tensor")
        if residual.dim() > 2:
            residual = residual.flatten(1)
        return residual.to(torch.float32)


def _dense(name: str, tensor: Tensor) -> Tensor:
    """The tensor. Raises InputError for what cannot be converted to dense real numbers."""
    if not isinstance(tensor, Tensor):
        raise InputError(f"{name} is of type {type(tensor).__name__}; it must be a tensor")
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_nested or tensor.is_complex():
        raise InputError(f"{name} is {tensor.dtype}, {tensor.layout}; it must be a dense tensor of real numbers")
    return tensor
