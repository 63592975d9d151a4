"""What compress and decompress share where they take many: options, workers, the run and what it says at the end."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddcm_fast.cli.arguments import progress
from ddcm_fast.cli.terminal import say
from ddcm_fast.errors import ConfigError, InputError, SomeFailedError
from ddcm_fast.files import STDIN, STDOUT, Kind

if TYPE_CHECKING:
    from ddcm_fast.bulk.run import Work
    from ddcm_fast.bulk.sources import Item


def add_many(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """The options of a run over many; their group."""
    group = parser.add_argument_group(
        "many at once: several inputs, folders, patterns or .tar archives, and a folder as the output"
    )
    group.add_argument(
        "--batch-size",
        type=int,
        metavar="N",
        help="of one size at a time; results are those of one by one (default: what is faster and fits into memory)",
    )
    group.add_argument("--limit", type=int, metavar="N", help="only the first N")
    group.add_argument("--retry-failed", action="store_true", help="try again what failed in the last run")
    group.add_argument(
        "--workers",
        metavar="I/N",
        help="be the I-th (from 0) of N that share the work; torchrun's and Slurm's variables say it by themselves",
    )
    group.add_argument("--engine", choices=("ray",), help="share the work out by Ray (needs ray), among --actors")
    group.add_argument("--actors", type=int, metavar="N", help="Ray's, one a GPU or N a machine (default: 2)")
    return group


def is_many(args: argparse.Namespace) -> bool:
    """Whether the command was asked for many."""
    from ddcm_fast.bulk.sources import is_many

    inputs = args.inputs
    if getattr(args, "dataset", None) is not None or len(inputs) != 1 or is_many(inputs[0]):
        return True
    return args.output not in (STDOUT, Path(os.devnull)) and args.output.is_dir()


def check(args: argparse.Namespace, alone: dict[str, Any]) -> None:
    """Raise for what a run over many cannot take; `alone`: option -> value of those for one input only."""
    for option, value in alone.items():
        if value is not None:
            raise ConfigError(f"{option} is for one input; leave it out, or take the inputs one by one")
    for path in (*args.inputs, args.output):
        if path in (STDIN, STDOUT):
            raise InputError("- stands for one file; name files and folders, or take the inputs one by one")
    if args.output.suffix and not args.output.is_dir():
        raise InputError(f"the results of many go into a folder, and {args.output} looks like a file; name a folder")
    if args.output.exists() and not args.output.is_dir():
        raise InputError(f"{args.output} is a file; name a folder")
    if args.limit is not None and args.limit < 1:
        raise ConfigError(f"--limit is {args.limit}; it must be at least 1")
    if args.batch_size is not None and args.batch_size < 1:
        raise ConfigError(f"--batch-size is {args.batch_size}; it must be at least 1")
    if args.actors is not None and (args.engine is None or args.actors < 1):
        raise ConfigError(f"--actors is {args.actors}; it must be at least 1, with --engine ray")


def refuse_options(args: argparse.Namespace) -> None:
    """Raise ConfigError for options of many in a command for one."""
    names = ("batch_size", "limit", "retry_failed", "workers", "engine", "actors", "split", "dry_run", "recipe")
    given = {name: getattr(args, name, None) for name in names}
    for name, value in given.items():
        if value:
            raise ConfigError(f"--{name.replace('_', '-')} is for many: give several inputs, or a folder as the output")


def worker(args: argparse.Namespace) -> tuple[int, int]:
    """(rank, workers): --workers I/N, else torchrun's or Slurm's. Raises ConfigError."""
    from ddcm_fast.bulk.sources import worker_of

    if args.workers is None:
        return worker_of(dict(os.environ))
    rank, _, count = args.workers.partition("/")
    if not (rank.isdecimal() and count.isdecimal() and int(rank) < int(count)):
        raise ConfigError(f"--workers is {args.workers!r}; give I/N, I from 0 to N - 1, as in 0/4")
    return int(rank), int(count)


#: A codec's batch size in a run, which hands over as many as are to be one batch.
WHOLE = 1 << 30


def device(args: argparse.Namespace) -> None:
    """Give each worker of a machine with several GPUs its own, by LOCAL_RANK or SLURM_LOCALID, if none was named."""
    import torch

    local = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", ""))
    if args.device is None and local.isdecimal() and torch.cuda.device_count() > 1:
        args.device = f"cuda:{int(local) % torch.cuda.device_count()}"


def settings(**what: Any) -> str:
    """A digest of all that results depend on beside their inputs."""
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:16]


def run(
    args: argparse.Namespace, items: list[Item], make: Callable[[], tuple[Work, str]], ending: str, kind: Kind
) -> None:
    """Run over the items and say how it went.

    make: loads what is needed, and gives the work on an item and the digest of its settings.

    Raises SomeFailedError if any failed.
    """
    from ddcm_fast.bulk import run as bulk
    from ddcm_fast.bulk.manifest import Manifest
    from ddcm_fast.bulk.sources import shard

    rank, workers = worker(args)
    device(args)
    chosen = items[: args.limit]
    mine = shard(chosen, rank, workers)
    manifest = Manifest(args.output, rank, workers)
    outputs = bulk.plan(mine, chosen, args.output, ending, kind, manifest, args.force)
    work, digest = make()
    count = bulk.run(*(mine, work, outputs, args.output, ending, digest, manifest, args.retry_failed, progress(args)))
    facts = {"output": str(args.output), "images": len(mine), **count.__dict__}
    text = f"{args.output}: {count.done} done, {count.skipped} were there, {count.failed} failed, {count.bytes} bytes"
    if getattr(args, "json", False):
        say(json.dumps(facts))
    elif not args.quiet:
        say(text)
    if count.failed:
        raise SomeFailedError(
            f"{count.failed} of {len(mine)} failed, as {manifest.path} says: use --retry-failed to try them again"
        )
