"""The DDCM paper's generation experiment on real models: FID, KID and CLIP score of DDCM against DDPM.

ImageNet 256, class-conditional, classifier guidance of scale 1, labels drawn at random (the paper's first setting; the
checkpoints are guided-diffusion's, see ddcm_fast.models):

    python benchmarks/generation.py --model 256x256_diffusion.pt --classifier 256x256_classifier.pt --trust \
        --labels all -n 10000 -K 0 2 4 8 16 64 --batch-size 16 --reference IMAGENET

Stable Diffusion 2.1 (768x768), guidance scale 3, captions of MS-COCO:

    python benchmarks/generation.py --model stabilityai/stable-diffusion-2-1 --guidance-scale 3 \
        --captions captions_val2014.json -n 10000 -K 0 2 4 8 16 64 --batch-size 8 --reference COCO \
        --metrics fid,kid,clip --clip-model ViT-L/14

K = 0 is DDPM, which draws fresh Gaussian noise each step. Images go to --output-dir/K64/000000.png and are not made
again, so that the same command goes on after an interruption; their files, where the sampler has them, lie beside.
results.json and the table results.md are written after every K. FID and KID come from torch-fidelity and the CLIP score
from transformers: install `ddcm-fast[metrics]`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddcm_fast import Codebook, Codec, DiffusionModel, load_model
from ddcm_fast.cli.arguments import seed
from ddcm_fast.cli.conditions import read_captions, read_labels
from ddcm_fast.cli.pictures import image_bytes
from ddcm_fast.codec.batches import batches, together
from ddcm_fast.codec.config import preset
from ddcm_fast.codec.container import FILE
from ddcm_fast.codec.images import load_image, to_pil
from ddcm_fast.errors import ConfigError, DDCMError, InputError
from ddcm_fast.evaluation.metrics import CLIP_MODELS, FIDELITY_ENDINGS, ClipScore, of_sets
from ddcm_fast.files import TEXT, picture, read, write, write_json
from ddcm_fast.models.trust import check_pickle
from ddcm_fast.sampling.choosers import Draw
from ddcm_fast.sampling.condition import Condition
from ddcm_fast.sampling.draws import drawn, own_seeds
from ddcm_fast.sampling.rules import Rule
from ddcm_fast.sampling.sampler import sample
from ddcm_fast.sampling.schedule import Step, linspace, plan
from ddcm_fast.tasks.classifiers import load_classifier
from ddcm_fast.tasks.guidance import ClassifierGuided

METRICS = ("fid", "kid", "clip")

#: What images there are must have been made with.
SETTINGS = (
    *("model", "labels", "captions", "guidance_scale", "classifier", "classifier_scale", "kind", "steps", "size"),
    "draw_seed",
)


class FreshNoise(Rule):
    """DDPM: torch's Gaussian noise, a generator an image. Its letters say nothing, so it has no files."""

    def __init__(self, dim: int, seeds: Sequence[int]) -> None:
        self._dim = dim
        self._generators = [torch.Generator().manual_seed(one) for one in seeds]

    def codebook(self, step: Step) -> Codebook:
        """See Rule.codebook."""
        raise NotImplementedError("DDPM has no codebook")

    def radices(self, step: Step) -> list[int]:
        """See Rule.radices."""
        return [1]

    def choose(self, direction: Tensor, step: Step) -> Tensor:
        """See Rule.choose."""
        raise NotImplementedError("DDPM chooses nothing")

    def noise(self, letters: Tensor, step: Step) -> Tensor:
        """See Rule.noise."""
        return self.normal().to(letters.device)

    def normal(self) -> Tensor:
        """(B, dim) standard normal, the next numbers of each image's generator."""
        return torch.stack([torch.randn(self._dim, generator=generator) for generator in self._generators])


# ---- images --------------------------------------------------------------------------------------


def conditions(args: argparse.Namespace, model: DiffusionModel) -> list[Condition | None]:
    """One condition an image, the model's defaults filled in."""
    found: list[Condition | None] = [None] * args.count
    if args.captions is not None:
        texts = captions(args)
        found = [Condition(prompt=text, guidance_scale=args.guidance_scale) for text in texts]
    elif args.labels is not None:
        found = [Condition(label=label, guidance_scale=args.guidance_scale) for label in labels(args, model)]
    return [model.complete_condition(condition) for condition in found]


def captions(args: argparse.Namespace) -> list[str]:
    """A caption an image, in the file's order; more images than captions begin anew with the first."""
    texts = read_captions(args.captions)
    return [texts[i % len(texts)] for i in range(args.count)]


def labels(args: argparse.Namespace, model: DiffusionModel) -> list[int]:
    """A label an image: a file's, in its order, or drawn at random from those asked for."""
    if len(args.labels) == 1 and Path(args.labels[0]).is_file():
        given = read_labels(Path(args.labels[0]))
        if len(given) < args.count:
            raise InputError(f"{args.labels[0]} has {len(given)} labels for {args.count} images; give one for each")
        return given[: args.count]
    if args.labels == ["all"]:
        if not model.classes:
            raise ConfigError(f"model {model.name!r} has no classes; leave --labels out")
        return drawn(range(model.classes), args.count, args.draw_seed)
    try:
        return drawn([int(label) for label in args.labels], args.count, args.draw_seed)
    except ValueError as error:
        raise ConfigError(f"--labels takes numbers, 'all' or a file, not {' '.join(args.labels)!r}") from error


def make(args: argparse.Namespace, model: DiffusionModel, size: int, folder: Path) -> None:
    """The images of one codebook size (0: DDPM), those that are not there yet."""
    side = args.size or model.default_side
    told = conditions(args, model)
    seeds = own_seeds(args.draw_seed, args.count)
    codec = None
    if size:
        config = preset("ddcm", K=size, T=args.steps, kind=args.kind)
        codec = Codec(model, config, args.backend, args.batch_size)
    missing = [i for i in range(args.count) if not (folder / f"{i:06d}.png").is_file()]
    for batch in batches(missing, told, args.batch_size):
        own, beginnings = [told[i] for i in batch], [seeds[i] for i in batch]
        if codec is None:
            images = [to_pil(image) for image in _ddpm(model, own, side, args.steps, beginnings)]
        else:
            coded = codec.generate(len(batch), side, side, beginnings, own)
            images = [one.image for one in coded]
            for i, one in zip(batch, coded, strict=True):
                write(folder / f"{i:06d}.ddcm", one.data, FILE)
        for i, image in zip(batch, images, strict=True):
            write(folder / f"{i:06d}.png", image_bytes(image, "image.png"), picture("PNG"))


def _ddpm(
    model: DiffusionModel, told: Sequence[Condition | None], side: int, steps: int, seeds: Sequence[int]
) -> Tensor:
    shape = model.latent_shape(side, side)
    rule = FreshNoise(torch.Size(shape).numel(), seeds)
    noise = rule.normal().view(-1, *shape)
    done = sample(model, plan(model, linspace(model, steps)), rule, Draw(0), noise, together(told))
    return model.decode(done.x0)


def load(args: argparse.Namespace) -> DiffusionModel:
    """The model, under the guidance of the classifier if there is one."""
    model = load_model(args.model, device=args.device, dtype=args.dtype, trust=args.trust)
    if args.classifier is None:
        return model
    classify = load_classifier(args.classifier, model.device, args.trust)
    return ClassifierGuided(model, classify, scale=args.classifier_scale)


def check_folder(args: argparse.Namespace) -> None:
    """Raise ConfigError where the folder's images are others than the ones asked for."""
    path = args.output_dir / "settings.json"
    now = {name: str(getattr(args, name)) for name in SETTINGS}
    if path.is_file():
        before = json.loads(read(path, 1 << 20))
        changed = [f"{name} {before.get(name)}" for name in SETTINGS if before.get(name) != now[name]]
        if changed:
            raise ConfigError(f"the images in {args.output_dir} have {', '.join(changed)}; give another --output-dir")
    for size in args.K:
        more = sum(int(p.stem) >= args.count for p in _folder(args, size).glob("[0-9]*.png"))
        if more:
            raise ConfigError(f"{_folder(args, size)} has {more} images more than -n {args.count}; give a larger -n")
    write_json(path, now, 1)


def _folder(args: argparse.Namespace, size: int) -> Path:
    return args.output_dir / ("ddpm" if size == 0 else f"K{size}")


# ---- metrics -------------------------------------------------------------------------------------


def score(args: argparse.Namespace, folder: Path) -> dict[str, float]:
    """The metrics asked for of a folder of images."""
    found = {}
    of_folders = [name for name in args.metrics if name != "clip"]
    if of_folders:
        found.update(of_sets(of_folders, folder, args.reference, args.inception))
    if "clip" in args.metrics:
        measure = ClipScore(args.clip_model, "cuda" if torch.cuda.is_available() else "cpu")
        texts, total = captions(args), 0.0
        for first in range(0, args.count, args.batch_size):
            some = texts[first : first + args.batch_size]
            total += sum(measure([load_image(folder / f"{first + i:06d}.png") for i in range(len(some))], some))
        found["clip"] = total / args.count
    return {name: round(value, 5) for name, value in found.items()}


def table(rows: Sequence[dict[str, Any]], metrics: Sequence[str]) -> str:
    """One line a sampler, as Markdown."""
    lines = [f"| | {' | '.join(metrics)} |", f"|---|{'---|' * len(metrics)}"]
    for row in rows:
        name = "DDPM" if row["K"] == 0 else f"K = {row['K']}"
        lines.append(f"| {name} | {' | '.join(f'{row[metric]:.4g}' for metric in metrics)} |")
    return "\n".join(lines) + "\n"


# ---- command line --------------------------------------------------------------------------------


def _metrics(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    wrong = [name for name in names if name not in METRICS]
    if wrong or not names:
        raise argparse.ArgumentTypeError(f"unknown metric {wrong[0] if wrong else text!r}: choose {','.join(METRICS)}")
    return names


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments, checked before hours of work. Raises DDCMError for what cannot work."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", required=True, help="hub id, folder, checkpoint or built-in model")
    p.add_argument("--reference", type=Path, help="folder of real images (fid, kid)")
    p.add_argument("--metrics", type=_metrics, default=["fid", "kid"], help="of fid,kid,clip (default: fid,kid)")
    p.add_argument("--labels", nargs="+", help="classes to draw from, 'all', or a file with one a line")
    p.add_argument("--captions", type=Path, help="text file, a caption a line, or MS-COCO's captions (.json)")
    p.add_argument("--guidance-scale", type=float, help="of classifier-free guidance")
    p.add_argument("--classifier", type=Path, help="guided-diffusion's checkpoint, or a program: (x_t, t) -> logits")
    p.add_argument("--trust", action="store_true", help="load pickled weights, and run a classifier that is a program")
    p.add_argument("--classifier-scale", type=float, default=1.0, help="of classifier guidance (default: 1)")
    p.add_argument("-n", dest="count", type=int, default=10000, help="images of each kind (default: 10000)")
    p.add_argument("-K", type=int, nargs="+", default=[0, 2, 4, 8, 16, 64], help="codebook sizes; 0 is DDPM")
    p.add_argument("--kind", default="gaussian", help="of codebook (default: gaussian, the paper's)")
    p.add_argument("-T", dest="steps", type=int, default=1000, help="steps (default: 1000)")
    p.add_argument("--size", type=int, help="side of the images (default: the model's)")
    p.add_argument("--batch-size", type=int, default=1, help="images a network call (default: 1)")
    p.add_argument("--draw-seed", type=seed, default=0, help="of labels and noise (default: 0)")
    p.add_argument("--clip-model", default="ViT-L/14", help=f"{', '.join(CLIP_MODELS)}, a hub id or a folder")
    p.add_argument("--inception", type=Path, help="with --trust, torch-fidelity's weights (default: it fetches them)")
    p.add_argument("--device", help="cpu or cuda")
    p.add_argument("--dtype", help="of the network")
    p.add_argument("--backend", default="auto", help="of the codebook")
    p.add_argument("--output-dir", type=Path, default=Path("generation"), help="where the images go")
    args = p.parse_args(argv)
    if args.count < 1 or min(args.K) < 0 or args.batch_size < 1:
        raise ConfigError("-n and --batch-size must be at least 1 and each K at least 0")
    if {"fid", "kid"} & set(args.metrics):
        if args.reference is None:
            raise ConfigError("fid and kid compare with real images: give --reference DIR")
        if not any(q.suffix.lower() in FIDELITY_ENDINGS for q in args.reference.rglob("*")):
            raise InputError(f"no images in {args.reference}")
    if "clip" in args.metrics and args.captions is None:
        raise ConfigError("the CLIP score compares with captions: give --captions FILE")
    if args.classifier is not None and args.labels is None:
        raise ConfigError("classifier guidance needs classes: give --labels")
    if args.inception is not None:
        check_pickle(args.inception, args.trust)
    return args


def run(args: argparse.Namespace, model: DiffusionModel) -> list[dict[str, Any]]:
    """Make and score everything; results go to OUTPUT_DIR/results.json and .md after every row."""
    check_folder(args)
    rows: list[dict[str, Any]] = []
    for size in args.K:
        folder = _folder(args, size)
        make(args, model, size, folder)
        row = {"model": args.model, "K": size, "T": args.steps, "samples": args.count, **score(args, folder)}
        rows.append(row)
        print(row, flush=True)
        write_json(args.output_dir / "results.json", rows, 1)
        write(args.output_dir / "results.md", table(rows, args.metrics).encode(), TEXT)
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; 2 for an error the user can mend."""
    try:
        args = parse(argv)
        run(args, load(args))
    except DDCMError as error:
        print(f"generation: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
