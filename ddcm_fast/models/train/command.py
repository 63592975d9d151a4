"""The command line of training: ``python -m ddcm_fast.models.train photo --help``."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ddcm_fast.errors import DDCMError
from ddcm_fast.models.train import digits
from ddcm_fast.models.train.data import centre_crops, load_eval_folder, load_photos
from ddcm_fast.models.train.errors import TrainError
from ddcm_fast.models.train.loop import train_photo
from ddcm_fast.models.train.photo import (
    BUILT_IN,
    DTYPES,
    PREDICTIONS,
    TrainConfig,
    evaluate,
    load_model,
    prediction_of,
    usable_device,
)


def _evaluate(args: argparse.Namespace) -> None:
    """Print the error table of a model that is there; train nothing."""
    device = usable_device(args.device)
    target = Path(args.evaluate)
    if target.is_file():
        cache = load_photos(target, short_side=args.short_side, holdout=args.holdout, train=False)
        crops = centre_crops(cache.held_out, args.eval_size)
    else:
        crops = load_eval_folder(target, args.eval_size)
    source = args.init if args.init is not None else BUILT_IN
    model = load_model(source).to(device)
    table = evaluate(model, crops, prediction=prediction_of(source), dtype=args.dtype, seed=args.seed)
    print(f"mean squared error of epsilon, {table.images} centre crops of {table.size} pixels")
    print(table.markdown())


def _run_photo(args: argparse.Namespace) -> None:
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    if args.evaluate is not None:
        _evaluate(args)
        return
    if args.data is None or args.output is None:
        raise TrainError("training needs --data and --output (or give --evaluate)")
    settings: dict[str, Any] = {field.name: getattr(args, field.name) for field in dataclasses.fields(TrainConfig)}
    settings["crops"] = tuple(settings["crops"])
    settings["t_range"] = tuple(settings["t_range"])
    settings["scales"] = tuple(settings["scales"])
    config = TrainConfig(**settings)
    train_photo(
        args.data,
        args.output,
        config,
        init=args.init,
        unet_config=args.config,
        resume=args.resume,
    )


def _add_paths(p: argparse.ArgumentParser) -> None:
    p.add_argument("--data", metavar="TAR", help="tar file of photographs")
    p.add_argument("--output", metavar="DIR", help="folder for the averaged weights and the state")
    p.add_argument("--init", metavar="DIR", help="diffusers folder to start from (or to evaluate)")
    p.add_argument("--config", metavar="JSON", help="UNet2DModel config of a fresh model")
    p.add_argument("--resume", action="store_true", help="go on from --output")
    p.add_argument(
        "--evaluate",
        metavar="PATH",
        help="train nothing: print the error table of --init (default: the built-in model) on a "
        "folder of images, or on the held-out photographs of a tar file",
    )
    p.add_argument("--eval-size", type=int, default=256, help="side of the centre crops")


def _add_learning(p: argparse.ArgumentParser, d: TrainConfig) -> None:
    p.add_argument("--lr", type=float, default=d.lr, help="peak learning rate")
    p.add_argument("--final-lr", type=float, default=d.final_lr, help="last rate / peak rate")
    p.add_argument("--warmup", type=int, default=d.warmup, help="warm-up steps")
    p.add_argument("--weight-decay", type=float, default=d.weight_decay, help="AdamW's")
    p.add_argument("--clip", type=float, default=d.clip, help="largest gradient norm")
    p.add_argument("--ema", type=float, default=d.ema, help="decay of the averaged weights")
    p.add_argument(
        "--t-range",
        type=int,
        nargs=2,
        metavar=("LOW", "HIGH"),
        default=list(d.t_range),
        help="timesteps drawn uniformly in log-SNR",
    )
    p.add_argument("--t-uniform", type=float, default=d.t_uniform, help="share of uniform t")
    p.add_argument("--prediction", choices=PREDICTIONS, default=d.prediction, help="what the network's output is")
    p.add_argument("--snr-power", type=float, default=d.snr_power, help="loss weight SNR**-power")


def _add_photo(commands: Any) -> None:
    d = TrainConfig()
    p = commands.add_parser(
        "photo",
        help="the unconditional photograph model",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.set_defaults(run=_run_photo)
    _add_paths(p)
    p.add_argument("--steps", type=int, help="steps in all")
    p.add_argument("--minutes", type=float, help="active minutes in all (pauses do not count)")
    p.add_argument("--stop-after", type=int, help="save and stop after this many steps of this run")
    p.add_argument("--batch", type=int, help="crops a step, of the first size (default: 32 on a CPU, a GPU's fill)")
    p.add_argument(
        "--crop",
        dest="crops",
        type=int,
        nargs="+",
        default=list(d.crops),
        help="crop sizes in pixels; each step draws one",
    )
    p.add_argument(
        "--scales",
        type=float,
        nargs="+",
        default=list(d.scales),
        help="shares of crops at full size, averaged down by 2, by 4, ...",
    )
    p.add_argument("--short-side", type=int, default=d.short_side, help="photographs' short side")
    p.add_argument("--holdout", type=int, default=d.holdout, help="photographs held out")
    p.add_argument(
        "--pages", type=float, default=d.pages, help="share of crops of drawn pictures: text, windows, diagrams, plots"
    )
    p.add_argument("--page-count", type=int, default=d.page_count, help="drawn pictures, if any")
    _add_learning(p, d)
    p.add_argument("--dtype", choices=DTYPES, default=d.dtype, help="autocast type; auto: bf16 where native")
    p.add_argument("--eager", action="store_true", help="do not compile the network on a GPU (a minute a crop size)")
    p.add_argument("--device", default=d.device, help="cpu, cuda, cuda:1, ...")
    p.add_argument("--threads", type=int, help="CPU threads")
    p.add_argument("--seed", type=int, default=d.seed, help="random seed")
    p.add_argument("--log-every", type=int, default=d.log_every, help="steps between log lines")
    p.add_argument("--save-minutes", type=float, default=d.save_minutes, help="between savings")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code (2 for an error the user caused)."""
    parser = argparse.ArgumentParser(prog="python -m ddcm_fast.models.train", description="Train the built-in models.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="MODEL")
    _add_photo(commands)
    digits.add_parser(commands)
    args = parser.parse_args(argv)
    try:
        args.run(args)
    except DDCMError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
