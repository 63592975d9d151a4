"""Lent: networks that belong to someone else, used as a model needs them and left as they were found."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from operator import attrgetter, is_, methodcaller
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

_ALIGNMENT = 64  # bytes, of torch's CPU allocator

#: FreeU (Si et al. 2023), as diffusers' `enable_freeu` sets it on a U-Net's blocks.
FREEU = ("s1", "s2", "b1", "b2")

#: What says which of a PEFT layer's adapters count, and how much.
_ADAPTERS = ("_active_adapter", "_disable_adapters", "merged_adapters", "scaling")


_VALUES: Callable[[dict[str, Any]], Any] = methodcaller("values")
_VERSION: Callable[[Tensor], int] = attrgetter("_version")


class Part(NamedTuple):
    """A network that a model's pictures depend on.

    Attributes:
        name: begins the names of its weights in the fingerprint; None: names say nothing (see weights_fingerprint).
        module: the network, without torch.compile's wrapper.
        dtype: that its floating point weights are evaluated in, where it is not their own.
        channels_last: convolutions are evaluated with their weights in this order, whatever order they are kept in.
    """

    name: str | None
    module: nn.Module
    dtype: torch.dtype | None = None
    channels_last: bool = False


def uncompiled(module: Any) -> Any:
    """The module inside torch.compile's wrapper."""
    return getattr(module, "_orig_mod", module)


def hooks_of(module: nn.Module) -> list[Any]:
    """accelerate's hooks on a module."""
    hook = module.__dict__.get("_hf_hook")
    return [] if hook is None else list(getattr(hook, "hooks", (hook,)))


def execution_device(module: nn.Module) -> torch.device:
    """Where a module computes: where accelerate's hooks take its input and weights, else where its weights are."""
    for each in module.modules():
        for hook in hooks_of(each):
            if getattr(hook, "execution_device", None) is not None:
                return torch.device(hook.execution_device)
    return next((t.device for t in (*module.parameters(), *module.buffers())), torch.device("cpu"))


def value_of(module: nn.Module, name: str, tensor: Tensor) -> Tensor:
    """A weight itself, also where accelerate keeps it elsewhere and the module has only a meta tensor."""
    if tensor.is_meta:
        for hook in hooks_of(module):
            if getattr(hook, "weights_map", None) is not None:
                return hook.weights_map[name]
    return tensor


class Lent:
    """The networks behind a model: notices what their owner does to them, and lends them for evaluations.

    Args:
        parts: what there is now; an owner may replace a pipeline's text encoder.
    """

    def __init__(self, parts: Callable[[], list[Part]]) -> None:
        self._parts = parts
        self._lock = threading.RLock()
        self._depth = 0
        self._modules: list[nn.Module] = []
        self._tensors: list[Tensor] = []
        self._hooked = False
        # What a walk through the modules found, and what tells without one that it would find the same again.
        self._structure: list[int] | None = None
        self._roots: list[nn.Module] = []
        self._dicts: list[dict[str, Any]] = []
        self._sizes: list[int] = []
        self._filled: list[dict[str, Any]] = []
        self._held: list[Any] = []
        self._switched: list[tuple[dict[str, Any], tuple[str, ...]]] = []
        # What is seen of the tensors, and the entries of theirs that are read.
        self._state: list[Any] = []
        self._places: dict[torch.device, list[Tensor]] = {}
        self._values = torch.empty(0, dtype=torch.uint8, device="cpu")
        self._swaps: list[tuple[dict[str, Any], str, Tensor, Tensor]] | None = None
        self._training: list[nn.Module] = []
        self._wanting: list[Tensor] = []

    @property
    def in_use(self) -> bool:
        """Whether an evaluation goes on."""
        return self._depth > 0

    def changed(self) -> bool:
        """Whether anything was done to the networks since the last call; True at the first.

        Looks at all modules and tensors (identity, torch's version counter, address), at the state of adapters and
        FreeU, and at the value of two entries of each tensor, since writing through `.data` (as PEFT does when it
        fuses adapters) moves no counter. 0.5 to 0.7 ms of one thread for networks of Stable Diffusion's size.
        """
        before = self._structure, self._state
        if self._hooked or not self._as_walked():
            self._walk()
        self._state = self._look()
        if before != (self._structure, self._state):
            self._remember()
        else:
            values, self._values = self._values, self._read()
            if torch.equal(values, self._values):
                return False
        self._swaps = None
        return True

    def _as_walked(self) -> bool:
        """Whether the modules hold what the last walk found in them; a walk takes twice as long."""
        return (
            [part.module for part in self._parts()] == self._roots
            and [*map(len, self._dicts)] == self._sizes
            and all(map(is_, chain.from_iterable(map(_VALUES, self._filled)), self._held))
        )

    def _walk(self) -> None:
        self._roots = [part.module for part in self._parts()]
        self._modules, self._hooked, self._switched = [], False, []
        insides: list[dict[str, Any]] = []
        kept: list[dict[str, Any]] = []
        tensors: list[Tensor | None] = []
        stack: list[Any] = [*self._roots]
        while stack:
            module = stack.pop()
            if module is None:
                continue
            self._modules.append(module)
            inside = module.__dict__
            children, parameters, buffers = inside["_modules"], inside["_parameters"], inside["_buffers"]
            stack += children.values()
            insides.append(inside)
            kept += (children, parameters, buffers)
            if "_hf_hook" in inside or "_diffusers_hook" in inside:
                self._hooked = True
                tensors += _watched(module)
            else:
                tensors += parameters.values()
                tensors += buffers.values()
            if "scaling" in inside:
                self._switched.append((inside, _ADAPTERS))
            elif "s1" in inside:
                self._switched.append((inside, FREEU))
        self._tensors = [tensor for tensor in tensors if tensor is not None]
        self._structure = [*map(id, self._modules), *map(id, self._tensors)]
        self._dicts = insides + kept
        self._sizes = [*map(len, self._dicts)]
        self._filled = [each for each in kept if each]
        self._held = [*chain.from_iterable(map(_VALUES, self._filled))]

    def _look(self) -> list[Any]:
        """Versions and addresses of the tensors, the state of adapters and FreeU."""
        try:
            versions = [*map(_VERSION, self._tensors)]
        except RuntimeError:  # tensors made in inference mode have none
            versions = [0 if tensor.is_inference() else tensor._version for tensor in self._tensors]
        switches = [repr([inside.get(name) for name in names]) for inside, names in self._switched]
        return [versions, [*map(Tensor.data_ptr, self._tensors)], switches]

    def _remember(self) -> None:
        self._places = {}
        for tensor in self._tensors:
            self._places.setdefault(tensor.device, []).append(_place(tensor))
        self._values = self._read()

    def _read(self) -> Tensor:
        """The bytes of some entries of every tensor, on the CPU."""
        with torch.inference_mode(False), torch.no_grad():
            read = [torch.cat(places).cpu() for places in self._places.values()]
            return torch.cat(read) if read else torch.empty(0, dtype=torch.uint8, device="cpu")

    @contextmanager
    def lend(self) -> Iterator[None]:
        """While inside, the networks are in evaluation mode, frozen, in the parts' dtypes and over aligned memory.

        Weights that do not serve as they are get replaced by copies in their modules, and put back at the end:
        optimizers, ties and views of theirs keep what they hold. May be entered again inside.
        """
        with self._lock:
            if self._depth == 0:
                self._take()
            self._depth += 1
        try:
            yield
        finally:
            with self._lock:
                self._depth -= 1
                if self._depth == 0:
                    self._give_back()

    def _take(self) -> None:
        if self._swaps is None:
            self._swaps = [swap for part in self._parts() for swap in _swaps(part)]
        for held, name, _, instead in self._swaps:
            held[name] = instead
        self._training = [module for module in self._modules if module.training]
        for module in self._training:
            module.training = False
        # torch's matmul takes another way, which rounds differently, for weights that want gradients, recorded or not.
        self._wanting = [tensor for tensor in self._tensors if tensor.requires_grad and tensor.is_leaf]
        for tensor in self._wanting:
            tensor.requires_grad_(False)

    def _give_back(self) -> None:
        for tensor in self._wanting:
            tensor.requires_grad_(True)
        for module in self._training:
            module.training = True
        for part in self._parts():
            for hook in hooks_of(part.module):
                if type(hook).__name__ == "CpuOffload":  # brought the whole network to the device, and leaves it there
                    hook.init_hook(part.module)
        for held, name, own, _ in self._swaps or ():
            held[name] = own
        if self._hooked:  # what hooks did to the weights, moving and casting them, is none of the owner's doing
            self._walk()
            self._state = self._look()
            self._remember()

    def own(self) -> None:
        """Take the networks over, for a model that no one else holds: what `lend` does for a while is done for good."""
        for part in self._parts():
            part.module.eval().requires_grad_(False)
            for _, _, tensor, instead in _swaps(part):
                tensor.data = instead.data
        self._swaps = None


def _watched(module: nn.Module) -> Iterator[Tensor | None]:
    """The weights of a module whose hooks keep some of them elsewhere."""
    for held in (module._parameters, module._buffers):
        for name, tensor in held.items():
            if tensor is None or not tensor.is_meta:
                yield tensor
            elif any(isinstance(_dataset(hook), dict) for hook in hooks_of(module)):
                yield value_of(module, name, tensor)  # else they lie on a disk, where they cannot be watched


def _dataset(hook: Any) -> Any:
    return getattr(getattr(hook, "weights_map", None), "dataset", None)


def _hooked(module: nn.Module) -> bool:
    """Whether accelerate or diffusers moves or casts the module's weights around its evaluation."""
    return "_hf_hook" in module.__dict__ or "_diffusers_hook" in module.__dict__


def _place(tensor: Tensor) -> Tensor:
    """The bytes of up to two entries in the middle of a tensor, as a view."""
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout != torch.strided:
        return torch.empty(0, dtype=torch.uint8, device=tensor.device)
    with torch.inference_mode(False), torch.no_grad():
        last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        count = min(2, last + 1) if tensor.numel() else 0
        first = tensor.storage_offset() + max(0, last - 1) // 2
        return tensor.detach().as_strided((count,), (1,), first).view(torch.uint8)


def _swaps(part: Part) -> Iterator[tuple[dict[str, Any], str, Tensor, Tensor]]:
    """The weights of a part that do not serve as they are: where they are held, and what to put there.

    Weights mapped from a file start anywhere. Matrix products over unaligned operands, and convolutions over another
    order, take other code paths that round differently: the same model loaded in two ways would differ in its last
    bits (docs/reproducibility.md). Where hooks move the weights they are left alone, but for their dtype.
    """
    hooked = any(_hooked(module) for module in part.module.modules())
    copies: dict[int, Tensor] = {}  # tied weights stay tied
    for module in part.module.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is None:
                    continue
                cast = part.dtype is not None and tensor.is_floating_point() and tensor.dtype != part.dtype
                astray = tensor.device.type == "cpu" and tensor.data_ptr() % _ALIGNMENT != 0
                turned = part.channels_last and tensor.dim() == 4 and tensor.stride() != _channels_last(tensor.shape)
                if not cast and (hooked or not (astray or turned)):
                    continue
                if id(tensor) not in copies:
                    order = torch.channels_last if turned else torch.preserve_format
                    with torch.inference_mode(False), torch.no_grad():
                        copy = tensor.detach().to(part.dtype if cast else tensor.dtype).clone(memory_format=order)
                    if isinstance(tensor, nn.Parameter):
                        copy = nn.Parameter(copy, requires_grad=False)
                    copies[id(tensor)] = copy
                yield held, name, tensor, copies[id(tensor)]


def _channels_last(shape: torch.Size) -> tuple[int, ...]:
    _, channels, height, width = shape
    return (channels * height * width, 1, width * channels, channels)
