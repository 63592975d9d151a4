"""Rules: what is coded at a step. A rule chooses symbols for a direction and turns symbols into noise."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from ddcm_fast.codebook.codebook import Codebook
from ddcm_fast.errors import FormatError
from ddcm_fast.sampling.bitstream import pack, unpack, unpack_prefix
from ddcm_fast.sampling.schedule import Step


class Rule(ABC):
    """One way to code the noise of a step.

    Inside the sampling loop the choice of a step is a tensor of *letters* (B, n) int64 on the device, so that nothing
    waits for it. For the file, one image's letters become *symbols*: integers with the step's radices, which cost
    exactly log2(radix) bits each. Most rules' letters are their symbols.

    The encoder calls `choose`, the generator `draw`, and everyone `noise`: encoder and decoder share the code that
    matters.

    Attributes:
        unwritten: bits of a payload's end that may be missing from its file.
    """

    unwritten = 0

    @abstractmethod
    def codebook(self, step: Step) -> Codebook:
        """The codebook of a step."""

    @abstractmethod
    def radices(self, step: Step) -> list[int]:
        """Radices of the symbols of a step; the step costs sum(log2(radix)) bits."""

    def least_bits(self, step: Step) -> float:
        """Bits that a step takes in a payload at least; without a list of many radices, as files can ask for any."""
        return sum(radix.bit_length() - 1 for radix in self.radices(step))

    @abstractmethod
    def choose(self, direction: Tensor, step: Step) -> Tensor:
        """Letters (B, n) whose noise is most aligned with a direction (B, D) float32."""

    @abstractmethod
    def noise(self, letters: Tensor, step: Step) -> Tensor:
        """Noise z (B, D) float32 of the letters (B, n)."""

    def draw(self, batch: int, step: Step, generator: torch.Generator) -> Tensor:
        """Uniformly random letters (batch, n), on the CPU, for generation."""
        columns = [
            torch.randint(radix, (batch, 1), generator=generator, dtype=torch.int64, device="cpu")
            for radix in self.radices(step)
        ]
        return torch.cat(columns, dim=1)

    def to_symbols(self, letters: Sequence[int], step: Step) -> list[int]:
        """One image's letters -> symbols."""
        return list(letters)

    def to_letters(self, symbols: Sequence[int], step: Step) -> list[int]:
        """One image's symbols -> letters, the inverse of `to_symbols`."""
        return list(symbols)

    def write(self, letters: Sequence[Sequence[int]], steps: Sequence[Step]) -> bytes:
        """One image's letters of every coded step -> the payload of its file."""
        symbols = [s for own, step in zip(letters, steps, strict=True) for s in self.to_symbols(own, step)]
        return pack(symbols, [radix for step in steps for radix in self.radices(step)])

    def read(self, data: bytes, steps: Sequence[Step], prefix: bool = False) -> list[list[int]]:
        """The payload of a file -> the letters of every coded step, the inverse of `write`.

        With `prefix`, data is the beginning of a payload and only the steps that it determines are returned.
        Raises FormatError: the data is not what `write` writes.
        """
        if prefix:
            symbols = unpack_prefix(data, (radix for step in steps for radix in self.radices(step)))
        else:
            self.check_length(data, steps)
            symbols = unpack(data, [radix for step in steps for radix in self.radices(step)])
        letters: list[list[int]] = []
        first = 0
        for step in steps:
            last = first + len(self.radices(step))
            if last > len(symbols):
                break
            letters.append(self.to_letters(symbols[first:last], step))
            first = last
        return letters

    def check_length(self, data: bytes, steps: Sequence[Step]) -> None:
        """Raise FormatError for a payload that is shorter than any of the steps' would be."""
        if sum(self.least_bits(step) for step in steps) > 8 * len(data) + self.unwritten:
            raise FormatError("the payload is not as long as the header says: the file is truncated or corrupt")

    def uncoded_noise(self, batch: int, step: Step, device: torch.device) -> Tensor:
        """Noise of a step that carries no bits: atom 0 of every group, the same for every image."""
        book = self.codebook(step)
        index = torch.zeros(batch, book.spec.groups, dtype=torch.int64, device=device)
        return book.atoms(index, step.at)
