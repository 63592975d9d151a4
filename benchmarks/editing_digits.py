"""Compressed editing on `digits`: how many edited sevens become ones, and how much of the stroke stays?

    python benchmarks/editing_digits.py

The held-out sevens are encoded under the label 7 and decoded with the label 1 from step t_edit on. `became` is the
share that the clean classifier takes for the target, `ink kept` the share of the source's ink that is inked still, and
`unrelated` the same for held-out ones of the data set against the sevens: what would remain by chance.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from ddcm_fast import Codebook, load_model
from ddcm_fast.codebook.reference import initial_noise
from ddcm_fast.files import TEXT, write, write_json
from ddcm_fast.models import digits
from ddcm_fast.sampling.choosers import Replay, toward
from ddcm_fast.sampling.condition import Condition, Edit
from ddcm_fast.sampling.rules import Greedy
from ddcm_fast.sampling.sampler import sample
from ddcm_fast.sampling.schedule import linspace, plan

RESULTS = Path(__file__).parent / "results"


def ink_kept(before: Tensor, after: Tensor) -> float:
    """Share of the ink (pixels above 0) of (N, 1, 8, 8) images that is ink in the others too."""
    ink = before > 0
    return float((ink & (after > 0)).sum() / ink.sum())


def main() -> None:
    """The table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-K", type=int, default=256)
    parser.add_argument("-T", type=int, default=100)
    parser.add_argument("--source", type=int, default=7)
    parser.add_argument("--target", type=int, default=1)
    parser.add_argument("--guidance-scale", type=float, nargs="+", default=[1.0, 3.0], help="of the target")
    parser.add_argument("--t-edit", type=int, nargs="+", default=[0, 20, 40, 50, 55, 60, 65, 70, 80, 100])
    args = parser.parse_args()
    model = load_model("digits", device="cpu")
    images, labels = digits.load_data(test=True)
    truth, others = images[labels == args.source], images[labels == args.target]
    noise = initial_noise(64, 0).view(1, 4, 4, 4).expand(len(truth), -1, -1, -1)
    steps = plan(model, linspace(model, args.T))
    rule = Greedy(Codebook("sign", 64, args.K, signed=False))
    source = model.complete_condition(Condition(label=args.source))
    coded = sample(model, steps, rule, toward(model.encode(truth)), noise, source)
    before = model.decode(coded.x0)
    rows = []
    for scale in args.guidance_scale:
        target = Condition(label=args.target, guidance_scale=scale)
        for start in args.t_edit:
            edit = Edit(start, target)
            told = lambda step, edit=edit: edit.at(step.index, source)  # noqa: E731
            after = model.decode(sample(model, steps, rule, Replay(coded.letters), noise, told).x0)
            with torch.inference_mode():
                said = digits.load_classifier()(after).argmax(1)
            rows.append(
                {
                    "guidance": scale,
                    "t_edit": start,
                    "became": round(float((said == args.target).float().mean()), 3),
                    "stayed": round(float((said == args.source).float().mean()), 3),
                    "ink_kept": round(ink_kept(before, after), 3),
                }
            )
    chance = ink_kept(before, others[: len(before)])
    lines = [
        "# Compressed editing on the `digits` model",
        "",
        "python benchmarks/editing_digits.py",
        "",
        f"{len(truth)} held-out {args.source}s, K = {args.K}, T = {args.T}; target {args.target}. Unrelated digits of "
        f"the target keep {100 * chance:.0f} % of the ink.",
        "",
        "| guidance of the target | t_edit | became the target | still the source | ink kept |",
        "|---|---|---|---|---|",
    ]
    for r in rows:
        lines.append(
            f"| {r['guidance']:g} | {r['t_edit']} | {100 * r['became']:.0f} % | {100 * r['stayed']:.0f} % | "
            f"{100 * r['ink_kept']:.0f} % |"
        )
    result = {"source": args.source, "target": args.target, "K": args.K, "T": args.T, "unrelated": round(chance, 3)}
    write_json(RESULTS / "editing_digits.json", {**result, "rows": rows}, 1)
    write(RESULTS / "editing_digits.md", ("\n".join(lines) + "\n").encode(), TEXT)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
