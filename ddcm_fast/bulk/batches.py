"""How many images of one size a run codes together, where nobody said."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ddcm_fast.codec.batches import each_alone
from ddcm_fast.codec.job import padded_size
from ddcm_fast.codec.limits import held_by_image
from ddcm_fast.measure.memory import free

if TYPE_CHECKING:
    from ddcm_fast.codec.codec import Codec

#: Where the noise of a search is shared by so many, more save little: measured, see docs/scale.md.
ENOUGH = 8
#: Noise entries for each of a state's, a step, from which on sharing them is noticed beside the network.
WORTH_SHARING = 16384
#: Part of the free memory that the images of a batch may take, 1 / so many.
SHARE = 4


def batch_size(codec: Codec, height: int, width: int, bpp: float | None = None, psnr: float | None = None) -> int:
    """How many images of height x width pixels to code together.

    A batch whose files are those of each image alone shares the noise of the search and nothing else. So it is 1 where
    there is little (K below WORTH_SHARING for one pass a step, atoms that are rotations) and where each image has a
    schedule of its own; else ENOUGH, or as many as a SHARE-th of the free memory and the codec's limit on memory hold.

    Raises InputError or ConfigError: a size that the model cannot take.
    """
    config = codec.config
    device = codec.model.device
    dim = math.prod(codec.model.latent_shape(*padded_size(codec.model, height, width)))
    noise = config.rule_type.search_cost(config, dim).entries / (config.T * dim)
    if config.kind == "hadamard" or noise < WORTH_SHARING or each_alone(config, bpp, psnr):
        return 1
    there = free(device)
    most = codec.limits.memory if there is None else min(codec.limits.memory, there // SHARE)
    return max(1, min(ENOUGH, most // held_by_image(config, dim, codec.backend, device)))
