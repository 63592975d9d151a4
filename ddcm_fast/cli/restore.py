"""`ddcm restore`."""

from __future__ import annotations

import argparse
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddcm_fast.cli.arguments import (
    add_coding,
    add_common,
    path_or,
    seed,
    settings_of,
)
from ddcm_fast.cli.loading import load, make_codec
from ddcm_fast.cli.pictures import OUTPUT_HELP, add_pair, image_bytes, image_kind, read_image, write_pair
from ddcm_fast.cli.terminal import tell
from ddcm_fast.codec.config import APPLICATION_PRESET, preset
from ddcm_fast.errors import ConfigError, InputError
from ddcm_fast.files import STDIN, STDOUT, Outputs
from ddcm_fast.tasks.operators import TASKS
from ddcm_fast.tasks.posterior import DEFAULT_SHORTLIST

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from ddcm_fast.codec.codec import Codec, Encoded
    from ddcm_fast.sampling.model import DiffusionModel
    from ddcm_fast.tasks.operators import LinearOperator
    from ddcm_fast.tasks.restorers import Restorer

_EPILOG = """examples:
  ddcm restore --task sr4 --sigma 0.02 small.png big.png            four times larger, and big.ddcm
  ddcm restore --task inpaint --mask known.png holes.png whole.png  known.png is white where pixels are known
  ddcm restore --task blur2 --simulate clean.png out.png            blur clean.png first, and print the PSNR
  ddcm restore --preset product --atoms 2000 --task color grey.png colour.png    more bits, closer to the measurement
  ddcm restore --restorer denoise:0.4 noisy.png clean.png           the model's own denoiser leads
  ddcm restore --restorer mmse.pt2 --trust --quality niqe bad.png good.png    unknown degradation, your own restorer

tasks:
"""


def add_parser(commands: Any) -> None:
    """The subcommand `restore`."""
    p = commands.add_parser(
        "restore",
        description="Restore an image; beside OUTPUT goes the .ddcm file that decodes to it without INPUT.",
        epilog=_EPILOG + "\n".join(f"  {name:<30} {text}" for name, text in TASKS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("input", type=path_or(STDIN), help="the degraded image (the small one, the grey one, ...)")
    p.add_argument("output", type=path_or(STDOUT), help=OUTPUT_HELP)
    known = p.add_argument_group("known degradation y = H x + n (compressed posterior sampling)")
    known.add_argument("--task", help="sr4, srbox2, color, blur2, motion9@45, inpaint, denoise, ... (see below)")
    known.add_argument("--sigma", type=float, default=0.0, help="standard deviation of the noise n, of values in -1..1")
    known.add_argument("--mask", type=Path, help="of the task inpaint: an image, white where pixels are known")
    known.add_argument("--shortlist", type=int, default=DEFAULT_SHORTLIST, help="atoms rescored (default %(default)s)")
    known.add_argument("--simulate", action="store_true", help="INPUT is clean: degrade it first, and print the PSNR")
    blind = p.add_argument_group("unknown degradation (compressed blind restoration)")
    blind.add_argument(
        "--restorer",
        help="denoise:SIGMA (the model), or with --trust a torch.export (.pt2) or TorchScript file, which can run "
        "code, or weights that spandrel knows (.pth, as of SwinIR)",
    )
    blind.add_argument("--quality", help="no-reference metric of pyiqa: niqe, clipiqa+, topiq_nr-face, ...")
    blind.add_argument("--coefficient", type=float, default=1.0, help="weight of the metric (default %(default)s)")
    blind.add_argument(
        "--faces",
        action="store_true",
        help="the paper's settings for faces: 512x512 pixels, gaussian atoms, T = 1000, K = 4096, niqe",
    )
    blind.add_argument("--align", action="store_true", help="cut out and align faces first (facexlib)")
    p.add_argument("--draw-seed", type=seed, default=0, help="of random choices (default: 0)")
    add_coding(p)
    add_common(p)
    p.set_defaults(run=_run, preset=APPLICATION_PRESET)


def _check_options(args: argparse.Namespace) -> None:
    if (args.task is None) == (args.restorer is None):
        raise ConfigError("give --task for a known degradation or --restorer for an unknown one, and not both")
    known, blind = (args.sigma, args.mask, args.simulate), (args.quality, args.faces, args.align)
    if args.task is None and any(known):
        raise ConfigError("--sigma, --mask and --simulate belong to --task; a restorer is not told of the degradation")
    if args.task is not None and any(blind):
        raise ConfigError("--quality, --faces and --align belong to --restorer; leave them out with --task")


def _run(args: argparse.Namespace) -> None:
    _check_options(args)
    own = Path(args.restorer) if args.restorer and _denoiser(args) is None else None
    outputs = Outputs([args.input, args.mask, own], args.force)
    add_pair(outputs, args.output)
    if args.simulate:
        outputs.add(_measured(args), image_kind("measured.png"))
    settings = settings_of(args)
    if args.faces:
        from ddcm_fast.tasks.perceptual import FACE_CONFIG

        own_settings = asdict(FACE_CONFIG)
        settings.update((name, own_settings[name]) for name in ("kind", "K", "T") if settings[name] is None)
    codec = make_codec(args, load(args, args.model), preset(args.preset, **settings))
    if args.task is not None:
        results = [(args.output, *_restore_known(args, codec, outputs))]
    else:
        results = [(name, coded, "") for name, coded in _restore_blind(args, codec, outputs)]
    for name, coded, said in results:
        write_pair(outputs, name, coded)
        tell(f"{name} and {name.with_suffix('.ddcm').name}: {coded.bpp:.4f} bpp{said}", args)


# ---- known degradation ---------------------------------------------------------------------------


def _restore_known(args: argparse.Namespace, codec: Codec, outputs: Outputs) -> tuple[Encoded, str]:
    """The restored image, and what is said of it."""
    from ddcm_fast.codec.images import psnr, to_pil, to_tensor
    from ddcm_fast.tasks.operators import operator
    from ddcm_fast.tasks.posterior import restore

    h = operator(args.task, _mask(args))
    truth = None
    if args.simulate:
        y, truth = _simulate(args, h, codec.model)
    else:
        y = to_tensor(read_image(args.input, args), 1 if args.task == "color" else codec.model.channels)
    coded = restore(codec, y, h, args.sigma, args.shortlist, args.draw_seed)
    if args.simulate:
        outputs.write(_measured(args), image_bytes(to_pil(h.project(y).clamp(-1, 1)[0]), "measured.png"))
    image = coded.reconstruction.cpu()
    said = f", rms(y - Hx) {float(h.gap(y, image[None])):.4f}"
    if truth is not None:
        base = h.estimate(y, truth.shape[2], truth.shape[3]).clamp(-1, 1)
        said += f", PSNR {psnr(image, truth[0]):.2f} dB (simple estimate {psnr(base, truth):.2f} dB)"
    return coded, said


def _mask(args: argparse.Namespace) -> Tensor | None:
    if args.mask is None:
        return None
    from ddcm_fast.codec.images import to_mask

    return (to_mask(read_image(args.mask, args, background="black")) > 0.5).float()


def _simulate(args: argparse.Namespace, h: LinearOperator, model: DiffusionModel) -> tuple[Tensor, Tensor]:
    """(y, x) from a clean picture x, cut so that H can take it."""
    import torch

    from ddcm_fast.codec.images import to_tensor
    from ddcm_fast.tasks.posterior import check_sigma

    x = to_tensor(read_image(args.input, args), model.channels)
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


# ---- unknown degradation -------------------------------------------------------------------------


def _denoiser(args: argparse.Namespace) -> float | None:
    """SIGMA of --restorer denoise:SIGMA, None for a file."""
    found = re.fullmatch(r"denoise:(\d*\.?\d+)", args.restorer or "")
    return float(found[1]) if found else None


def _restorer(args: argparse.Namespace, model: DiffusionModel) -> Restorer:
    from ddcm_fast.tasks.restorers import load_restorer, model_denoiser

    sigma = _denoiser(args)
    return load_restorer(args.restorer, model.device, args.trust) if sigma is None else model_denoiser(model, sigma)


def _face(image: Image.Image) -> Image.Image:
    """A face that is aligned already, of the size that the face model takes. Raises InputError: it is not square."""
    from PIL import Image

    from ddcm_fast.tasks.perceptual import FACE_SIDE

    if image.width != image.height:
        raise InputError(
            f"the face has {image.width}x{image.height} pixels; an aligned one is square: crop it, or let --align do so"
        )
    return image if image.width == FACE_SIDE else image.resize((FACE_SIDE, FACE_SIDE), Image.Resampling.BILINEAR)


def _restore_blind(args: argparse.Namespace, codec: Codec, outputs: Outputs) -> list[tuple[Path, Encoded]]:
    """Restored images and their names: one, or one for each face that is found."""
    from ddcm_fast.codec.images import MAX_PIXELS, MAX_PIXELS_TO_CUT
    from ddcm_fast.tasks.perceptual import FACE_METRIC, align_faces, load_quality, restore_blind

    device = codec.model.device
    restorer = _restorer(args, codec.model)
    metric = args.quality or (FACE_METRIC if args.faces else None)
    quality = load_quality(metric, device) if metric else None
    image = read_image(args.input, args, MAX_PIXELS_TO_CUT if args.align else MAX_PIXELS)
    images = align_faces(image, device) if args.align else [_face(image) if args.faces else image]
    names = [args.output]
    for number in range(1, len(images)):
        names.append(args.output.with_name(f"{args.output.stem}_{number}{args.output.suffix}"))
        add_pair(outputs, names[-1])
    coded = [restore_blind(codec, i, restorer, quality, args.coefficient, args.draw_seed) for i in images]
    return list(zip(names, coded, strict=True))
