"""The fingerprint: four bytes that tell the networks behind one model from another's (docs/models.md)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ddcm_fast.models.lent import FREEU, Part, value_of

_SAMPLES = 4096  # entries of each tensor that are looked at
_AS_INTEGERS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}

#: What `fuse_qkv_projections` adds beside to_q, to_k and to_v: the same weights again.
_FUSED = ("to_qkv", "to_kv", "to_added_qkv")


def weights_fingerprint(description: str, parts: Iterable[Part], dtype: torch.dtype) -> bytes:
    """Two bytes of a description, of names, shapes and signs; two of the values, rounded to a dtype.

    Up to 4096 entries of each tensor are looked at, evenly spaced and in no step with its rows and columns: training,
    merging, scaling and quantising change nearly all entries of a tensor, at least most of a row or of a column.

    Signs survive every change of dtype (even an underflow keeps its sign bit), and whatever adds to the weights flips
    some of them. No other function of values does: the values that round to one number of bfloat16 and those that
    round to one of float16 overlap in a chain through all numbers. Therefore the values come as the dtype has them.
    """
    signs, values = hashlib.sha256(description.encode()), hashlib.sha256()
    for part in parts:
        found = sorted(_digests(weights_of(part.module), dtype, named=part.name is not None))
        # Tied weights have as many names as a library's version gives them.
        for name, of_signs, of_values in found if part.name is not None else sorted(set(found)):
            signs.update(f"{part.name}{name}".encode() + of_signs)
            values.update(of_values)
    return signs.digest()[:2] + values.digest()[:2]


def weights_of(module: nn.Module, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """What makes up the function of a module: its weights by name, of adapters only those that count now.

    Wrappers (torch.compile, PEFT) leave no trace in names, nor do the names of adapters; their scales do.
    """
    inside = module.__dict__
    for own, tensor in (*module._parameters.items(), *module._buffers.items()):
        if tensor is not None and own not in module._non_persistent_buffers_set:
            yield name + own, value_of(module, own, tensor)
    if all(inside.get(key) for key in FREEU):
        yield f"{name}freeu {[inside[key] for key in FREEU]}", torch.empty(0, dtype=torch.float32, device="cpu")
    children = {key: child for key, child in module._modules.items() if child is not None}
    adapted = "base_layer" in children and hasattr(module, "merged_adapters")
    for key, child in children.items():
        if key in ("base_layer", "_orig_mod"):
            yield from weights_of(child, name)
        elif adapted:
            for adapter, scale in _adapters(module):
                said = f"{name}{key} * {scale:.7g}"
                if (network := child._modules.get(adapter)) is not None:
                    yield from weights_of(network, said + " ")
                elif (tensor := child._parameters.get(adapter)) is not None:
                    yield said, value_of(child, adapter, tensor)
        elif key not in _FUSED or "to_q" not in children:
            yield from weights_of(child, f"{name}{key}.")


def _adapters(layer: Any) -> list[tuple[str, float]]:
    """A PEFT layer's adapters that change its output, and their scales. Merged ones are in its weights already."""
    if layer.disable_adapters or layer.merged_adapters:
        return []
    active = layer.active_adapters
    scales = getattr(layer, "scaling", {})
    named = [active] if isinstance(active, str) else active
    return [(name, float(scales.get(name, 1.0))) for name in named if scales.get(name, 1.0) != 0]


def _digests(
    weights: Iterable[tuple[str, Tensor]], dtype: torch.dtype, named: bool
) -> Iterator[tuple[str, bytes, bytes]]:
    """Of each tensor: its name, where it says something, and shape; a digest of signs, and one of values."""
    for name, tensor in weights:
        entries = _entries(tensor.detach())
        if tensor.is_floating_point():
            entries = entries.float().cpu()
            rounded = entries.to(dtype).view(_AS_INTEGERS[dtype])
            signs, values = np.packbits(torch.signbit(entries).numpy()), rounded.numpy()
        else:
            signs = values = entries.cpu().numpy()
        said = f"{name if named else ''}{tuple(tensor.shape)}"
        yield said, hashlib.sha256(signs.tobytes()).digest(), hashlib.sha256(values.tobytes()).digest()


def _entries(tensor: Tensor) -> Tensor:
    """Up to 4096 entries of a tensor, (n,)."""
    count = tensor.numel()
    stride = max(1, -(-count // _SAMPLES))
    while math.gcd(stride, count) > 1:  # so that it passes through all columns
        stride += 1
    if tensor.is_contiguous():
        return tensor.view(-1)[::stride]
    places = torch.arange(0, count, stride, dtype=torch.int64, device=tensor.device)
    return tensor[torch.unravel_index(places, tensor.shape)]
