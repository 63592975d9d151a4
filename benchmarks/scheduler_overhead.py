"""What DDCMScheduler's step costs beyond DDPMScheduler's own, kind by kind, beside torch.randn and a network's step.

    OMP_NUM_THREADS=1 python benchmarks/scheduler_overhead.py --output benchmarks/results/scheduler_overhead.json

Processor time of one thread in microseconds, the median of many steps of one image whose state has 4 x 64 x 64 entries
(Stable Diffusion's at 512 pixels). "draw" generates, "follow" searches a residual as compression does. The networks'
weights are random, the larger one of Stable Diffusion 1.5's configuration; their time is of one evaluation without
guidance, in float32.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel

from ddcm_fast.codec.scheduler import DDCMScheduler
from ddcm_fast.files import write_json

STATE = (1, 4, 64, 64)
NETWORKS: dict[str, dict[str, Any]] = {
    "tiny": {
        "block_out_channels": (32, 64), "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "layers_per_block": 1, "cross_attention_dim": 32,
    },
    "Stable Diffusion 1.5": {"cross_attention_dim": 768},
}  # fmt: skip


def microseconds(function: Callable[[], object], count: int) -> float:
    """Median processor time of this thread."""
    took = []
    for _ in range(count):
        start = time.thread_time()
        function()
        took.append(1e6 * (time.thread_time() - start))
    return statistics.median(took)


def step_time(scheduler: Any, repeat: int, **call: Any) -> float:
    """Median time of a step, of `repeat` runs of 50."""
    output, took = torch.randn(STATE), []
    for _ in range(repeat):
        scheduler.set_timesteps(50)
        x = torch.randn(STATE)
        for t in scheduler.timesteps[:-1]:  # the last has no noise
            start = time.thread_time()
            x = scheduler.step(output, t, x, **call).prev_sample
            took.append(1e6 * (time.thread_time() - start))
    return statistics.median(took)


def network_time(settings: dict[str, Any], count: int) -> float:
    """Time of an evaluation of a U-Net."""
    with torch.device("meta"):
        network = UNet2DConditionModel(sample_size=64, **settings).eval()
    network.to_empty(device="cpu")
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    x, text = torch.randn(STATE), torch.randn(1, 77, settings["cross_attention_dim"])
    with torch.inference_mode():
        network(x, 500, text)
        return microseconds(lambda: network(x, 500, text), count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=20, help="runs of 49 steps (default 20)")
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)

    own = DDPMScheduler(clip_sample=False)
    base = step_time(own, args.repeat)
    rows = []
    for kind in ("gaussian", "sign", "hadamard"):
        for size in (4096, 65536):
            ours = DDCMScheduler.from_config(own.config, K=size, kind=kind)
            draw = step_time(ours, args.repeat)
            with ours.toward(torch.zeros(STATE)):
                follow = step_time(ours, 1 if kind == "gaussian" else args.repeat)
            rows.append({"kind": kind, "K": size, "draw": draw, "follow": follow})
            print(f"{kind:9} K={size:6}: draw {draw - base:+8.0f} us, follow {follow - base:+10.0f} us", flush=True)
    networks = {name: network_time(NETWORKS[name], 20 if name == "tiny" else 1) for name in args.networks}
    for row in rows:
        for what in ("draw", "follow"):
            row[f"{what}_overhead"] = row[what] - base
            row[f"{what}_percent"] = {name: 100 * (row[what] - base) / took for name, took in networks.items()}
    dim = torch.Size(STATE).numel()
    report = {
        "command": shlex.join(["python", *sys.argv]),
        "unit": "microseconds of processor time, one thread",
        "machine": f"{processor()}, torch {torch.__version__}",
        "state": STATE[1:],
        "ddpm_step": base,
        "torch_randn": microseconds(lambda: torch.randn(STATE), 1000),
        "torch_randn_codebook_4096": microseconds(lambda: (torch.randn(4096, dim) @ torch.zeros(dim)).argmax(), 3),
        "network": networks,
        "steps": rows,
    }
    if args.output:
        rounded = json.loads(json.dumps(report), parse_float=lambda number: float(f"{float(number):.4g}"))
        write_json(args.output, rounded, indent=1)
    print(f"DDPMScheduler {base:.0f} us, torch.randn {report['torch_randn']:.0f} us, its codebook of 4096 and search "
          f"{report['torch_randn_codebook_4096']:.0f} us, networks {networks}")  # fmt: skip


def processor() -> str:
    """The processor's name, as Linux has it."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].partition(":")[2].strip() if names else platform.machine()


if __name__ == "__main__":
    main()
