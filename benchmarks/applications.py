"""The pictures of docs/applications.md: a contact sheet of each application.

    python benchmarks/applications.py --output docs

Restoration is shown on scikit-image's astronaut (the extra `demo`), or with --photo on the centre of any picture of at
least 128x128 pixels.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ddcm_fast import Codec, DiffusionModel, load_model
from ddcm_fast.cli.pictures import image_bytes
from ddcm_fast.codec.images import load_image, to_pil, to_tensor
from ddcm_fast.files import picture, write
from ddcm_fast.models import digits
from ddcm_fast.sampling.choosers import Chooser, StepContext
from ddcm_fast.sampling.condition import Condition
from ddcm_fast.tasks import Subset, ccfg, classifier_gradient, edit, operator, restore, restore_blind
from ddcm_fast.tasks.restorers import model_denoiser

SIDE = 128
FACE = (126, 10, 318, 202)  # of the astronaut

Rows = list[tuple[str, list[Tensor]]]


def sheet(rows: Rows, path: Path, cell: int, columns: Sequence[str] = ()) -> None:
    """Rows of images (C, H, W), each scaled to `cell` pixels, with their names."""
    font = ImageFont.load_default(size=13)
    left = 16 + int(max(font.getlength(name) for name, _ in rows))
    top, gap = 22 if columns else 4, 4
    width = left + (cell + gap) * max(len(images) for _, images in rows)
    out = Image.new("RGB", (width, top + (cell + gap) * len(rows)), "white")
    draw = ImageDraw.Draw(out)
    for c, name in enumerate(columns):
        draw.text((left + c * (cell + gap), 4), name, fill="black", font=font)
    for r, (name, images) in enumerate(rows):
        y = top + r * (cell + gap)
        draw.text((6, y + cell // 2), name, fill="black", font=font, anchor="lm")
        for c, image in enumerate(images):
            small = to_pil(image.cpu()).convert("RGB").resize((cell, cell), Image.Resampling.NEAREST)
            out.paste(small, (left + c * (cell + gap), y))
    write(path, image_bytes(out, path.name), picture("PNG"))


def _digits_codec(size: int = 64, batch_size: int = 1) -> Codec:
    return Codec.from_preset(load_model("digits", device="cpu"), "ddcm", K=size, T=100, batch_size=batch_size)


def generation_sheet(folder: Path) -> None:
    """Unconditional and class-conditional samples, the latter under classifier-free guidance too."""
    rows: Rows = []
    labels = range(digits.CLASSES)
    for size in (2, 64, 1024):
        made = _digits_codec(size, 10).generate(10, 8, 8)
        rows.append((f"no label, K = {size}", [m.reconstruction for m in made]))
    for size in (2, 64, 1024):
        made = [_digits_codec(size).generate(1, 8, 8, seed=c, condition=Condition(label=c))[0] for c in labels]
        rows.append((f"labels 0 to 9, K = {size}", [m.reconstruction for m in made]))
    given = [Condition(label=c, guidance_scale=3.0) for c in labels]
    made = [_digits_codec().generate(1, 8, 8, seed=c, condition=told)[0] for c, told in enumerate(given)]
    rows.append(("K = 64, guidance scale 3", [m.reconstruction for m in made]))
    sheet(rows, folder / "applications-generation.png", 44)


def guidance_sheet(folder: Path) -> None:
    """Compressed classifier-free guidance and classifier guidance: the label in the choice of atoms alone."""
    rows: Rows = []
    codec, classify = _digits_codec(batch_size=10), digits.load_noisy_classifier()
    given, labels = tuple(Condition(label=c) for c in range(10)), torch.arange(10)
    kinds: list[tuple[str, Callable[[int], Chooser]]] = [
        ("compressed CFG", lambda n: ccfg(given, n)),
        ("classifier", lambda n: Subset(classifier_gradient(classify, labels), n)),
    ]
    for name, guide in kinds:
        for n in (1, 2, 4, 9):
            made = codec.sample(guide(n), 8, 8, 10)
            rows.append((f"{name}, best of {n}", [m.reconstruction for m in made]))
    sheet(rows, folder / "applications-guidance.png", 44)


def editing_sheet(folder: Path) -> None:
    """Sevens edited into ones and nines."""
    images, labels = digits.load_data(test=True)
    starts = (0, 40, 60, 80, 90)
    codec = _digits_codec(256)
    rows: Rows = []
    for image in images[labels == 7][:2]:
        coded = codec.encode(image, Condition(label=7))[0]
        for target, scale in ((1, 3.0), (1, 1.0), (9, 3.0)):
            edited = edit(codec, coded.data, [Condition(label=target, guidance_scale=scale)], starts)
            shown = [image, coded.reconstruction, *(e.reconstruction for e in edited)]
            rows.append((f"7 to {target}, guidance {scale:g}", shown))
    sheet(rows, folder / "applications-editing.png", 60, ["image", "decoded", *(f"t_edit {s}" for s in starts)])


def brightness_sheet(folder: Path) -> None:
    """The page's own objective: brightness of what is generated."""
    rows: Rows = []
    codec = _digits_codec(batch_size=10)
    for wanted in (-0.8, -0.4, 0.0, 0.4):

        def brightness(context: StepContext, wanted: float = wanted) -> Tensor:
            now = context.x0_hat.mean(dim=(1, 2, 3), keepdim=True)
            return (wanted - now) * torch.ones_like(context.x0_hat)

        made = [m.reconstruction for m in codec.sample(Subset(brightness, size=4), 8, 8, 10)]
        mean = float(torch.stack(made).mean())
        rows.append((f"wanted {wanted:.1f}, mean {mean:.2f}", made))
    sheet(rows, folder / "applications-objective.png", 44)


def photograph_tensor(photo: Path | None) -> Tensor:
    """(1, 3, 128, 128)."""
    if photo is None:
        from skimage import data

        return to_tensor(Image.fromarray(data.astronaut()).crop(FACE).resize((SIDE, SIDE), Image.Resampling.LANCZOS))
    truth = to_tensor(load_image(photo))
    top, left = (truth.shape[2] - SIDE) // 2, (truth.shape[3] - SIDE) // 2
    return truth[..., top : top + SIDE, left : left + SIDE]


def restoration_sheet(folder: Path, model: DiffusionModel, truth: Tensor) -> None:
    """Posterior sampling: every kind of task."""
    codec = Codec.from_preset(model, "product", atoms=2000)
    mask = torch.ones(SIDE, SIDE)
    mask[30:38] = 0
    mask[:, 60:66] = 0
    rows: Rows = []
    generator = torch.Generator().manual_seed(0)
    for task, sigma in (("sr4", 0.05), ("color", 0.05), ("blur2", 0.05), ("inpaint", 0.05), ("denoise", 0.4)):
        h = operator(task, mask if task == "inpaint" else None)
        y = h.forward(truth)
        y = y + sigma * torch.randn(y.shape, generator=generator)
        coded = restore(codec, y, h, sigma)
        image = coded.reconstruction.cpu()
        name = f"{task}, sigma {sigma:g}, gap {float(h.gap(y, image[None])):.3f}"
        rows.append((name, [h.project(y)[0], h.estimate(y, SIDE, SIDE)[0], image, truth[0]]))
    columns = ["measurement", "simple estimate", f"restored, {coded.bpp:.1f} bpp", "truth"]
    sheet(rows, folder / "applications-restoration.png", SIDE, columns)


def blind_sheet(folder: Path, model: DiffusionModel, truth: Tensor) -> None:
    """Blind restoration: the model's own denoiser as the restorer, and contrast of neighbours as the metric."""

    def flatness(image: Tensor) -> Tensor:
        return -(image[..., 1:] - image[..., :-1]).abs().mean((1, 2, 3))

    noisy = (truth + 0.4 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)[0]
    denoiser = model_denoiser(model, 0.4)
    with torch.inference_mode():
        reference = denoiser(noisy[None].to(model.device))[0]
    codec = Codec.from_preset(model, "product", atoms=500)
    shown = [noisy, reference]
    names = ["degraded", "restorer (MMSE)"]
    for coefficient in (0.0, 0.5):
        coded = restore_blind(codec, noisy, denoiser, flatness, coefficient)
        shown.append(coded.reconstruction)
        names.append(f"coefficient {coefficient:g}")
    rows = [(f"noise 0.4, {coded.bpp:.1f} bpp", [*shown, truth[0]])]
    sheet(rows, folder / "applications-blind.png", SIDE, [*names, "truth"])


SHEETS = ("generation", "guidance", "restoration", "blind", "editing", "objective")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photo", type=Path, help="a picture for restoration (default: the astronaut)")
    parser.add_argument("--only", nargs="+", choices=SHEETS, default=SHEETS, help="some of the sheets (default: all)")
    parser.add_argument("--output", type=Path, default=Path("docs"))
    args = parser.parse_args()
    for name, make in (
        ("generation", generation_sheet),
        ("guidance", guidance_sheet),
        ("editing", editing_sheet),
        ("objective", brightness_sheet),
    ):
        if name in args.only:
            make(args.output)
    if {"restoration", "blind"} & set(args.only):
        model, truth = load_model("photo"), photograph_tensor(args.photo)
        if "restoration" in args.only:
            restoration_sheet(args.output, model, truth)
        if "blind" in args.only:
            blind_sheet(args.output, model, truth)


if __name__ == "__main__":
    main()
