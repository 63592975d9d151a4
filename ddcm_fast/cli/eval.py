"""`ddcm eval`."""

from __future__ import annotations

import argparse
import json
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddcm_fast.cli.arguments import add_common, add_recipe, add_sets, patch_of, progress
from ddcm_fast.cli.loading import load
from ddcm_fast.cli.pictures import is_image_ending
from ddcm_fast.cli.terminal import complain, say
from ddcm_fast.codec.config import DEFAULT_MODEL
from ddcm_fast.errors import ConfigError, InputError, MissingExtraError, SomeFailedError
from ddcm_fast.files import JSON, MAX_IMAGE_FILE, TEXT, Outputs, picture

if TYPE_CHECKING:
    from PIL import Image

    from ddcm_fast.bulk.sources import Item
    from ddcm_fast.evaluation.run import Row


def add_parser(commands: Any) -> None:
    """The subcommand `eval`."""
    p = commands.add_parser(
        "eval",
        description="Compare codecs over images at given bitrates: a table, curves with BD-rates and pictures. "
        "Rows that are there already are not measured again.",
    )
    p.add_argument("input", type=Path, nargs="+", help="images, folders, patterns or .tar archives")
    p.add_argument("--output", type=Path, required=True, help="folder of the results")
    p.add_argument(
        "--codecs",
        default="jpeg,webp,avif,product,trellis",
        help="jpeg, webp, avif, jxl, bpg, vtm, CompressAI's (mbt2018-mean, cheng2020-anchor, ...) and presets, these "
        "with settings as in ddcm:K=65536 (default: %(default)s)",
    )
    p.add_argument("--bpp", default="0.1,0.2,0.35,0.5", help="bits a pixel (default: %(default)s)")
    p.add_argument(
        "--metrics",
        default="psnr,ms-ssim",
        help="psnr, ms-ssim, lpips, dists; of all images at once fid, kid, patch-fid, patch-kid (default: %(default)s)",
    )
    add_sets(p)
    add_recipe(p)
    p.add_argument("--crop", type=int, help="side of a centre crop; smaller images are taken whole")
    p.add_argument("--limit", type=int, help="only the first images")
    p.add_argument("--model", default=DEFAULT_MODEL, help="of the presets (default: %(default)s)")
    p.add_argument("--vtm-cfg", type=Path, help="vtm's encoder_intra_vtm.cfg (default: cfg/ of where it was built)")
    add_common(p)
    p.set_defaults(run=_run)


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _rates(text: str) -> list[float]:
    try:
        rates = sorted({float(part) for part in _list(text)})
    except ValueError:
        rates = []
    if not rates or not all(0 < rate <= 24 for rate in rates):
        raise ConfigError(f"--bpp is {text!r}; give bits a pixel above 0 and up to 24, as in 0.1,0.25,0.5")
    return rates


def _items(args: argparse.Namespace) -> list[Item]:
    from ddcm_fast.bulk.recipes import recipe
    from ddcm_fast.bulk.sources import distinct, find

    if args.recipe is None:
        return distinct(find(args.input, is_image_ending, "images", MAX_IMAGE_FILE))[: args.limit]
    if args.crop is not None:
        raise ConfigError(f"--crop is {args.crop}, and the recipe {args.recipe} cuts by itself; leave one out")
    return recipe(args.recipe).items(args.input)[: args.limit]


def _run(args: argparse.Namespace) -> None:
    from ddcm_fast.bulk.recipes import recipe
    from ddcm_fast.evaluation import codecs, metrics, report, sets
    from ddcm_fast.evaluation.run import evaluate
    from ddcm_fast.models.loading import working_device

    rates, wanted, names = _rates(args.bpp), list(dict.fromkeys(_list(args.codecs))), _list(args.metrics)
    for name, value in (("--crop", args.crop), ("--limit", args.limit)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} is {value}; it must be at least 1")
    presets = [name for name in wanted if codecs.needs_model(name)]
    if not wanted:
        raise ConfigError(f"--codecs is {args.codecs!r}; name one of {', '.join(codecs.names())} at least")
    items = _items(args)
    metrics.check(names, metrics.OF_PAIRS + sets.NAMES)
    of_sets = [name for name in names if name in sets.NAMES]
    patch = patch_of(args, None if args.recipe is None else recipe(args.recipe).patch)
    pairs = metrics.Pairs([name for name in names if name not in of_sets])
    sets.need(of_sets)
    # Before a model is loaded: what these need may be missing.
    device = working_device(args.device)
    ready = {name: codecs.make(name, None, args.vtm_cfg, device) for name in wanted if name not in presets}
    outputs = Outputs(force=args.force, folder=args.output)
    files = {"results.csv": TEXT, "means.csv": TEXT, "summary.json": JSON}
    files |= {"curves.png": picture("PNG"), "sheet.png": picture("PNG")}
    files |= {f"{name}.json": JSON for name in wanted}
    for name, kind in files.items():
        outputs.add(args.output / name, kind)
    model = load(args, args.model) if presets else None
    own = [ready[name] if name in ready else codecs.make(name, model) for name in wanted]
    rows = evaluate(items, own, rates, pairs, args.output, args.crop, progress(args))

    failed = sorted({row["image"] for row in rows if "error" in row})
    points = report.means(rows, names)
    _add_sets(args, points, rows, items, of_sets, patch)
    outputs.write(args.output / "results.csv", report.table(rows))
    outputs.write(args.output / "means.csv", report.table(points))
    options = {"recipe": args.recipe, "crop": args.crop, "codecs": args.codecs, "bpp": args.bpp}
    if any(name.startswith(sets.PATCH) for name in of_sets):
        options["patch"] = patch
    command = "ddcm eval" + "".join(f" --{name} {value}" for name, value in options.items() if value is not None)
    summary: dict[str, Any] = {"command": command, "images": len(items) - len(failed), "failed": failed}
    if args.recipe is not None:
        summary["recipe"] = args.recipe
    try:
        summary["bd_rate_percent"] = report.bd_rates(points) if "psnr" in names else {}
    except MissingExtraError as error:
        complain(f"warning: {error}")
    outputs.write(args.output / "summary.json", _json({**summary, "means": points}))
    if points:
        by_name = {item.name: item for item in items}

        def original(name: str) -> Image.Image:
            return _original(by_name[name], args.crop)

        for name in wanted:
            outputs.write(args.output / f"{name}.json", _json(report.compressai(points, name, names, command)))
        outputs.write(args.output / "sheet.png", report.sheet(rows, args.output, original))
        try:
            outputs.write(args.output / "curves.png", report.curves(points, names))
        except MissingExtraError as error:
            complain(f"warning: {error}")
    if not args.quiet:
        _say(points, names, summary)
    if failed:
        where = args.output / "results.csv"
        raise SomeFailedError(f"{len(failed)} of {len(items)} images failed, as {where} says; leave them out")


def _original(item: Item, side: int | None) -> Image.Image:
    from ddcm_fast.evaluation.run import original

    return original(item.read(), side)


def _add_sets(
    args: argparse.Namespace, points: list[Row], rows: list[Row], items: list[Item], names: list[str], patch: int
) -> None:
    """Add the metrics of sets to the means; where they cannot be had, say why and leave them out."""
    from PIL import Image
    from tqdm import tqdm

    from ddcm_fast.evaluation import report, sets
    from ddcm_fast.evaluation.run import decoded

    if not names or not points:
        return
    good = report.whole(rows)
    images = {row["image"] for row in good}
    first = [partial(_original, item, args.crop) for item in items if item.name in images]
    with tempfile.TemporaryDirectory() as kept:
        for point in tqdm(points, unit="set", disable=True if args.quiet else None):
            own = [row for row in good if (row["codec"], row["rate"]) == (point["codec"], point["rate"])]
            second = [partial(Image.open, decoded(args.output, row)) for row in own]
            try:
                point |= sets.compare(names, first, second, patch, args.inception, Path(kept))
            except InputError as error:
                complain(f"warning: {error}")
                return


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def _say(points: list[Row], metrics: list[str], summary: dict[str, Any]) -> None:
    for p in points:
        found = "".join(f"  {name} {p[name]:8.4f}" for name in metrics if p[name] is not None)
        over = f"  ({p['over']} of {p['images']} files larger than that)" if p["over"] else ""
        times = f"  {p['encode_seconds']:7.2f} s in, {p['decode_seconds']:6.2f} s out"
        say(f"{p['codec']:15} at {p['rate']:<6g} {p['bpp']:8.4f} bpp{found}{times}{over}")
    for name, against in summary.get("bd_rate_percent", {}).items():
        say(f"{name:15} BD-rate " + ", ".join(f"{anchor} {percent:+.1f} %" for anchor, percent in against.items()))
