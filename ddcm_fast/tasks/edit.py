"""Compressed editing (Ohayon et al., ICML 2025, appendix on text-based editing).

An image is encoded under a source condition. Decoded with another condition from step t_edit on, the same atoms give
an image of the target: early t_edit change much, late ones keep the layout. An edited file is the source's file with
the target and t_edit written into its header, so it decodes by itself, and can be edited again: the source's atoms are
all there. Several targets share one encoding, which is where the time goes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ddcm_fast.codec import container
from ddcm_fast.codec.codec import Codec, Encoded
from ddcm_fast.codec.config import CodecConfig
from ddcm_fast.errors import ConfigError
from ddcm_fast.sampling.condition import Condition, ConditionLike, Edit, as_condition
from ddcm_fast.sampling.model import DiffusionModel


def check_edit(
    model: DiffusionModel, config: CodecConfig, targets: Sequence[ConditionLike], t_edit: Sequence[int]
) -> list[Condition | None]:
    """The targets with the model's defaults filled in; raises ConfigError for what `edit` cannot do."""
    steps = len(config.steps(model))
    if not targets or not t_edit:
        raise ConfigError(f"an edit needs at least one target and one t_edit, not {len(targets)} and {len(t_edit)}")
    for start in t_edit:
        if not 0 <= start <= steps:
            raise ConfigError(f"t_edit is {start}; give 0 to {steps - 1} for this file ({steps} changes nothing)")
    return [model.complete_condition(as_condition(target)) for target in targets]


def edit(
    codec: Codec,
    data: container.FileData,
    targets: Sequence[ConditionLike],
    t_edit: Sequence[int],
    source: ConditionLike = None,
) -> list[Encoded]:
    """The image of a file, edited towards every target from every step on, in that order.

    Args:
        data: a .ddcm file (see Codec), from `codec.encode(image, source)` or edited before.
        targets: what the model is told instead; a text is a prompt.
        t_edit: indices of the step (0 is the noisiest) at which the target takes over.
        source: only for files whose condition does not travel with them.

    Raises:
        ConfigError: a target the model cannot take, a step outside the schedule, or none at all.
    """
    header, payload = container.read(container.file_bytes(data))
    out = []
    for target in check_edit(codec.model, header.config, targets, t_edit):
        for start in t_edit:
            edited = container.write(dataclasses.replace(header, edit=Edit(start, target)), payload)
            out.append(Encoded(edited, codec.decode(edited, condition=source)))
    return out
