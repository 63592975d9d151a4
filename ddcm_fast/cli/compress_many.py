"""`ddcm compress` of many images into one folder."""

from __future__ import annotations

import argparse
import dataclasses
import io
import math
import time
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from ddcm_fast.cli import many
from ddcm_fast.cli.arguments import add_recipe, condition_of, rate_of, settings_of
from ddcm_fast.cli.loading import load, make_codec
from ddcm_fast.cli.terminal import tell
from ddcm_fast.codec import container
from ddcm_fast.codec.config import CodecConfig, preset
from ddcm_fast.codec.identity import fingerprint
from ddcm_fast.codec.images import MAX_PIXELS
from ddcm_fast.codec.rate import positive
from ddcm_fast.errors import ConfigError, DDCMError
from ddcm_fast.files import MAX_IMAGE_FILE

if TYPE_CHECKING:
    from PIL import Image

    from ddcm_fast.bulk.cost import Cost
    from ddcm_fast.bulk.run import Work
    from ddcm_fast.bulk.sources import Item
    from ddcm_fast.codec.codec import Codec


def run(args: argparse.Namespace) -> None:
    """Compress what the arguments name, or with --dry-run say what that would take."""
    many.check(args, {"--mask": args.mask})
    config = preset(args.preset, **settings_of(args))
    for name, value in rate_of(args, config).items():
        positive(value, name)
    items = _items(args)
    if args.dry_run:
        _foretell(args, items, config)
    elif args.engine == "ray":
        from ddcm_fast.cli.on_ray import run as on_ray

        on_ray(args)
    else:
        many.run(args, items, lambda: _make(args, config), ".ddcm", container.FILE)


def _items(args: argparse.Namespace) -> list[Item]:
    from ddcm_fast.bulk.recipes import recipe
    from ddcm_fast.bulk.sources import dataset, distinct, find
    from ddcm_fast.codec.images import is_reading_ending

    if args.recipe is not None:
        if args.dataset is not None:
            raise ConfigError(f"--recipe {args.recipe} takes folders, and --dataset {args.dataset} none; give one")
        return recipe(args.recipe).items(args.inputs)
    items = [] if args.dataset is None else dataset(args.dataset, args.split)
    return distinct(items + find(args.inputs, is_reading_ending, "images", MAX_IMAGE_FILE))


def _make(args: argparse.Namespace, config: CodecConfig) -> tuple[Work, str]:
    from ddcm_fast.bulk.run import Opened, Work

    codec, digest = _codec(args, config)
    most = _most_together(args, codec)

    def opened(content: bytes) -> Opened:
        image = _read(args, content)
        return Opened(image, image.size, most(image.height, image.width), image.width * image.height)

    return Work(opened, lambda images: _compress(args, codec, images)), digest


def _codec(args: argparse.Namespace, config: CodecConfig) -> tuple[Codec, str]:
    """What codes, and a digest of all that its files depend on beside the images."""
    model = load(args, args.model)
    codec = make_codec(args, model, config, many.WHOLE, exact=True)
    codec.progress = False  # the bar is over the images
    how = {"rate": rate_of(args, config), "embed": not args.withhold_condition, "condition": condition_of(args)}
    return codec, many.settings(
        model=fingerprint(model, config).hex(), dtype=model.dtype, config=dataclasses.asdict(config), **how
    )


def _most_together(args: argparse.Namespace, codec: Codec) -> Callable[[int, int], int]:
    """(height, width) -> how many images of that size are coded together."""
    from ddcm_fast.bulk.batches import batch_size
    from ddcm_fast.codec.batches import each_alone

    rate = rate_of(args, codec.config)

    @cache
    def most(height: int, width: int) -> int:
        if each_alone(codec.config, rate.get("bpp"), rate.get("psnr")):
            return 1
        return args.batch_size or batch_size(codec, height, width, **rate)

    return most


def _read(args: argparse.Namespace, content: bytes) -> Image.Image:
    from ddcm_fast.codec.images import load_image

    return load_image(io.BytesIO(content), MAX_PIXELS if args.max_pixels is None else args.max_pixels)


def _compress(args: argparse.Namespace, codec: Codec, images: list[Any]) -> list[tuple[bytes, dict[str, Any]]]:
    """Code PIL images of one size."""
    from ddcm_fast.codec.images import psnr, to_tensor

    rate = rate_of(args, codec.config)
    results = []
    for image, coded in zip(
        images, codec.encode(images, condition_of(args), not args.withhold_condition, **rate), strict=True
    ):
        quality = psnr(to_tensor(image, codec.model.channels)[0], coded.reconstruction.cpu())
        facts: dict[str, Any] = {"width": image.width, "height": image.height, "bpp": round(coded.bpp, 6)}
        facts["psnr"] = round(quality, 4) if math.isfinite(quality) else None
        results.append((coded.data, facts))
    return results


# ---- before it is done ---------------------------------------------------------------------------

_LOOKED_AT = 200  # images whose sizes stand for all
_SIZES = 16  # sizes that stand for all, where there are more


def _foretell(args: argparse.Namespace, items: list[Item], config: CodecConfig) -> None:
    """Say how many there are, and about how many bytes and hours they take, by their sizes and a short measurement."""
    from ddcm_fast.bulk.manifest import Manifest
    from ddcm_fast.bulk.run import to_do
    from ddcm_fast.bulk.sources import shard

    rank, workers = many.worker(args)
    mine = shard(items[: args.limit], rank, workers)
    codec, digest = _codec(args, config)
    remaining = to_do(mine, Manifest(args.output, rank, workers), digest, args.retry_failed)
    looked = remaining[:: max(1, len(remaining) // _LOOKED_AT)]
    cost, measured, sized = _cost(args, codec, looked)
    cost = cost.times(len(remaining) / max(1, len(looked)))
    facts: dict[str, Any] = {"images": len(mine), "to_do": len(remaining), "bytes": round(cost.bytes)}
    facts |= {"hours": cost.seconds / 3600, "network_hours": cost.network / 3600, "search_hours": cost.search / 3600}
    share = 100 / max(cost.seconds, 1e-9)
    how = (
        f" (network {cost.network * share:.0f} %, search {cost.search * share:.0f} %), by the sizes of {sized} and a "
        f"measurement of {measured:.1f} s here"
    )
    tell(
        f"{args.output}: {len(remaining)} of {len(mine)} images to do, about {cost.bytes:.3g} bytes and "
        f"{facts['hours']:.3g} hours for one worker{how if sized else ''}",
        args,
        facts | {"measured_seconds": float(f"{measured:.3g}")},
    )


def _cost(args: argparse.Namespace, codec: Codec, items: list[Item]) -> tuple[Cost, float, int]:
    """What images cost together, the seconds that it took to measure that, and how many can be coded."""
    from ddcm_fast.bulk.cost import Cost, CostModel

    sized = sorted(_sizes(codec, items), key=lambda found: math.prod(found[0]))
    if not sized:
        return Cost(), 0.0, 0
    start = time.perf_counter()
    (height, width), item = sized[len(sized) // 2]
    _read(args, item.read())
    reading = (time.perf_counter() - start) / (height * width)
    chosen = [size for size, _ in sized]
    if len(set(chosen)) > _SIZES:
        chosen = [chosen[(2 * i + 1) * len(chosen) // (2 * _SIZES)] for i in range(_SIZES)]
    rate = rate_of(args, codec.config)
    counts = {size: count for size, count in Counter(chosen).items() if _possible(codec, size, rate)}
    if not counts:
        return Cost(), 0.0, 0
    model = CostModel(codec, list(counts), _most_together(args, codec), **rate, condition=condition_of(args))
    total = Cost(rest=reading * sum(math.prod(size) for size, _ in sized))
    for size, count in counts.items():
        total = total.plus(model.image(*size).times(count * len(sized) / len(chosen)))
    return total, model.measured, len(sized)


def _possible(codec: Codec, size: tuple[int, int], rate: dict[str, Any]) -> bool:
    """Whether a picture of this size can have the rate; else its turn will tell."""
    try:
        codec.planned(*size, **rate)
    except DDCMError:
        return False
    return True


def _sizes(codec: Codec, items: list[Item]) -> list[tuple[tuple[int, int], Item]]:
    """(height, width) of those that can be coded, from their headers."""
    from PIL import Image

    from ddcm_fast.codec.job import make_job

    found = []
    for item in items:
        try:
            with Image.open(io.BytesIO(item.read())) as image:
                size = image.height, image.width
            make_job(codec.model, codec.config, *size, codec.backend, codec.limits)
            found.append((size, item))
        except Exception:  # it will be noted when its turn comes
            continue
    return found


class _Dataset(argparse.Action):
    """--dataset: with it, and after it, there need be no other inputs."""

    def __init__(self, *words: Any, inputs: argparse.Action, **how: Any) -> None:
        super().__init__(*words, **how)
        self._inputs = inputs

    def __call__(self, _: Any, args: argparse.Namespace, value: Any, __: Any = None) -> None:
        self._inputs.nargs = "*"
        setattr(args, self.dest, value)


def add_options(parser: argparse.ArgumentParser, inputs: argparse.Action) -> None:
    """The options of many images; `inputs` is the positional argument."""
    group = many.add_many(parser)
    group.add_argument(
        "--dataset",
        action=_Dataset,
        inputs=inputs,
        help="a Hugging Face data set, its folder or hub id, instead of inputs: --dataset NAME OUTPUT (needs datasets)",
    )
    group.add_argument("--split", help="of the data set, as in train")
    add_recipe(group)
    group.add_argument("--dry-run", action="store_true", help="say how many images, bytes and hours, and do nothing")
