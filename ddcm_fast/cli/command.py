"""The `ddcm` command: its parser, and how a command is run."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Collection, Sequence
from importlib import import_module
from typing import Any, NoReturn

from ddcm_fast import __version__
from ddcm_fast.cli.arguments import integer, number
from ddcm_fast.cli.terminal import EXIT_HELP, MISTAKE, complain, say, telling_more
from ddcm_fast.errors import DDCMWarning, MissingExtraError

_EPILOG = f"""examples:
  ddcm compress photo.jpg photo.ddcm             compress with the built-in model
  ddcm decompress photo.ddcm photo.png           and back
  ddcm info photo.ddcm                           what is in the file
  ddcm compress photo.jpg photo.ddcm --bpp 0.5   at most half a bit a pixel
  ddcm compress photo.jpg photo.ddcm --psnr 30   as small as 30 dB allow
  ddcm decompress photo.ddcm early.png --first 30%
  ddcm compress photo.jpg small.ddcm --preset ddcm -T 200 -K 65536
  ddcm compress photos/ "scans/*.tif" coded/     many into a folder; the same command goes on after an interruption
  ddcm decompress coded/ decoded/
  ddcm compress - - < photo.jpg | ddcm decompress - early.png        "-" is standard input or output

An input is never overwritten; an existing file is replaced only by one of its own kind, or with --force.
{EXIT_HELP}
"""

#: Command, which is also its module's name -> the line about it, in the order of --help.
COMMANDS = {
    "compress": "an image -> a .ddcm file",
    "decompress": "a .ddcm file -> an image",
    "info": "what is in a .ddcm file",
    "calibrate": "measure a model's information curve",
    "generate": "random images and their files",
    "restore": "restore an image, compressed",
    "edit": "edit an image by its label or prompt, compressed",
    "eval": "codecs side by side: rates, metrics, curves",
    "score": "two folders of images, compared",
    "app": "a web page to compress, generate and edit pictures",
    "doctor": "versions, devices, backends and their self-tests",
    "bench": "how fast the codebook operations are here",
}


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with the arguments; argparse prints the usage before."""

    def __init__(self, *args: Any, **how: Any) -> None:
        super().__init__(*args, **how)
        # argparse's own words are "invalid int value", which do not help with 1e6.
        self.register("type", int, integer)
        self.register("type", float, number)

    def _print_message(self, message: str, file: Any = None) -> None:
        """argparse's own passes over a disk that is full, and the status is 0."""
        stream = file or sys.stderr
        if message and stream is not None:
            stream.write(message)

    def error(self, message: str) -> NoReturn:
        complain(f"{message} (see {self.prog} --help)")
        self.exit(MISTAKE)


class _Commands:
    """The subcommands of a parser, as the modules of the commands get them."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self._action = parser.add_subparsers(dest="command", metavar="COMMAND")

    def add_parser(self, name: str, **how: Any) -> argparse.ArgumentParser:
        return self._action.add_parser(name, help=COMMANDS[name], **how)


class _Version(argparse.Action):
    """--version, with what is behind it."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        import torch

        from ddcm_fast.codebook import backends
        from ddcm_fast.codebook.law import NOISE_LAW_VERSION
        from ddcm_fast.codec.container import FORMAT_VERSION
        from ddcm_fast.models.loading import default_device

        device = default_device()
        say(f"ddcm-fast {__version__}, file format {FORMAT_VERSION}, noise law {NOISE_LAW_VERSION}")
        say(f"Python {sys.version.split()[0]}, torch {torch.__version__}")
        say(f"backends on {device}: {', '.join(backends.available(device))}")
        parser.exit()


class _Completion(argparse.Action):
    """--print-completion, from the whole parser."""

    def __call__(self, parser: argparse.ArgumentParser, _: Any, shell: Any, __: Any = None) -> None:
        try:
            shtab = import_module("shtab")
        except ImportError as error:
            raise MissingExtraError("completion needs shtab: pip install 'ddcm-fast[completion]'") from error
        print(shtab.complete(build_parser(), shell))
        parser.exit()


def build_parser(commands: Collection[str] = COMMANDS.keys()) -> argparse.ArgumentParser:
    """The command line's parser: all commands by name, and the options of `commands`, whose modules it imports."""
    parser = _Parser(
        prog="ddcm",
        description="Compress images with a pretrained diffusion model and codebook noise (DDCM).",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="what is installed and works here")
    parser.add_argument(
        "--print-completion",
        action=_Completion,
        choices=("bash", "zsh", "tcsh"),
        metavar="SHELL",
        help="a script for tab completion in bash, zsh or tcsh (needs shtab)",
    )
    group = _Commands(parser)
    for name in COMMANDS:
        if name in commands:
            import_module(f"ddcm_fast.cli.{name}").add_parser(group)
        else:
            group.add_parser(name)
    return parser


def run(argv: Sequence[str] | None = None) -> None:
    """Run a command. Raises SystemExit for arguments that are none, and whatever the command raises."""
    # What a library has to say of an error is in our own line; its log would only surround it.
    for library in ("DIFFUSERS", "TRANSFORMERS", "HF_HUB"):
        os.environ.setdefault(f"{library}_VERBOSITY", "critical")
    words = sys.argv[1:] if argv is None else argv
    parser = build_parser([word for word in words if word in COMMANDS][:1])
    args = parser.parse_args(words)
    if args.command is None:
        parser.print_help()
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other libraries' are for their developers
        warnings.simplefilter("always", DDCMWarning)
        warnings.showwarning = lambda message, *_, **__: complain(f"warning: {message}")
        with telling_more(getattr(args, "verbose", False)):
            args.run(args)
