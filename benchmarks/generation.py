"""The DDCM paper's generation experiment on real models: FID, KID and CLIP score of DDCM against DDPM.

ImageNet 256, class-conditional, classifier guidance of scale 1 (the paper's first setting; the guided-diffusion
checkpoints, see ddcm_fast.models):

    python benchmarks/generation.py --model 256x256_diffusion.pt --classifier classifier256.pt2 \
        --reference IMAGENET --labels all -n 10000 -K 2 4 8 16 64 --metrics fid,kid

Stable Diffusion 2.1 (768x768), guidance scale 3, captions of MS-COCO in a text file, one a line:

    python benchmarks/generation.py --model stabilityai/stable-diffusion-2-1 --reference COCO \
        --captions captions.txt --guidance-scale 3 -n 10000 -K 16 64 256 --metrics fid,kid,clip

The classifier is a torch.export (.pt2) or TorchScript file: (x_t (B, 3, H, W), t (B,)) -> logits. DDPM (K = 0) draws
fresh Gaussian noise each step. Images go to --output-dir/K64/000000.png and are not made again; their files, where
the sampler has them, lie beside. FID and KID come from torch-fidelity and the CLIP score from transformers: install
`ddcm-fast[metrics]`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddcm_fast import Codebook, Codec, DiffusionModel, load_model
from ddcm_fast.cli.pictures import image_bytes
from ddcm_fast.codec.config import preset
from ddcm_fast.codec.container import FILE
from ddcm_fast.codec.images import load_image, to_pil
from ddcm_fast.errors import ConfigError, DDCMError, InputError, MissingExtraError
from ddcm_fast.files import picture, write, write_json
from ddcm_fast.sampling.choosers import Draw
from ddcm_fast.sampling.condition import Condition
from ddcm_fast.sampling.rules import Rule
from ddcm_fast.sampling.sampler import sample
from ddcm_fast.sampling.schedule import Step, linspace, plan
from ddcm_fast.tasks.guidance import ClassifierGuided
from ddcm_fast.tasks.restorers import load_restorer

METRICS = ("fid", "kid", "clip")
CLIP_MODEL = "openai/clip-vit-base-patch16"
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".JPEG", ".webp")


class FreshNoise(Rule):
    """DDPM: torch's Gaussian noise, drawn anew each time. Its letters say nothing, so it has no files."""

    def __init__(self, dim: int, seed: int) -> None:
        self._dim = dim
        self._generator = torch.Generator().manual_seed(seed)

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
        return torch.randn(len(letters), self._dim, generator=self._generator).to(letters.device)


# ---- images --------------------------------------------------------------------------------------


def conditions(args: argparse.Namespace, model: DiffusionModel) -> list[Condition | None]:
    """One condition an image."""
    if args.captions is not None:
        if not args.captions.is_file():
            raise InputError(f"no such file of captions: {args.captions}")
        lines = [line.strip() for line in args.captions.read_text().splitlines() if line.strip()]
        if not lines:
            raise InputError(f"{args.captions} has no captions; write one a line")
        texts = [lines[i % len(lines)] for i in range(args.count)]
        return [Condition(prompt=text, guidance_scale=args.guidance_scale) for text in texts]
    if args.labels is None:
        return [None] * args.count
    if args.labels == ["all"]:
        if not model.classes:
            raise ConfigError(f"model {model.name!r} has no classes; leave --labels out")
        labels = list(range(model.classes))
    else:
        try:
            labels = [int(label) for label in args.labels]
        except ValueError as error:
            raise ConfigError(f"--labels takes numbers or 'all', not {' '.join(args.labels)!r}") from error
    return [Condition(label=labels[i % len(labels)], guidance_scale=args.guidance_scale) for i in range(args.count)]


def make(args: argparse.Namespace, model: DiffusionModel, size: int, folder: Path) -> None:
    """The images of one codebook size (0: DDPM), those that are not there yet."""
    side = args.size or model.default_side
    classify = _classifier(args, model)
    for i, condition in enumerate(conditions(args, model)):
        path = folder / f"{i:06d}.png"
        if path.is_file():
            continue
        used = model
        if classify is not None and condition is not None and condition.label is not None:
            used = ClassifierGuided(model, classify, condition.label, args.classifier_scale)
        if size == 0:
            image = to_pil(_ddpm(used, condition, side, args.steps, i))
        else:
            codec = Codec(used, preset("ddcm", K=size, T=args.steps, kind=args.kind), args.backend)
            coded = codec.generate(1, side, side, seed=i, condition=condition)[0]
            image = coded.image
            write(path.with_suffix(".ddcm"), coded.data, FILE)
        write(path, image_bytes(image, path.name), picture("PNG"))


def _ddpm(model: DiffusionModel, condition: Condition | None, side: int, steps: int, seed: int) -> Tensor:
    shape = model.latent_shape(side, side)
    noise = torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed))
    rule = FreshNoise(noise.numel(), seed)
    told = model.complete_condition(condition)
    done = sample(model, plan(model, linspace(model, steps)), rule, Draw(seed), noise, told)
    return model.decode(done.x0)[0]


def _classifier(args: argparse.Namespace, model: DiffusionModel) -> Callable[[Tensor, float], Tensor] | None:
    if args.classifier is None:
        return None
    network = load_restorer(args.classifier, model.device, args.trust)

    def classify(x: Tensor, t: float) -> Tensor:
        return network(x, torch.full((len(x),), t, device=x.device))  # type: ignore[call-arg]

    return classify


# ---- metrics -------------------------------------------------------------------------------------


def fidelity(folder: Path, reference: Path, names: Sequence[str]) -> dict[str, float]:
    """FID and KID by torch-fidelity."""
    try:
        from torch_fidelity import calculate_metrics
    except ImportError as error:
        raise MissingExtraError("fid and kid need torch-fidelity: pip install 'ddcm-fast[metrics]'") from error
    made = sum(1 for p in folder.glob("*.png"))
    found = calculate_metrics(
        input1=str(folder),
        input2=str(reference),
        cuda=torch.cuda.is_available(),
        fid="fid" in names,
        kid="kid" in names,
        kid_subset_size=min(1000, made),
        samples_find_deep=True,
        verbose=False,
    )
    keys = {"fid": "frechet_inception_distance", "kid": "kernel_inception_distance_mean"}
    return {name: float(found[keys[name]]) for name in names}


@torch.inference_mode()
def clip_score(folder: Path, prompts: Sequence[str]) -> float:
    """Mean of 100 max(cos(image, caption), 0) (Hessel et al. 2021)."""
    try:
        from transformers import CLIPModel, CLIPProcessor
    except ImportError as error:
        raise MissingExtraError("clip needs transformers: pip install 'ddcm-fast[metrics]'") from error
    try:
        network = CLIPModel.from_pretrained(CLIP_MODEL)
        processor = CLIPProcessor.from_pretrained(CLIP_MODEL)
    except OSError as error:
        raise InputError(f"cannot load {CLIP_MODEL}: download it first ({str(error).splitlines()[0]})") from error
    total = 0.0
    for i, prompt in enumerate(prompts):
        image = load_image(folder / f"{i:06d}.png")
        inputs = processor(text=[prompt], images=image, return_tensors="pt", padding=True, truncation=True)
        out = network(**inputs)
        total += max(0.0, 100 * float(torch.cosine_similarity(out.image_embeds, out.text_embeds)))
    return total / len(prompts)


def score(args: argparse.Namespace, folder: Path) -> dict[str, float]:
    """The metrics asked for of a folder of images."""
    found: dict[str, float] = {}
    inception = [name for name in args.metrics if name != "clip"]
    if inception:
        found.update(fidelity(folder, args.reference, inception))
    if "clip" in args.metrics:
        lines = [line.strip() for line in args.captions.read_text().splitlines() if line.strip()]
        found["clip"] = clip_score(folder, [lines[i % len(lines)] for i in range(args.count)])
    return {name: round(value, 5) for name, value in found.items()}


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
    p.add_argument("--labels", nargs="+", help="classes, or all")
    p.add_argument("--captions", type=Path, help="text file, a caption a line")
    p.add_argument("--guidance-scale", type=float, help="of classifier-free guidance")
    p.add_argument("--classifier", type=Path, help="with --trust, a .pt2 or .pt file: (x_t, t) -> logits")
    p.add_argument("--trust", action="store_true", help="run the classifier's file, which is a program")
    p.add_argument("--classifier-scale", type=float, default=1.0, help="of classifier guidance (default: 1)")
    p.add_argument("-n", dest="count", type=int, default=10000, help="images of each kind (default: 10000)")
    p.add_argument("-K", type=int, nargs="+", default=[0, 2, 4, 8, 16, 64], help="codebook sizes; 0 is DDPM")
    p.add_argument("--kind", default="gaussian", help="of codebook (default: gaussian, the paper's)")
    p.add_argument("-T", dest="steps", type=int, default=1000, help="steps (default: 1000)")
    p.add_argument("--size", type=int, help="side of the images (default: the model's)")
    p.add_argument("--device", help="cpu or cuda")
    p.add_argument("--dtype", help="of the network")
    p.add_argument("--backend", default="auto", help="of the codebook")
    p.add_argument("--output-dir", type=Path, default=Path("generation"), help="where the images go")
    args = p.parse_args(argv)
    if args.count < 1 or min(args.K) < 0:
        raise ConfigError("-n must be at least 1 and each K at least 0")
    if {"fid", "kid"} & set(args.metrics):
        if args.reference is None:
            raise ConfigError("fid and kid compare with real images: give --reference DIR")
        if not args.reference.is_dir() or not any(q.suffix in IMAGE_ENDINGS for q in args.reference.rglob("*")):
            raise InputError(f"no images in {args.reference}")
    if "clip" in args.metrics and args.captions is None:
        raise ConfigError("the CLIP score compares with captions: give --captions FILE")
    if args.classifier is not None and args.labels is None:
        raise ConfigError("classifier guidance needs classes: give --labels")
    return args


def run(args: argparse.Namespace, model: DiffusionModel) -> list[dict[str, Any]]:
    """Make and score everything; results go to OUTPUT_DIR/results.json after every row."""
    rows: list[dict[str, Any]] = []
    for size in args.K:
        folder = args.output_dir / ("ddpm" if size == 0 else f"K{size}")
        make(args, model, size, folder)
        row = {"model": args.model, "K": size, "T": args.steps, "samples": args.count, **score(args, folder)}
        rows.append(row)
        print(row, flush=True)
        write_json(args.output_dir / "results.json", rows, 1)
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; 2 for an error the user can mend."""
    try:
        args = parse(argv)
        run(args, load_model(args.model, device=args.device, dtype=args.dtype))
    except DDCMError as error:
        print(f"generation: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
