"""Seconds a step, split into the network, the codebook (search and synthesis) and the rest.

    python benchmarks/step_time.py --model photo --size 256 --T 30 --output benchmarks/results/step_time_cpu.json

The rest is everything that ddcm-fast adds around both: scaling, x0_hat and eps_hat, the update, the loop. Of the
network, "time" is what a table of timestep embeddings could save: the embedding and its projections in every block. On
a GPU the parts are timed with events, so that measuring makes nothing wait; the loop itself never synchronises. With
--cuda-graph whole steps are captured: there is only a total.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ddcm_fast import load_model, preset
from ddcm_fast.codebook.reference import initial_noise
from ddcm_fast.files import write_json
from ddcm_fast.models.multiscale import MultiscaleModel
from ddcm_fast.models.network import NetworkModel
from ddcm_fast.sampling.choosers import toward
from ddcm_fast.sampling.graphs import StepGraphs
from ddcm_fast.sampling.sampler import sample


class Stopwatch:
    """Sums the time spent in wrapped functions, by part."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._spans: list[tuple[str, Any, Any]] = []

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def wrap(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = self._now()
            result = function(*args, **kwargs)
            self._spans.append((part, start, self._now()))
            return result

        return timed

    def seconds(self, part: str) -> float:
        """Of all calls of a part so far."""
        if self._cuda:
            torch.cuda.synchronize()
        total = 0.0
        for name, start, end in self._spans:
            if name == part:
                total += start.elapsed_time(end) / 1000 if self._cuda else end - start
        return total

    def clear(self) -> None:
        """Forget all calls."""
        self._spans.clear()


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="photo")
    parser.add_argument("--preset", default="ddcm")
    parser.add_argument("--size", type=int, default=256, help="side of the image")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--T", type=int, default=20)
    parser.add_argument("--K", type=int)
    parser.add_argument("--device")
    parser.add_argument("--dtype")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--cuda-graph", action="store_true", help="whole steps as CUDA graphs, on a GPU")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, help="of a CPU")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()

    if args.threads:
        torch.set_num_threads(args.threads)
    model = load_model(args.model, device=args.device, dtype=args.dtype, compile=args.compile)
    model = model.inner if isinstance(model, MultiscaleModel) else model
    if not isinstance(model, NetworkModel):
        raise SystemExit(f"{args.model} has no network to time")
    config = preset(args.preset, T=args.T, K=args.K)
    shape = model.latent_shape(args.size, args.size)
    dim = shape[0] * shape[1] * shape[2]
    steps = config.steps(model)
    rule = config.make_rule(steps, dim, args.backend)
    noise = initial_noise(dim, config.seed).view(1, *shape).expand(args.batch, *shape)
    target = torch.rand(args.batch, *shape, device=model.device) * 2 - 1

    watch = Stopwatch(model.device)
    graphs = StepGraphs(model, steps, rule) if args.cuda_graph else None
    run = watch.wrap("total", sample)
    if graphs is None:
        model._run = watch.wrap("network", model._run)
        rule.choose = watch.wrap("codebook", rule.choose)  # type: ignore[method-assign]
        rule.noise = watch.wrap("codebook", rule.noise)  # type: ignore[method-assign]
        if not args.compile:
            for name, module in model.network.named_modules():
                if name.split(".")[-1] in ("time_proj", "time_embedding", "time_emb_proj"):
                    module.forward = watch.wrap("time", module.forward)

    run(model, steps, rule, toward(target), noise, graphs=graphs)  # warm up: builds, caches, autotuning, captures
    rows = []
    for _ in range(args.repeat):
        watch.clear()
        run(model, steps, rule, toward(target), noise, graphs=graphs)
        parts = {part: watch.seconds(part) / len(steps) for part in ("total", "network", "time", "codebook")}
        parts["rest"] = parts["total"] - parts["network"] - parts["codebook"]
        rows.append({"total": parts["total"]} if graphs else parts)
    best = min(rows, key=lambda row: row["total"])
    cuda = model.device.type == "cuda"
    result: dict[str, Any] = {
        "command": shlex.join(["python", "benchmarks/step_time.py", *sys.argv[1:]]),
        "model": args.model,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": torch.cuda.get_device_name() if cuda else f"{platform.machine()} CPU",
        "threads": torch.get_num_threads(),
        "compile": args.compile,
        "cuda_graph": args.cuda_graph,
        "preset": args.preset,
        "kind": config.kind,
        "K": config.K,
        "T": len(steps),
        "image": [args.size, args.size],
        "batch": args.batch,
        "repeat": args.repeat,
        "seconds_a_step": {k: round(v, 6) for k, v in best.items()},
    }
    if graphs is None:
        for part in ("rest", "time"):
            result[f"{part}_percent"] = [round(100 * row[part] / row["total"], 2) for row in rows]
    text = json.dumps(result, indent=1)
    print(text)
    if args.output:
        write_json(args.output, result, 1)


if __name__ == "__main__":
    main()
