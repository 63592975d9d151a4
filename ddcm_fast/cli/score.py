"""`ddcm score`."""

from __future__ import annotations

import argparse
import io
import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddcm_fast.cli.arguments import add_json, add_sets, patch_of
from ddcm_fast.cli.pictures import is_image_ending
from ddcm_fast.cli.terminal import complain, say
from ddcm_fast.errors import DDCMError, InputError, SomeFailedError
from ddcm_fast.files import MAX_IMAGE_FILE

if TYPE_CHECKING:
    from PIL import Image

    from ddcm_fast.bulk.sources import Item


def add_parser(commands: Any) -> None:
    """The subcommand `score`."""
    p = commands.add_parser("score", description="Compare two folders of images: pairs of one name, and as sets.")
    p.add_argument("first", type=Path, help="the originals")
    p.add_argument("second", type=Path, help="what is compared with them")
    p.add_argument(
        "--metrics",
        default="psnr,ms-ssim",
        help="psnr, ms-ssim, lpips, dists of pairs; fid, kid, patch-fid, patch-kid, patch-nss of the folders as sets "
        "(default: %(default)s)",
    )
    add_sets(p)
    p.add_argument("--trust", action="store_true", help="load --inception, a pickle, which can run code")
    p.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors and the result")
    add_json(p, "the means")
    p.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from ddcm_fast.bulk.sources import find
    from ddcm_fast.evaluation import metrics, sets

    names = [part.strip() for part in args.metrics.split(",") if part.strip()]
    metrics.check(names, metrics.OF_PAIRS + sets.NAMES)
    patch = patch_of(args)
    of_pairs = [name for name in names if name in metrics.OF_PAIRS]
    of_sets = [name for name in names if name in sets.NAMES]
    sets.need(of_sets)
    for folder in (args.first, args.second):
        if not folder.is_dir():
            raise InputError(f"{folder} is no folder; name two folders of images")
    facts: dict[str, Any] = {}
    failed: list[str] = []
    measure = metrics.Pairs(of_pairs)
    first, second = (
        {item.name: item for item in find([folder], is_image_ending, "images", MAX_IMAGE_FILE)}
        for folder in (args.first, args.second)
    )
    if of_pairs:
        shared = [name for name in first if name in second]
        if not shared:
            raise InputError(f"no image of {args.first} has its name (without ending) in {args.second}")
        values: dict[str, list[float]] = {name: [] for name in of_pairs}
        for name in tqdm(shared, unit="pair", disable=True if args.quiet else None):
            try:
                pair = (_read(side[name]) for side in (first, second))
                for metric, value in measure(*pair).items():
                    if value is not None:
                        values[metric].append(value)
            except DDCMError as error:
                complain(f"{name}: {error}")
                failed.append(name)
        facts = {"pairs": len(shared) - len(failed), "unpaired": len(first) + len(second) - 2 * len(shared)}
        facts |= {name: sum(found) / len(found) if found else None for name, found in values.items()}
    if of_sets:
        originals, others = ([partial(_read, item) for item in side.values()] for side in (first, second))
        facts |= sets.compare(of_sets, originals, others, patch, args.inception)
    if args.json:
        say(json.dumps(facts))
    else:
        said = {name: f"{value:.4f}" if isinstance(value, float) else value for name, value in facts.items()}
        say(", ".join(f"{name} {value}" for name, value in said.items()))
    if failed:
        raise SomeFailedError(f"{len(failed)} of {len(shared)} pairs failed: give pictures of one size in both folders")


def _read(item: Item) -> Image.Image:
    from ddcm_fast.codec.images import load_image

    return load_image(io.BytesIO(item.read()))
