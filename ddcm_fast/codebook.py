"""Codebook: noise as a pure function of (seed, step, index, position), searched without storing it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from . import backends, ops, reference
from .errors import ConfigError, InputError
from .law import CodebookSpec

MAX_TOPK = 1024


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

    `step` is an int, or a 0-d int64 tensor on the data's device where a compiled or captured graph is to
    be replayed for many steps.

    Non-finite residuals: on a CPU they raise InputError at once. On a GPU that check would wait for the
    device, so there the search answers index -1 instead and whoever brings the indices to the host
    checks them (`check_index`; the sampler and the codec do).

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
        self._resolved: dict[torch.device, str] = {}
        if backend not in ("auto", *backends.BACKENDS):
            backends.resolve(backend, "cpu")  # raises, naming the choices

    def __repr__(self) -> str:
        s = self.spec
        return (
            f"Codebook({s.kind!r}, dim={s.dim}, size={s.size}, groups={s.groups}, seed={s.seed}, "
            f"signed={self.signed}, backend={self._asked!r})"
        )

    def backend(self, device: torch.device | str = "cpu") -> str:
        """Name of the backend that serves a device."""
        device = torch.device(device)
        if device not in self._resolved:
            self._resolved[device] = backends.resolve(self._asked, device)
        return self._resolved[device]

    # ---- operations ------------------------------------------------------------------------------

    def search(
        self, residual: Tensor, step: int | Tensor, bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The atom of each group with the largest score + bias (DDCM, eq. for the chosen noise).

        Args:
            residual: (B, D) or any (B, ...) of D entries an image; floating point.
            step: index of the step.
            bias: optional additive per-atom bias, (K,) or (G, K); signed codebooks maximise
                |score| + bias.

        Returns:
            index (B, G) int64, sign (B, G) int8 (all +1 if unsigned) and score (B, G) float32
            = <sign * z_index, residual> restricted to the group, without the bias. Ties go to the lower index.
        """
        w = self._enter(residual)
        return ops.search(
            w, self._step(step, w.device), self._bias(bias, w.device), self.signed, **self._args(w)
        )

    def topk(
        self, residual: Tensor, step: int | Tensor, m: int, bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The m best atoms of each group, best first; arguments as `search`, results (B, G, m)."""
        if not 1 <= m <= min(MAX_TOPK, self.spec.size):
            raise ConfigError(
                f"m is {m}; topk returns 1 to {min(MAX_TOPK, self.spec.size)} atoms of this codebook"
            )
        w = self._enter(residual)
        return ops.topk(
            w,
            self._step(step, w.device),
            self._bias(bias, w.device),
            m,
            self.signed,
            **self._args(w),
        )

    def scores(self, residual: Tensor, step: int | Tensor) -> Tensor:
        """All scores <z_k, residual> of each group, unsigned: (B, G, K) float32."""
        w = self._enter(residual)
        return ops.scores(w, self._step(step, w.device), **self._args(w))

    def scores_and_norms(self, residual: Tensor, step: int | Tensor) -> tuple[Tensor, Tensor]:
        """`scores` (B, G, K) and the squared norms of all atoms (G, K), float32, in one pass over the noise."""
        w = self._enter(residual)
        return ops.scores_and_norms(w, self._step(step, w.device), **self._args(w))

    def atoms(self, index: Tensor, step: int | Tensor, sign: Tensor | None = None) -> Tensor:
        """Noise vectors from one index a group: index (B, G) integer, sign (B, G) of +1 and -1.

        Returns z (B, D) float32 in image order, bit-identical on every backend and device.
        """
        if index.dim() != 2:
            raise InputError(f"index has shape {tuple(index.shape)}; atoms() takes (B, G)")
        coefficient = torch.ones_like(index, dtype=torch.float32) if sign is None else sign.float()
        return self.combine(index.unsqueeze(-1), coefficient.unsqueeze(-1), step)

    def combine(self, index: Tensor, coefficient: Tensor, step: int | Tensor) -> Tensor:
        """Weighted sums of atoms: sum over m of coefficient[..., m] * z_{index[..., m]}.

        index (B, G, M) or, for one group, (B, M) integer; coefficient of the same shape. Returns (B, D) float32,
        bit-identical on every backend and device (docs/noise-law.md, section 6).
        """
        if index.shape != coefficient.shape:
            raise InputError(
                f"index has shape {tuple(index.shape)} but coefficient {tuple(coefficient.shape)}"
            )
        if index.dim() == 2 and self.spec.groups == 1:
            index, coefficient = index.unsqueeze(1), coefficient.unsqueeze(1)
        if index.dim() != 3 or index.shape[1] != self.spec.groups:
            raise InputError(
                f"index has shape {tuple(index.shape)}; this codebook takes (B, {self.spec.groups}, M)"
            )
        if index.dtype.is_floating_point or index.dtype.is_complex or index.dtype == torch.bool:
            raise InputError(f"index has dtype {index.dtype}; it must be an integer tensor")
        if coefficient.device != index.device:
            raise InputError(f"index is on {index.device} but coefficient on {coefficient.device}")
        self.check_index(index)
        index = index.to(torch.int64).contiguous()
        args = self._numbers()
        backend = self.backend(index.device)
        y = ops.combine(
            index,
            coefficient.to(torch.float32).contiguous(),
            self._step(step, index.device),
            dim=self.spec.dim,
            **args,
            backend=backend,
        )
        return ops.to_image_order(y, args["kind"], args["seed"], backend)

    def check_index(self, index: Tensor) -> None:
        """Raise InputError for indices no search of this codebook returns (free for CPU tensors only).

        On a GPU tensor it does nothing, since it would have to wait for the device: kernels there clamp
        an index into range, and the caller checks once on the host.
        """
        if index.device.type != "cpu" or torch.compiler.is_compiling() or index.numel() == 0:
            return
        low, high = int(index.min()), int(index.max())
        if low == -1:
            raise InputError("the residual had NaN or infinite entries (search answered index -1)")
        if low < 0 or high >= self.spec.size:
            raise InputError(f"index {low if low < 0 else high} is outside 0 to {self.spec.size - 1}")

    def initial_noise(self, batch: int, device: torch.device | str = "cpu") -> Tensor:
        """x_T: (batch, D) float32, the same standard normal vector in every row (section 7)."""
        return reference.initial_noise(self.spec.dim, self.spec.seed, device).repeat(batch, 1)

    # ---- checks ----------------------------------------------------------------------------------

    def _numbers(self) -> dict[str, int]:
        s = self.spec
        return {
            "kind": s.kind_number,
            "size": s.size,
            "groups": s.groups,
            "seed": ops.pack_seed(s.seed),
        }

    def _args(self, w: Tensor) -> dict:  # type: ignore[type-arg]
        return {**self._numbers(), "backend": self.backend(w.device)}

    def _step(self, step: int | Tensor, device: torch.device) -> Tensor:
        if isinstance(step, Tensor):
            if step.dim() != 0 or step.dtype != torch.int64 or step.device.type != device.type:
                raise InputError(f"step must be an int or a 0-d int64 tensor on {device}")
            return step
        if isinstance(step, bool) or not 0 <= step < 2**32:
            raise ConfigError(f"step is {step!r}; it must be an integer from 0 to 2^32 - 1")
        return torch.full((), step, dtype=torch.int64, device=device)

    def _bias(self, bias: Tensor | None, device: torch.device) -> Tensor | None:
        if bias is None:
            return None
        s = self.spec
        if bias.shape not in ((s.size,), (s.groups, s.size)) or bias.device.type != device.type:
            raise InputError(
                f"bias has shape {tuple(bias.shape)} on {bias.device}; "
                f"it must be ({s.size},) or ({s.groups}, {s.size}) on {device}"
            )
        return bias.to(torch.float32).contiguous()

    def _enter(self, residual: Tensor) -> Tensor:
        """Check a residual and carry it to codebook order."""
        if not isinstance(residual, Tensor) or not residual.dtype.is_floating_point:
            what = residual.dtype if isinstance(residual, Tensor) else type(residual).__name__
            raise InputError(f"the residual is {what}; it must be a floating point tensor")
        if residual.dim() < 2 or residual[0].numel() != self.spec.dim if len(residual) else True:
            raise InputError(
                f"the residual has shape {tuple(residual.shape)}; "
                f"this codebook takes (B, {self.spec.dim}) with B at least 1"
            )
        r = residual.reshape(len(residual), -1).to(torch.float32).contiguous()
        on_cpu = r.device.type == "cpu" and not torch.compiler.is_compiling()
        # By numpy: for these few microseconds torch would wake all its threads, and wait for them.
        if on_cpu and not np.isfinite(r.detach().numpy()).all():
            raise InputError("the residual has NaN or infinite entries")
        args = self._numbers()
        return ops.to_codebook_order(r, args["kind"], args["seed"], self.backend(r.device))
