"""`ddcm app`."""

from __future__ import annotations

import argparse
import socket
import sys
from dataclasses import replace
from typing import Any

from ddcm_fast.cli.arguments import add_common, limits_of
from ddcm_fast.cli.ending import ending, stay
from ddcm_fast.cli.loading import load
from ddcm_fast.cli.terminal import tell
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
    if not 16 <= args.max_side <= 4096:
        raise InputError(f"--max-side is {args.max_side}; it must be from 16 to 4096")
    if not 1 <= args.port <= 65535:
        raise InputError(f"--port is {args.port}; it must be from 1 to 65535")
    _check_address(args.host, args.port)
    limits = limits_of(args)
    if args.max_pixels is None:
        limits = replace(limits, pixels=args.max_side**2)
    given = {"--device": args.device, "--dtype": args.dtype}
    options = [word for name, value in given.items() if value is not None for word in (name, value)]
    options += ["--trust"] if args.trust else []
    with ending():
        from ddcm_fast.app.page import build, gradio, launch

        gradio()
        page = build(load(args, args.model), limits, args.backend, options)
        _, url, _ = launch(page, server_name=args.host, server_port=args.port, quiet=True, prevent_thread_lock=True)
        tell(f"the page is at {url} (Ctrl-C ends it)", args)
        if sys.stdout is not None:
            sys.stdout.flush()
        stay(page)


def _check_address(host: str, port: int) -> None:
    """Raise InputError where nothing can be served; gradio would say so only after the model is loaded."""
    try:
        family, kind, *_, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(address)
    except (OSError, UnicodeError) as error:
        said = error.strerror if isinstance(error, OSError) else error
        raise InputError(
            f"cannot serve at {host}:{port} ({said}); choose another --port, and as --host an address of this machine"
        ) from error
