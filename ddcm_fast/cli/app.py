"""`ddcm app`."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from ddcm_fast.cli.arguments import add_common, limits_of
from ddcm_fast.cli.loading import load
from ddcm_fast.codec.config import DEFAULT_MODEL
from ddcm_fast.errors import InputError


def add_parser(commands: Any) -> None:
    """The subcommand `app`."""
    p = commands.add_parser(
        "app", description="Serve a page to compress, decompress, generate and edit pictures (needs gradio)."
    )
    p.add_argument("--model", default=DEFAULT_MODEL, help="built-in model, model folder or hub id (default: photo)")
    p.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine only)")
    p.add_argument("--port", type=int, default=7860, help="default: %(default)s")
    p.add_argument(
        "--max-side",
        type=int,
        default=512,
        help="most pixels, as a square: larger pictures are made smaller; --max-pixels replaces it (default: 512)",
    )
    add_common(p)
    p.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    from ddcm_fast.app.page import build, gradio, launch

    if not 16 <= args.max_side <= 4096:
        raise InputError(f"--max-side is {args.max_side}; it must be from 16 to 4096")
    gradio()
    limits = limits_of(args)
    if args.max_pixels is None:
        limits = replace(limits, pixels=args.max_side**2)
    given = {"--device": args.device, "--dtype": args.dtype}
    options = [word for name, value in given.items() if value is not None for word in (name, value)]
    options += ["--trust"] if args.trust else []
    page = build(load(args, args.model), limits, args.backend, options)
    launch(page, server_name=args.host, server_port=args.port, quiet=args.quiet)
