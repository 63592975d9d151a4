"""How kernels are launched: device, autotuning, and what stays fixed so that results do too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import signature
from typing import Any

import torch
import triton
from torch import Tensor


@triton.jit
def _probe():
    pass


#: Whether kernels run in Triton's interpreter, on CPU tensors (TRITON_INTERPRET=1 at import).
INTERPRETED = not isinstance(_probe, triton.runtime.JITFunction)

#: Whether kernels may hold PTX: neither the interpreter nor an AMD device takes it.
PTX = not INTERPRETED and torch.version.hip is None


def tile(atoms: int, warps: int, stages: int) -> triton.Config:
    """A configuration of a large-batch kernel."""
    return triton.Config({"BLOCK_K": atoms}, num_warps=warps, num_stages=stages)


def tuned(
    configs: Sequence[triton.Config],
    key: list[str],
    choose: Callable[[dict[str, Any]], Sequence[triton.Config]] | None = None,
) -> Any:
    """triton.autotune, or in the interpreter (which has nothing to time) the first configuration.

    With `choose`, among those it picks for the launch's arguments by name. Configurations differ in tile, warp and
    stage counts only. Whatever decides the order of a float sum is fixed by the problem, so results do not depend on
    which configuration won.
    """

    def decorate(kernel: Any) -> Any:
        if INTERPRETED:
            kernel.choose = choose or (lambda arguments: configs)
            return kernel
        prune = None
        if choose is not None:
            prune = {"early_config_prune": lambda configs, arguments, **meta: list(choose({**arguments, **meta}))}
        # What was found is kept in Triton's own cache on disk, by releases that can (3.4 on).
        kept = {"cache_results": True} if "cache_results" in signature(triton.autotune).parameters else {}
        return triton.autotune(configs=list(configs), key=key, prune_configs_by=prune, **kept)(kernel)

    return decorate


def named(kernel: Any, args: tuple[Any, ...]) -> dict[str, Any]:
    """Positional arguments of a launch by the kernel's names for them."""
    return dict(zip(kernel.arg_names, args, strict=False))


def launch(kernel: Any, programs: int, *args: Any, **meta: Any) -> None:
    """Run a kernel with a one-dimensional grid on its first argument's device and current stream.

    Fused multiply-adds are on unless a kernel whose results must match the law to the bit turns them off.
    """
    meta.setdefault("enable_fp_fusion", True)
    if programs == 0:
        return
    if INTERPRETED and hasattr(kernel, "choose"):
        meta.update(kernel.choose({**named(kernel, args), **meta})[0].kwargs)
    first: Tensor = args[0]
    if first.is_cuda:
        with torch.cuda.device(first.device):
            kernel[(programs,)](*args, **meta)
    else:
        kernel[(programs,)](*args, **meta)


def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory a program may have; without a GPU (interpreted, or only compiled) as on an H100."""
    if device.type != "cuda":
        return 227 * 1024
    properties = torch.cuda.get_device_properties(device)
    return int(getattr(properties, "shared_memory_per_block_optin", 48 * 1024))


def seed_words(seed: int) -> tuple[int, int]:
    """The 64 bit key as two signed 32 bit kernel arguments."""
    low, high = seed & 0xFFFFFFFF, seed >> 32
    return low - (low >> 31 << 32), high - (high >> 31 << 32)


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def power_of_2(n: int) -> int:
    """The smallest power of two that is at least n (n >= 1)."""
    return 1 << (n - 1).bit_length()
