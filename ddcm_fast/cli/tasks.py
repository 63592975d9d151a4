"""The commands `ddcm restore` and `ddcm edit`, and the options of `ddcm generate` that guide."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddcm_fast.codec.config import preset
from ddcm_fast.codec.container import FILE
from ddcm_fast.errors import ConfigError, InputError
from ddcm_fast.files import STDIN, STDOUT, Outputs, is_regular, read
from ddcm_fast.sampling.condition import Condition

if TYPE_CHECKING:
    from torch import Tensor

    from ddcm_fast.codec.codec import Codec, Encoded
    from ddcm_fast.sampling.model import DiffusionModel
    from ddcm_fast.tasks.operators import LinearOperator
    from ddcm_fast.tasks.perceptual import Restorer

_RESTORE_EPILOG = """examples:
  ddcm restore --task sr4 --sigma 0.02 small.png big.png            four times larger, and big.ddcm
  ddcm restore --task inpaint --mask known.png holes.png whole.png  known.png is white where pixels are known
  ddcm restore --task blur2 --simulate clean.png out.png            blur clean.png first, and print the PSNR
  ddcm restore --preset product --atoms 2000 --task color grey.png colour.png    more bits, closer to the measurement
  ddcm restore --restorer denoise:0.4 noisy.png clean.png           the model's own denoiser leads
  ddcm restore --restorer mmse.pt2 --trust --quality niqe bad.png good.png    unknown degradation, your own restorer

tasks:
"""

_EDIT_EPILOG = """examples:
  ddcm edit seven.png --model digits --label 7 --target-label 1 --target-guidance 3 --t-edit 60 80 --output-dir out
  ddcm edit out/seven.ddcm --target-label 9 --t-edit 70 --output-dir out    another target, no new encoding
  ddcm edit cat.png --model stabilityai/stable-diffusion-2-1 --prompt "a cat" --target-prompt "a dog" \\
      --t-edit 300 --output-dir out

A small t_edit changes much, one near the number of steps little.
"""

_CODING_PRESET = "ddcm"  # the paper's: its restoration objective is exact for one atom a step


# ---- conditions ----------------------------------------------------------------------------------


def add_condition(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Options that say what a conditional model is told; their group."""
    group = parser.add_argument_group("what a conditional model is told")
    group.add_argument("--label", type=int, help="class, of a class-conditional model")
    group.add_argument("--prompt", help="text, of a text-to-image model")
    group.add_argument("--negative-prompt", help="text to stay away from")
    group.add_argument("--guidance-scale", type=float, help="of classifier-free guidance (default: the model's own)")
    return group


def condition_of(args: argparse.Namespace) -> Condition | None:
    """The condition that the options give, None for none."""
    given = Condition(args.prompt, args.negative_prompt, args.label, args.guidance_scale)
    return given if given else None


# ---- generate ------------------------------------------------------------------------------------


def add_guidance(parser: argparse.ArgumentParser) -> None:
    """Options of `generate`: conditions, and compressed guidance in place of a guidance scale."""
    add_condition(parser)
    parser.add_argument(
        "--ccfg",
        type=int,
        metavar="N",
        help="compressed classifier-free guidance towards the label or prompt: at each step the best of N random "
        "atoms (the paper: 2 to 9 of K = 64); the file then decodes without label and prompt",
    )


def generate(codec: Codec, args: argparse.Namespace, height: int, width: int) -> list[Encoded]:
    """The images of `ddcm generate`."""
    condition = condition_of(args)
    if args.ccfg is None:
        return codec.generate(args.count, height, width, args.draw_seed, condition)
    if condition is None:
        raise ConfigError("--ccfg guides towards a condition: give --label or --prompt")
    from ddcm_fast.tasks.guidance import ccfg

    chooser = ccfg(codec.model.complete_condition(condition), args.ccfg, args.draw_seed)
    return codec.sample(chooser, height, width, args.count)


# ---- restore -------------------------------------------------------------------------------------


def _grey_or_not(task: str, model: DiffusionModel) -> int:
    return 1 if task == "color" else model.channels


def _mask(path: Path | None) -> Tensor | None:
    if path is None:
        return None
    from ddcm_fast.cli import command as cli
    from ddcm_fast.codec.images import to_mask

    return (to_mask(cli.read_image(path, background="black")) > 0.5).float()


def _simulate(args: argparse.Namespace, h: LinearOperator, model: DiffusionModel) -> tuple[Tensor, Tensor]:
    """(y, x) from a clean picture x, cut so that H can take it."""
    import torch

    from ddcm_fast.cli import command as cli
    from ddcm_fast.codec.images import to_tensor
    from ddcm_fast.tasks.posterior import check_sigma

    x = to_tensor(cli.read_image(args.input), model.channels)
    factor = getattr(h, "factor", 1)
    height, width = (side // factor * factor for side in x.shape[2:])
    if not height or not width:
        size = f"{x.shape[3]}x{x.shape[2]}"
        raise InputError(f"{args.input} has {size} pixels, too few to make it {factor} times smaller")
    check_sigma(args.sigma)
    x = x[..., :height, :width]
    y = h.forward(x)
    generator = torch.Generator("cpu").manual_seed(args.draw_seed)
    return y + args.sigma * torch.randn(y.shape, generator=generator, dtype=torch.float32, device="cpu"), x


def _measured(args: argparse.Namespace) -> Path:
    """Where the degraded picture of --simulate goes."""
    return args.output.with_name(f"{args.output.stem}_measured.png")


def _run_task(args: argparse.Namespace, codec: Codec, outputs: Outputs) -> tuple[Encoded, str]:
    from ddcm_fast.cli import command as cli
    from ddcm_fast.codec.images import psnr, to_pil, to_tensor
    from ddcm_fast.tasks.operators import operator
    from ddcm_fast.tasks.posterior import restore

    h = operator(args.task, _mask(args.mask))
    truth = None
    if args.simulate:
        y, truth = _simulate(args, h, codec.model)
    else:
        y = to_tensor(cli.read_image(args.input), _grey_or_not(args.task, codec.model))
    coded = restore(codec, y, h, args.sigma, args.shortlist, args.draw_seed)
    if args.simulate:
        outputs.write(_measured(args), cli.image_bytes(to_pil(h.project(y).clamp(-1, 1)[0]), "measured.png"))
    image = coded.reconstruction.cpu()
    gap = float(h.gap(y, image[None]))
    said = f", rms(y - Hx) {gap:.4f}"
    if truth is not None:
        base = h.estimate(y, truth.shape[2], truth.shape[3]).clamp(-1, 1)
        said += f", PSNR {psnr(image, truth[0]):.2f} dB (simple estimate {psnr(base, truth):.2f} dB)"
    return coded, said


def _denoiser(args: argparse.Namespace) -> float | None:
    """SIGMA of --restorer denoise:SIGMA, None for a file."""
    found = re.fullmatch(r"denoise:(\d*\.?\d+)", args.restorer or "")
    return float(found[1]) if found else None


def _restorer(args: argparse.Namespace, model: DiffusionModel) -> Restorer:
    from ddcm_fast.tasks.perceptual import load_restorer, model_denoiser

    sigma = _denoiser(args)
    return load_restorer(args.restorer, model.device, args.trust) if sigma is None else model_denoiser(model, sigma)


def _restore(args: argparse.Namespace) -> None:
    from ddcm_fast.cli import command as cli
    from ddcm_fast.codec.codec import Codec
    from ddcm_fast.codec.images import MAX_PIXELS, MAX_PIXELS_TO_CUT
    from ddcm_fast.tasks.perceptual import FACE_METRIC, align_faces, load_quality, restore_blind

    if (args.task is None) == (args.restorer is None):
        raise ConfigError("give --task for a known degradation or --restorer for an unknown one, and not both")
    known, blind = (args.sigma, args.mask, args.simulate), (args.quality, args.faces, args.align)
    if args.task is None and any(known):
        raise ConfigError("--sigma, --mask and --simulate belong to --task; a restorer is not told of the degradation")
    if args.task is not None and any(blind):
        raise ConfigError("--quality, --faces and --align belong to --restorer; leave them out with --task")
    own = Path(args.restorer) if args.restorer and _denoiser(args) is None else None
    outputs = Outputs([args.input, args.mask, own], args.force)
    add(outputs, args.output)
    if args.simulate:
        outputs.add(_measured(args), cli.image_kind("measured.png"))
    settings = cli.settings(args)
    if args.faces:
        settings = {**settings, **{k: v for k, v in (("K", 4096), ("T", 1000)) if settings[k] is None}}
        args.quality = args.quality or FACE_METRIC
    model = cli.load(args, args.model, args.dtype)
    progress = False if args.quiet else None
    codec = Codec(model, preset(args.preset, **settings), args.backend, progress=progress, limits=cli.limits_of(args))
    names = [args.output]
    if args.task is not None:
        results = [_run_task(args, codec, outputs)]
    else:
        restorer = _restorer(args, model)
        quality = load_quality(args.quality, model.device) if args.quality else None
        image = cli.read_image(args.input, max_pixels=MAX_PIXELS_TO_CUT if args.align else MAX_PIXELS)
        images = align_faces(image, model.device) if args.align else [image]
        for number in range(1, len(images)):
            names.append(args.output.with_name(f"{args.output.stem}_{number}{args.output.suffix}"))
            add(outputs, names[-1])
        results = [(restore_blind(codec, i, restorer, quality, args.coefficient, args.draw_seed), "") for i in images]
    for name, (coded, said) in zip(names, results, strict=True):
        write(outputs, name, coded)
        cli.tell(f"{name} and {name.with_suffix('.ddcm').name}: {coded.bpp:.4f} bpp{said}", args)


def add(outputs: Outputs, image: Path) -> None:
    """Plan an image file and, beside it with the ending .ddcm, the file that decodes to it."""
    from ddcm_fast.cli import command as cli

    if image == STDOUT or not is_regular(image):
        raise InputError(f"a .ddcm file goes beside the image, so that {image} cannot be the image; name a file")
    outputs.add(image, cli.image_kind(image.name))
    outputs.add(image.with_suffix(".ddcm"), FILE)


def write(outputs: Outputs, image: Path, coded: Encoded) -> None:
    """Write the two files of `add`."""
    from ddcm_fast.cli import command as cli

    outputs.write(image, cli.image_bytes(coded.image, image.name))
    outputs.write(image.with_suffix(".ddcm"), coded.data)


# ---- edit ----------------------------------------------------------------------------------------


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


def _edit(args: argparse.Namespace) -> None:
    from ddcm_fast.cli import command as cli
    from ddcm_fast.codec import container
    from ddcm_fast.codec.codec import Codec
    from ddcm_fast.tasks.edit import check_edit, edit

    targets = _targets(args)
    if not targets:
        raise ConfigError("an edit needs a target: give --target-label or --target-prompt")
    conditions = [condition for _, condition in targets]
    starts = list(dict.fromkeys(args.t_edit))
    source = condition_of(args)
    quiet = False if args.quiet else None
    stem = args.input.stem
    outputs = Outputs([args.input], args.force, args.output_dir)
    names = [args.output_dir / f"{stem}_{name}_{start}.png" for name, _ in targets for start in starts]
    for name in names:
        add(outputs, name)
    if not is_regular(args.input):
        raise InputError(f"{args.input} is no file; its name is needed for the results'")
    data = read(args.input, start=container.MAGIC)
    if data.startswith(container.MAGIC):
        header, _ = container.read(data)
        model = cli.load_for(args, header.model, header.dtype)
        codec = Codec(model, backend=args.backend, progress=quiet, limits=cli.limits_of(args))
        check_edit(codec.model, header.config, conditions, starts)
    else:
        plain = args.output_dir / f"{stem}.png"
        add(outputs, plain)
        image = cli.read_image(args.input)
        model = cli.load(args, args.model or cli.DEFAULT_MODEL, args.dtype)
        config = preset(args.preset, **cli.settings(args))
        codec = Codec(model, config, args.backend, progress=quiet, limits=cli.limits_of(args))
        check_edit(model, codec.config, conditions, starts)
        coded = codec.encode(image, source)[0]
        write(outputs, plain, coded)
        data, source = coded.data, None
    for path, coded in zip(names, edit(codec, data, conditions, starts, source), strict=True):
        write(outputs, path, coded)
        cli.tell(f"{path} and {path.with_suffix('.ddcm').name}", args)


# ---- parsers -------------------------------------------------------------------------------------


def add_parsers(commands: Any) -> None:
    """The subcommands `restore` and `edit` of `ddcm`."""
    from ddcm_fast.cli.command import IMAGE_OUTPUT, add_coding, add_common, path_or, seed
    from ddcm_fast.tasks.operators import TASKS
    from ddcm_fast.tasks.posterior import DEFAULT_SHORTLIST

    p = commands.add_parser(
        "restore",
        help="restore an image, compressed",
        description="Restore an image; beside OUTPUT goes the .ddcm file that decodes to it without INPUT.",
        epilog=_RESTORE_EPILOG + "\n".join(f"  {name:<30} {text}" for name, text in TASKS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("input", type=path_or(STDIN), help="the degraded image (the small one, the grey one, ...)")
    p.add_argument("output", type=path_or(STDOUT), help=IMAGE_OUTPUT)
    known = p.add_argument_group("known degradation y = H x + n (compressed posterior sampling)")
    known.add_argument("--task", help="sr4, srbox2, color, blur2, motion9@45, inpaint, denoise, ... (see below)")
    known.add_argument("--sigma", type=float, default=0.0, help="standard deviation of the noise n, of values in -1..1")
    known.add_argument("--mask", type=Path, help="of the task inpaint: an image, white where pixels are known")
    known.add_argument("--shortlist", type=int, default=DEFAULT_SHORTLIST, help="atoms rescored (default %(default)s)")
    known.add_argument("--simulate", action="store_true", help="INPUT is clean: degrade it first, and print the PSNR")
    blind = p.add_argument_group("unknown degradation (compressed blind restoration)")
    blind.add_argument(
        "--restorer",
        help="denoise:SIGMA (the model), or with --trust a torch.export (.pt2) or TorchScript file, which can run code",
    )
    blind.add_argument("--quality", help="no-reference metric of pyiqa: niqe, clipiqa+, topiq_nr-face, ...")
    blind.add_argument("--coefficient", type=float, default=1.0, help="weight of the metric (default %(default)s)")
    blind.add_argument("--faces", action="store_true", help="the paper's settings for faces: T = 1000, K = 4096, niqe")
    blind.add_argument("--align", action="store_true", help="cut out and align faces first (facexlib)")
    p.add_argument("--draw-seed", type=seed, default=0, help="of random choices (default: 0)")
    add_coding(p)
    add_common(p)
    p.set_defaults(run=_restore, preset=_CODING_PRESET)

    p = commands.add_parser(
        "edit",
        help="edit an image by its label or prompt, compressed",
        description="Encode an image under a source label or prompt and decode it with others from some step on. "
        "INPUT may be a .ddcm file, edited before or not.",
        epilog=_EDIT_EPILOG,
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
    p.set_defaults(run=_edit, preset=_CODING_PRESET, model=None)  # of a .ddcm file, the one that it names
