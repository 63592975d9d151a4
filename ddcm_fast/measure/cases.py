"""What is timed: one list of cases for `ddcm bench` and for `pytest benchmarks/`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ddcm_fast.codebook import backends
from ddcm_fast.codebook.law import KINDS, MAX_TOPK, CodebookSpec, integer
from ddcm_fast.errors import ConfigError

#: Operations, and the baselines that do the same (work.py). `noise` makes one atom a row, `combine` a sum of M.
OPERATIONS = {
    "search": ("randn", "stored"),
    "topk": ("randn", "stored"),
    "combine": ("randn", "stored"),
    "noise": ("randn", "stored", "fresh"),
    "rotate": ("stored",),
}

BASELINES = {
    "randn": "draws the codebook with torch.randn in parts at every call, as DDCM's code does",
    "stored": "keeps the codebook (of rotate: a Hadamard matrix) in memory",
    "fresh": "torch.randn(B, D): noise that belongs to no codebook",
}

#: What is swept if nothing is said: of `search`, and of the other operations.
SIZES, OTHER_SIZES = (1 << 12, 1 << 14, 1 << 20), (1 << 12,)
DIMS = (1 << 14,)
BATCHES, OTHER_BATCHES = (1, 8), (1,)
ATOMS = 64


@dataclass(frozen=True)
class Case:
    """One operation by a backend or a baseline, at one shape.

    `kind` is the codebook's, also of a stored one; torch.randn's is "normal". `atoms` is M: of `topk` and `combine`,
    else 1; `groups` is G, and a baseline knows no groups. Raises ConfigError for numbers that no codebook has.
    """

    op: str
    by: str
    kind: str
    device: torch.device
    size: int
    dim: int
    batch: int
    atoms: int = 1
    groups: int = 1

    def __post_init__(self) -> None:
        integer("B", self.batch, 1, 1 << 20)
        integer("M", self.atoms, 1, min(MAX_TOPK, self.spec.size))

    @property
    def spec(self) -> CodebookSpec:
        """The codebook; of torch.randn one of the same shape."""
        kind = KINDS[0] if self.kind == "normal" else self.kind
        return CodebookSpec(kind, self.dim, self.size, self.groups, seed=1)

    @property
    def baseline(self) -> bool:
        """Whether it is done without this package."""
        return self.by in BASELINES

    @property
    def dtype(self) -> torch.dtype:
        """Of the numbers that it multiplies: a GPU's user would take bfloat16 for a baseline."""
        return torch.bfloat16 if self.baseline and self.device.type == "cuda" else torch.float32

    @property
    def searches(self) -> bool:
        """Whether every atom is looked at."""
        return self.op in ("search", "topk")

    @property
    def grows(self) -> bool:
        """Whether the time grows with K."""
        return self.searches or self.by == "randn"

    @property
    def entries(self) -> int:
        """Entries of noise that a call is about, counted once for all rows of a search; of `rotate` its numbers."""
        return self.size * self.dim if self.searches else self.batch * self.atoms * self.dim

    @property
    def products(self) -> int:
        """Entries times the rows that each of them serves."""
        return self.entries * self.batch if self.searches else self.entries

    def __str__(self) -> str:
        atoms = f" M={self.atoms}" if self.atoms > 1 else ""
        groups = f" G={self.groups}" if self.groups > 1 else ""
        size = "" if self.op == "rotate" else f" K={self.size}"
        return f"{self.op} {self.by} {self.kind}{size} D={self.dim} B={self.batch}{groups}{atoms}"


def contenders(device: torch.device) -> tuple[str, ...]:
    """Backends and baselines that are timed if none is named: not the reference, which is there to be right."""
    serving = [name for name in backends.available(device) if name != "reference"]
    # Interpreted Triton tests kernels; its speed means nothing.
    return (*(name for name in serving if (name, device.type) != ("triton", "cpu")), *BASELINES)


def sweep(
    device: torch.device,
    ops: Sequence[str] | None = None,
    by: Sequence[str] | None = None,
    kinds: Sequence[str] = KINDS,
    sizes: Sequence[int] | None = None,
    dims: Sequence[int] = DIMS,
    batches: Sequence[int] | None = None,
    groups: Sequence[int] = (1,),
    atoms: int = ATOMS,
) -> list[Case]:
    """Every combination that makes a difference; None stands for what is swept if nothing is said.

    A baseline is timed once for all kinds: it takes the same time for any numbers.

    Raises:
        ConfigError: an unknown operation or kind, impossible numbers. BackendError: an unknown backend, or one that
        cannot serve the device.
    """
    for what, given, known in (("operation", ops or (), OPERATIONS), ("kind", kinds, KINDS)):
        for name in given:
            if name not in known:
                raise ConfigError(f"unknown {what} {name!r}: choose among {', '.join(known)}")
    by = contenders(device) if by is None else by
    for name in by:
        if name not in BASELINES:
            backends.resolve(name, device)
    found: dict[Case, None] = {}
    for op in ops or OPERATIONS:
        for size in sizes or (SIZES if op == "search" else OTHER_SIZES):
            for dim in dims:
                for batch in batches or (BATCHES if op == "search" else OTHER_BATCHES):
                    for count in groups:
                        shape = {"size": size, "dim": dim, "batch": batch, "atoms": atoms, "groups": count}
                        found.update(dict.fromkeys(_at(op, by, kinds, device, shape)))
    return list(found)


def _at(
    op: str, by: Sequence[str], kinds: Sequence[str], device: torch.device, shape: dict[str, Any]
) -> Iterator[Case]:
    """The cases of an operation at a shape."""
    if op not in ("topk", "combine"):
        shape = {**shape, "atoms": 1}
    if op == "rotate":  # has neither K nor G, and the kinds that are rotated are rotated alike
        shape, kinds = {**shape, "size": 1, "groups": 1}, [kind for kind in kinds if kind != "gaussian"][:1]
    for name in by:
        if name in BASELINES and (name not in OPERATIONS[op] or shape["groups"] > 1):
            continue
        if name in ("randn", "fresh"):
            yield Case(op, name, "normal", device, **(shape if name == "randn" else {**shape, "size": 1}))
        else:
            for kind in kinds[:1] if name == "stored" else kinds:
                yield Case(op, name, kind, device, **shape)
