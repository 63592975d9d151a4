"""The pictures of docs/applications.md: a contact sheet of each application.

    python benchmarks/applications.py --photo PHOTO.png --output docs

PHOTO is any picture of at least 128x128 pixels; its centre is used.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ddcm_fast import Codec, load_model
from ddcm_fast.condition import Condition
from ddcm_fast.images import load_image, to_pil, to_tensor
from ddcm_fast.models import digits
from ddcm_fast.tasks import ccfg, edit, operator, restore, restore_blind
from ddcm_fast.tasks.perceptual import model_denoiser

SIDE = 128


def sheet(rows: Sequence[tuple[str, Sequence[Tensor]]], path: Path, cell: int, columns: Sequence[str] = ()) -> None:
    """Rows of images (C, H, W), each scaled to `cell` pixels, with their names."""
    left, top, gap = 190, 18 if columns else 4, 4
    width = left + (cell + gap) * max(len(images) for _, images in rows)
    out = Image.new("RGB", (width, top + (cell + gap) * len(rows)), "white")
    draw = ImageDraw.Draw(out)
    for c, name in enumerate(columns):
        draw.text((left + c * (cell + gap), 3), name, fill="black")
    for r, (name, images) in enumerate(rows):
        y = top + r * (cell + gap)
        draw.text((4, y + cell // 2 - 6), name, fill="black")
        for c, image in enumerate(images):
            small = to_pil(image.cpu()).convert("RGB").resize((cell, cell), Image.Resampling.NEAREST)
            out.paste(small, (left + c * (cell + gap), y))
    out.save(path)


def generation_sheet(folder: Path) -> None:
    """Generation and guidance on the digits model."""
    model = load_model("digits", device="cpu")
    rows: list[tuple[str, list[Tensor]]] = []
    for size in (2, 64, 1024):
        codec = Codec.from_preset(model, "ddcm", K=size, T=200)
        made = [codec.generate(1, 8, 8, seed=c, condition=Condition(label=c))[0] for c in range(10)]
        rows.append((f"labels 0 to 9, K = {size}", [m.reconstruction for m in made]))
    codec = Codec.from_preset(model, "ddcm", K=64, T=200)
    for scale in (2.0, 4.0):
        given = [Condition(label=c, guidance_scale=scale) for c in range(10)]
        made = [codec.generate(1, 8, 8, seed=c, condition=told)[0] for c, told in enumerate(given)]
        rows.append((f"guidance scale {scale:g}", [m.reconstruction for m in made]))
    for size in (1, 2, 4, 9):
        made = [codec.sample(ccfg(Condition(label=c), size, seed=c), 8, 8)[0] for c in range(10)]
        rows.append((f"CCFG, subset of {size}", [m.reconstruction for m in made]))
    sheet(rows, folder / "applications-generation.png", 40)


def editing_sheet(folder: Path) -> None:
    """Sevens edited into ones."""
    model = load_model("digits", device="cpu")
    images, labels = digits.load_data(test=True)
    starts = (0, 40, 60, 70, 80)
    codec = Codec.from_preset(model, "ddcm", K=256, T=100)
    target = Condition(label=1, guidance_scale=3.0)
    rows: list[tuple[str, list[Tensor]]] = []
    for image in images[labels == 7][:5]:
        coded = codec.encode(image, Condition(label=7))[0]
        edited = edit(codec, coded.data, [target], starts)
        rows.append(("seven to one", [image, coded.reconstruction, *(e.reconstruction for e in edited)]))
    sheet(rows, folder / "applications-editing.png", 56, ["image", "decoded", *(f"t_edit {s}" for s in starts)])


def photo_sheet(folder: Path, photo: Path) -> None:
    """Restoration with the photo model."""
    model = load_model("photo")
    truth = to_tensor(load_image(photo))
    top, left = (truth.shape[2] - SIDE) // 2, (truth.shape[3] - SIDE) // 2
    truth = truth[..., top : top + SIDE, left : left + SIDE]
    codec = Codec.from_preset(model, "product", atoms=500)
    mask = torch.ones(SIDE, SIDE)
    mask[30:38] = 0
    mask[:, 60:66] = 0
    rows = []
    generator = torch.Generator().manual_seed(0)
    for task, sigma in (("sr4", 0.05), ("color", 0.05), ("blur2", 0.05), ("inpaint", 0.05), ("denoise", 0.4)):
        h = operator(task, mask if task == "inpaint" else None)
        y = h.forward(truth)
        y = y + sigma * torch.randn(y.shape, generator=generator)
        shown = h.adjoint(y, SIDE, SIDE) if task == "inpaint" else y
        coded = restore(codec, y, h, sigma)
        base = h.estimate(y, SIDE, SIDE)
        rows.append((f"{task}, {coded.bpp:.2f} bpp", [shown[0], base[0].clamp(-1, 1), coded.reconstruction, truth[0]]))
    noisy = (truth + 0.4 * torch.randn(truth.shape, generator=generator)).clamp(-1, 1)[0]
    denoiser = model_denoiser(model, 0.4)
    with torch.inference_mode():
        mmse = denoiser(noisy[None].to(model.device))[0]
    coded = restore_blind(codec, noisy, denoiser)
    rows.append((f"blind, {coded.bpp:.2f} bpp", [noisy, mmse, coded.reconstruction, truth[0]]))
    sheet(rows, folder / "applications-restoration.png", SIDE, ["measurement", "simple or MMSE", "restored", "truth"])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photo", type=Path, help="a picture, for the restoration sheet")
    parser.add_argument("--only", choices=("generation", "editing", "restoration"), help="one sheet (default: all)")
    parser.add_argument("--output", type=Path, default=Path("docs"))
    args = parser.parse_args()
    if args.only in (None, "generation"):
        generation_sheet(args.output)
    if args.only in (None, "editing"):
        editing_sheet(args.output)
    if args.only in (None, "restoration"):
        if args.photo is None:
            parser.error("the restoration sheet needs --photo")
        photo_sheet(args.output, args.photo)


if __name__ == "__main__":
    main()
