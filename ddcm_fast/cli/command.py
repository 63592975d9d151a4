"""The `ddcm` command: its parser, and how a command is run."""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Sequence
from typing import NoReturn

from ddcm_fast import __version__
from ddcm_fast.cli import calibrate, compress, decompress, edit, generate, info, restore
from ddcm_fast.cli.terminal import EXIT_HELP, MISTAKE, complain, guarded
from ddcm_fast.codec.config import PRESETS
from ddcm_fast.errors import DDCMWarning

_EPILOG = """examples:
  ddcm compress photo.jpg photo.ddcm             compress with the built-in model
  ddcm decompress photo.ddcm photo.png           and back
  ddcm info photo.ddcm                           what is in the file
  ddcm compress photo.jpg photo.ddcm --bpp 0.5   at most half a bit a pixel
  ddcm compress photo.jpg photo.ddcm --psnr 30   as small as 30 dB allow
  ddcm decompress photo.ddcm early.png --first 30%
  ddcm compress photo.jpg small.ddcm --preset ddcm -T 200 -K 65536
  ddcm compress - - < photo.jpg | ddcm decompress - early.png        "-" is standard input or output

Presets: {presets}.
An input is never overwritten; an existing file is replaced only by one of its own kind, or with --force.
{status}
"""

#: In the order in which --help lists them.
_COMMANDS = (compress, decompress, info, calibrate, generate, restore, edit)


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with the arguments; argparse prints the usage before."""

    def error(self, message: str) -> NoReturn:
        complain(f"{message} (see {self.prog} --help)")
        self.exit(MISTAKE)


def build_parser() -> argparse.ArgumentParser:
    """The command line's parser."""
    parser = _Parser(
        prog="ddcm",
        description="Compress images with a pretrained diffusion model and codebook noise (DDCM).",
        epilog=_EPILOG.format(presets=", ".join(PRESETS), status=EXIT_HELP),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ddcm-fast {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in _COMMANDS:
        module.add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Returns its exit status (see terminal); an error is one line on standard error."""
    # What a library has to say of an error is in our own line; its log would only surround it.
    for library in ("DIFFUSERS", "TRANSFORMERS", "HF_HUB"):
        os.environ.setdefault(f"{library}_VERBOSITY", "critical")
    return guarded(lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> None:
    args = build_parser().parse_args(argv)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other libraries' are for their developers
        warnings.simplefilter("always", DDCMWarning)
        warnings.showwarning = lambda message, *_, **__: complain(f"warning: {message}")
        args.run(args)
