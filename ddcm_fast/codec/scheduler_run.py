"""A run of DDCMScheduler through its timesteps: the files that it makes, and those that it replays."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ddcm_fast.codec import container
from ddcm_fast.codec.config import CodecConfig
from ddcm_fast.codec.container import PIPELINE, FileData, Header
from ddcm_fast.codec.identity import dtype_name, file_dtype
from ddcm_fast.codec.limits import Limits
from ddcm_fast.errors import ConfigError, DDCMWarning, FormatError, InputError
from ddcm_fast.sampling.choosers import Chooser, Replay
from ddcm_fast.sampling.rules import Rule
from ddcm_fast.sampling.schedule import Step

#: Whose latents a run began with, as its file says it: the pipeline's own, or initial_latents of the codebook's seed.
OWN_START, CODEBOOK_START = 0, 1
INSTEAD = "give the pipeline latents=scheduler.initial_latents(shape)"


@dataclass
class Run:
    """One run through the timesteps: the steps from the first one taken on, and the letters so far."""

    config: CodecConfig
    steps: list[Step]
    rule: Rule
    chooser: Chooser
    fingerprint: bytes
    shape: torch.Size
    dtype: torch.dtype
    start: int
    taken: int = 0
    letters: list[Tensor] = field(default_factory=list)

    def files(self) -> list[bytes]:
        """The bytes of a .ddcm file for each image; see DDCMScheduler.files."""
        if self.start == OWN_START:
            warnings.warn(
                f"the run began with latents of the pipeline's own, which its file does not hold: replay it with the "
                f"same ones (the same generator or image), or {INSTEAD}",
                DDCMWarning,
                stacklevel=4,
            )
        steps = self.steps[: self.taken]
        rows = [letters.tolist() for letters in self.letters]
        if any(min(row, default=0) < 0 for batch in rows for row in batch):
            raise InputError("a prediction of the run is NaN or infinite; load the pipeline with dtype float32")
        coded = [step for step in steps if step.coded]
        config = replace(self.config, T=self.taken)
        header = Header(config, PIPELINE, self.fingerprint, dtype_name(self.dtype), 1, 1)
        before = bytes([self.start, *steps[0].index.to_bytes(2, "big")])
        payloads = (self.rule.write([batch[b] for batch in rows], coded) for b in range(self.shape[0]))
        return [container.write(header, before + payload) for payload in payloads]


class Recorded(NamedTuple):
    """A file as read: its header, whether x_T is the codebook's, the first step, and the packed letters."""

    header: Header
    start: int
    first: int
    payload: bytes


def read(data: FileData, limits: Limits) -> Recorded:
    """A file of a scheduler's run; raises FormatError where it is none, LimitError where it is beyond the limits."""
    header, payload = container.read(container.file_bytes(data))
    if header.model != PIPELINE:
        raise FormatError(f"the file was made with model {header.model!r}: decode it with Codec or ddcm decompress")
    limits.check("payload", len(payload))
    if len(payload) < 3 or payload[0] not in (OWN_START, CODEBOOK_START):
        raise FormatError("the payload of a scheduler's file is missing or impossible: the file is corrupt")
    return Recorded(header, payload[0], int.from_bytes(payload[1:3], "big"), payload[3:])


def replayed(
    recorded: Sequence[Recorded],
    fingerprint: bytes,
    rule: Rule,
    steps: list[Step],
    sample: Tensor,
    start: int,
    dtype: torch.dtype,
) -> Chooser:
    """The chooser that takes the letters of files, for a run of `steps` from `sample` (B, ...).

    Raises ConfigError: the run is not that of the files. Warns where its network's dtype is another.
    """
    header, was, first, _ = recorded[0]
    copies, rest = divmod(len(sample), len(recorded))
    if rest:
        raise ConfigError(f"{len(recorded)} files for {len(sample)} images; give one an image")
    alike = first == steps[0].index and header.fingerprint == fingerprint
    if not alike or len(steps) < header.config.T:
        raise ConfigError(
            f"its {header.config.T} timesteps, noise levels or latents' shape are not this call's: give the same again"
        )
    if was == CODEBOOK_START and start != was:
        raise ConfigError(f"it begins with the codebook's own latents: {INSTEAD}")
    if file_dtype(header) != dtype:
        warnings.warn(
            f"the file was made with a network in {header.dtype}, this one is in {dtype}: the picture will differ",
            DDCMWarning,
            stacklevel=4,
        )
    coded = [step for step in steps[: header.config.T] if step.coded]
    rows = [rule.read(one.payload, coded) for one in recorded]
    letters = [torch.tensor(own, dtype=torch.int64, device="cpu") for own in zip(*rows, strict=True)]
    return Replay([own.repeat(copies, 1) for own in letters])
