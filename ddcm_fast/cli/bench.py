"""`ddcm bench`: how fast the codebook operations are here, beside the usual ways."""

from __future__ import annotations

import argparse
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ddcm_fast.cli.arguments import path_or
from ddcm_fast.cli.terminal import say
from ddcm_fast.codebook import backends
from ddcm_fast.codebook.law import KINDS
from ddcm_fast.files import JSON, STDOUT, Outputs, picture
from ddcm_fast.measure.cases import (
    ATOMS,
    BASELINES,
    BATCHES,
    DIMS,
    OPERATIONS,
    OTHER_BATCHES,
    OTHER_SIZES,
    SIZES,
    sweep,
)
from ddcm_fast.measure.plot import check, plot
from ddcm_fast.measure.roofs import measure_roofs
from ddcm_fast.measure.run import Row, amount, machine, run

#: With --quick: K, D and seconds a case.
_QUICK_SIZES, _QUICK_DIMS, _QUICK_SECONDS = (1 << 8, 1 << 10), (1 << 11,), 0.02

_SECONDS, _LONGEST = 0.3, 1.0


def _power(count: int) -> str:
    return f"2^{count.bit_length() - 1}" if count >= 64 and count & (count - 1) == 0 else str(count)


def _powers(counts: tuple[int, ...]) -> str:
    return ",".join(map(_power, counts))


def counts(text: str) -> tuple[int, ...]:
    """The type of numbers on the command line: 4096,65536 or 2^12,2^16."""
    found = []
    for part in text.split(","):
        match = re.fullmatch(r"2\^(\d{1,2})|(\d{1,18})", part)
        value = 0 if match is None else 1 << int(match[1]) if match[1] else int(match[2])
        if value < 1:
            raise argparse.ArgumentTypeError(f"{text!r} are no numbers above 0, as in 4096,65536 or 2^12,2^16")
        found.append(value)
    return tuple(dict.fromkeys(found))


def names(what: str, known: tuple[str, ...]) -> Callable[[str], tuple[str, ...]]:
    """The type of some of the known names on the command line, with commas."""

    def read(text: str) -> tuple[str, ...]:
        for name in text.split(","):
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is no {what}; choose among {', '.join(known)}")
        return tuple(dict.fromkeys(text.split(",")))

    return read


def device(text: str) -> torch.device:
    """The type of a device on the command line: one that is here."""
    gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    here = ["cpu", *(["cuda"] if gpus else []), *gpus]
    if text not in here:
        raise argparse.ArgumentTypeError(f"{text!r} is not here; choose among {', '.join(here)}")
    return torch.device(text)


def duration(text: str) -> float:
    """The type of seconds on the command line."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds, as in 0.5")
    return value


def add_parser(commands: Any) -> None:
    """The subcommand `bench`."""
    about = "; ".join(f"{name}: {text}" for name, text in BASELINES.items())
    p = commands.add_parser(
        "bench",
        description="Time the codebook operations on this machine, every backend that serves and what one would "
        f"otherwise do ({about}). Lists have commas; docs/kernels/benchmarks.md says what the columns mean.",
    )
    p.add_argument(
        "--K",
        dest="sizes",
        type=counts,
        help=f"atoms (default: {_powers(SIZES)} of search, {_powers(OTHER_SIZES)} of the others)",
    )
    p.add_argument("--D", dest="dims", type=counts, help=f"entries of an image (default: {_powers(DIMS)})")
    p.add_argument(
        "--B",
        dest="batches",
        type=counts,
        help=f"images (default: {_powers(BATCHES)} of search, {_powers(OTHER_BATCHES)} of the others)",
    )
    p.add_argument("--G", dest="groups", type=counts, default=(1,), help="groups, of our own codebooks (default: 1)")
    p.add_argument("--M", dest="atoms", type=int, default=ATOMS, help="atoms of topk, combine (default: %(default)s)")
    p.add_argument("--kind", type=names("kind", KINDS), default=KINDS, help=f"{', '.join(KINDS)} (default: all)")
    known = (*backends.names(), *BASELINES)
    p.add_argument(
        "--backend",
        type=names("backend or baseline", known),
        help=f"{', '.join(known)} (default: those that serve the device, and the baselines)",
    )
    operations = tuple(OPERATIONS)
    p.add_argument("--op", type=names("operation", operations), help=f"{', '.join(operations)} (default: all)")
    p.add_argument("--device", type=device, help="cpu or cuda (default: a GPU if there is one)")
    p.add_argument("--seconds", type=duration, help=f"to time each case for (default: {_SECONDS})")
    p.add_argument(
        "--longest",
        type=duration,
        default=_LONGEST,
        help="leave out what takes more seconds a call (default: %(default)s)",
    )
    p.add_argument("--quick", action="store_true", help="small K and D and short times, to see that it works")
    p.add_argument("--json", type=path_or(STDOUT), metavar="FILE", help="all numbers; - is standard output")
    p.add_argument("--plot", type=Path, metavar="FILE.png", help="a roofline and the searches against K")
    p.add_argument("--force", action="store_true", help="replace existing files of another kind")
    p.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    outputs = Outputs(force=args.force)
    if args.json is not None:
        outputs.add(args.json, JSON)
    if args.plot is not None:
        check()
        outputs.add(args.plot, picture("PNG"))
    where = args.device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sizes, dims, seconds = args.sizes, args.dims, args.seconds
    if args.quick:
        sizes, dims = sizes or _QUICK_SIZES, dims or _QUICK_DIMS
        seconds = _QUICK_SECONDS if seconds is None else seconds
    cases = sweep(where, args.op, args.backend, args.kind, sizes, dims or DIMS, args.batches, args.groups, args.atoms)
    here = machine(where)
    quiet = args.json == STDOUT  # the numbers are the output
    if not quiet:
        say(f"{here['name']}, {here['threads']} threads, torch {here['torch']}, ddcm-fast {here['ddcm-fast']}")
    roofs = measure_roofs(where)
    if not quiet:
        dtype = str(roofs.dtype).removeprefix("torch.")
        say(f"measured: {roofs.products_per_s:.2e} products/s ({dtype} matrices), {roofs.bytes_per_s:.2e} bytes/s read")
        say(_HEADER)
    with tqdm(total=len(cases), disable=None, desc="bench", unit="case", leave=False) as bar:

        def told(row: Row) -> None:
            if not quiet:
                with tqdm.external_write_mode():
                    say(_line(row))
            bar.update()

        rows = run(cases, roofs, _SECONDS if seconds is None else seconds, args.longest, told)
    if args.json is not None:
        facts = {
            "command": _command(args),
            "machine": here,
            "measured": {
                "dtype": str(roofs.dtype).removeprefix("torch."),
                "products_per_s": roofs.products_per_s,
                "bytes_per_s": roofs.bytes_per_s,
            },
            "rows": [row.facts() for row in rows],
        }
        outputs.write(args.json, (json.dumps(facts, indent=1) + "\n").encode())
    if args.plot is not None:
        outputs.write(args.plot, plot(rows, roofs, f"{here['name']}, {here['threads']} threads"))


def _command(args: argparse.Namespace) -> str:
    """The command with what was asked for, but for where its outputs go."""
    words = ["ddcm", "bench"]
    for option, given in (
        *(("--K", args.sizes), ("--D", args.dims), ("--B", args.batches)),
        ("--G", args.groups if args.groups != (1,) else None),
        ("--M", (args.atoms,) if args.atoms != ATOMS else None),
        ("--kind", args.kind if args.kind != KINDS else None),
        *(("--backend", args.backend), ("--op", args.op)),
        ("--device", None if args.device is None else (args.device,)),
        ("--seconds", None if args.seconds is None else (args.seconds,)),
        ("--longest", (args.longest,) if args.longest != _LONGEST else None),
    ):
        if given is not None:
            words += [option, ",".join(map(str, given))]
    return shlex.join([*words, *(["--quick"] if args.quick else [])])


_HEADER = (
    f"{'op':8}{'by':10}{'kind':10}{'K':>6}{'D':>6}{'B':>5}{'G':>5}{'M':>5}{'ms':>12}{'entries/s':>11}{'x rows/s':>10}"
    f"{'of bound':>10}  peak memory"
)


def _line(row: Row) -> str:
    case = row.case
    size = "-" if case.op == "rotate" or case.by == "fresh" else _power(case.size)
    numbers = f"{size:>6}{_power(case.dim):>6}{case.batch:>5}{case.groups:>5}{case.atoms:>5}"
    start = f"{case.op:8}{case.by:10}{case.kind:10}{numbers}"
    if row.timing is None:
        return f"{start}  {row.skipped}"
    fraction = "-" if row.fraction is None else f"{row.fraction:.2g}"
    peak = "-" if row.peak_bytes is None else amount(row.peak_bytes)
    return (
        f"{start}{row.timing.seconds * 1e3:12.4f}{row.entries_per_s:11.2e}{row.products_per_s:10.2e}"
        f"{fraction:>10}  {peak}"
    )
