"""What goes into one network call: the conditions of several images, and which of these are coded together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Union

from ddcm_fast.errors import ConfigError
from ddcm_fast.sampling.condition import Condition, ConditionHash, ConditionLike, one_each
from ddcm_fast.sampling.model import DiffusionModel

if TYPE_CHECKING:
    from ddcm_fast.codec.config import CodecConfig

Conditions = Union[ConditionLike, Sequence[ConditionLike]]
Prompts = Union[str, Sequence[str], None]


def conditions_of(
    model: DiffusionModel, condition: Conditions, prompt: Prompts, count: int
) -> list[Condition | None]:
    """The conditions of `count` images, the model's defaults filled in, from one for all or one for each.

    Raises ConfigError: another number of them, a condition and a prompt, or one that the model cannot take.
    """
    if condition is not None and prompt is not None:
        raise ConfigError(f"prompt is {prompt!r} and condition is {condition!r}; give one of them")
    return [model.complete_condition(each) for each in one_each(condition if prompt is None else prompt, count)]


def batches(members: Sequence[int], conditions: Sequence[Condition | None], size: int) -> Iterator[list[int]]:
    """Members in their order, at most `size` at a time and of one guidance scale: what a network call takes."""
    for _, run in groupby(members, lambda i: getattr(conditions[i], "guidance_scale", None)):
        alike = list(run)
        yield from (alike[first : first + size] for first in range(0, len(alike), size))


def each_alone(config: CodecConfig, bpp: float | None, psnr: float | None) -> bool:
    """Whether each image is coded alone: its rate or quality is met by a schedule, or encodings, of its own."""
    return psnr is not None or (bpp is not None and config.shares_atoms)


def together(conditions: Sequence[Condition | None]) -> Condition | tuple[Condition | None, ...] | None:
    """What a model is told of a batch: the condition of all, or each one's."""
    return conditions[0] if len(set(conditions)) == 1 else tuple(conditions)


def stored(condition: Condition | None, embed: bool) -> Condition | ConditionHash | None:
    """What a header says of a condition."""
    return condition if condition is None or embed else ConditionHash(condition.digest())
