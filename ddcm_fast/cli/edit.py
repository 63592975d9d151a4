"""`ddcm edit`."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddcm_fast.cli.arguments import (
    add_coding,
    add_common,
    add_condition,
    condition_of,
    path_or,
    settings_of,
)
from ddcm_fast.cli.loading import load, load_for, make_codec
from ddcm_fast.cli.pictures import add_pair, read_image, write_pair
from ddcm_fast.cli.terminal import tell
from ddcm_fast.codec import container
from ddcm_fast.codec.config import APPLICATION_PRESET, DEFAULT_MODEL, preset
from ddcm_fast.errors import ConfigError, InputError
from ddcm_fast.files import STDIN, Outputs, is_regular, read
from ddcm_fast.sampling.condition import Condition

if TYPE_CHECKING:
    from ddcm_fast.codec.codec import Codec

_EPILOG = """examples:
  ddcm edit seven.png --model digits --label 7 --target-label 1 --target-guidance 3 --t-edit 60 80 --output-dir out
  ddcm edit out/seven.ddcm --target-label 9 --t-edit 70 --output-dir out    another target, no new encoding
  ddcm edit cat.png --model stabilityai/stable-diffusion-2-1 --prompt "a cat" --target-prompt "a dog" \\
      --t-edit 300 --output-dir out

A small t_edit changes much, one near the number of steps little.
"""


def add_parser(commands: Any) -> None:
    """The subcommand `edit`."""
    p = commands.add_parser(
        "edit",
        description="Encode an image under a source label or prompt and decode it with others from some step on. "
        "INPUT may be a .ddcm file, edited before or not.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("input", type=path_or(STDIN), help="an image, or a .ddcm file")
    p.add_argument("--output-dir", type=Path, required=True, help="where NAME_TARGET_STEP.png and .ddcm go")
    p.add_argument("--target-label", type=int, nargs="+", help="classes to edit towards")
    p.add_argument("--target-prompt", nargs="+", help="texts to edit towards")
    p.add_argument("--target-guidance", type=float, help="guidance scale of the targets (default: the source's)")
    p.add_argument("--t-edit", type=int, nargs="+", required=True, help="steps at which the target takes over")
    add_condition(p)
    add_coding(p)
    add_common(p)
    p.set_defaults(run=_run, preset=APPLICATION_PRESET, model=None)  # of a .ddcm file, the one that it names


def _run(args: argparse.Namespace) -> None:
    from ddcm_fast.tasks.edit import check_edit, edit

    targets = _targets(args)
    if not targets:
        raise ConfigError("an edit needs a target: give --target-label or --target-prompt")
    conditions = [condition for _, condition in targets]
    starts = list(dict.fromkeys(args.t_edit))
    outputs = Outputs([args.input], args.force, args.output_dir)
    names = [args.output_dir / f"{args.input.stem}_{name}_{start}.png" for name, _ in targets for start in starts]
    for name in names:
        add_pair(outputs, name)
    if not is_regular(args.input):
        raise InputError(f"{args.input} is no file; its name is needed for the results'")
    data, source = read(args.input, start=container.MAGIC), condition_of(args)
    if data.startswith(container.MAGIC):
        header, _ = container.read(data)
        codec = make_codec(args, load_for(args, header.model, header.dtype))
        check_edit(codec.model, header.config, conditions, starts)
    else:
        codec, data = _encode(args, outputs, source, conditions, starts)
        source = None
    for path, coded in zip(names, edit(codec, data, conditions, starts, source), strict=True):
        write_pair(outputs, path, coded)
        tell(f"{path} and {path.with_suffix('.ddcm').name}", args)


def _encode(
    args: argparse.Namespace,
    outputs: Outputs,
    source: Condition | None,
    conditions: list[Condition],
    starts: list[int],
) -> tuple[Codec, bytes]:
    """The file of a picture, under its own condition; it is written, too."""
    from ddcm_fast.tasks.edit import check_edit

    plain = args.output_dir / f"{args.input.stem}.png"
    add_pair(outputs, plain)
    image = read_image(args.input, args)
    model = load(args, args.model or DEFAULT_MODEL)
    codec = make_codec(args, model, preset(args.preset, **settings_of(args)))
    check_edit(model, codec.config, conditions, starts)
    coded = codec.encode(image, source)[0]
    write_pair(outputs, plain, coded)
    return codec, coded.data


def _targets(args: argparse.Namespace) -> list[tuple[str, Condition]]:
    """Targets and names for their files, which differ whatever the prompts."""
    scale = args.guidance_scale if args.target_guidance is None else args.target_guidance
    found = [(str(label), Condition(label=label, guidance_scale=scale)) for label in args.target_label or ()]
    for prompt in args.target_prompt or ():
        name = re.sub(r"\W+", "-", prompt).strip("-")[:40] or "target"
        found.append((name, Condition(prompt, args.negative_prompt, guidance_scale=scale)))
    named: dict[str, Condition] = {}
    for name, condition in found:
        unique, number = name, 1
        while unique.lower() in map(str.lower, named):
            number += 1
            unique = f"{name}-{number}"
        named[unique] = condition
    return list(named.items())
