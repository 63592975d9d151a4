"""A soak test of runs over many: workers killed at random moments and begun again write what one alone writes.

    python benchmarks/soak.py --output benchmarks/results/soak.json

Makes pictures, compresses them by one undisturbed process, then by several workers, one of which at a time is killed
(SIGKILL) and started again until there were enough kills. Then both folders are compared byte for byte. Exits with
status 1 if anything is missing, different or left over.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ddcm_fast.codebook.backends.hardware import processor
from ddcm_fast.files import JSON, Outputs, write_json

CODING = ("--model", "gaussian-field", "--preset", "ddcm", "-T", "100", "-K", "4096", "-q")


def start(pictures: Path, output: Path, rank: int, workers: int) -> subprocess.Popen[bytes]:
    """One worker, as torchrun would start it."""
    environment = {**os.environ, "RANK": str(rank), "WORLD_SIZE": str(workers), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "ddcm_fast.cli", "compress", str(pictures), str(output), *CODING]
    return subprocess.Popen(command, env=environment)


def files(folder: Path) -> dict[str, bytes]:
    """Every file of a folder but the manifests."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".jsonl")
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="JSON to write")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    Outputs().add(args.output, JSON)
    chance, noise = random.Random(args.seed), np.random.default_rng(args.seed)

    with tempfile.TemporaryDirectory() as name:
        pictures, alone, together = (Path(name) / part for part in ("in", "alone", "together"))
        for i in range(args.images):
            path = pictures / f"{i % 10}" / f"{i:05}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            small = Image.fromarray(noise.integers(0, 256, (4, 4, 3), dtype=np.uint8))
            small.resize((32, 32), Image.Resampling.BICUBIC).save(path)

        begun = time.perf_counter()
        if start(pictures, alone, 0, 1).wait() != 0:
            raise SystemExit("the undisturbed run failed")
        seconds_alone = time.perf_counter() - begun

        begun = time.perf_counter()
        running = [start(pictures, together, rank, args.workers) for rank in range(args.workers)]
        there_at_kill = []
        while len(there_at_kill) < args.kills:
            time.sleep(chance.uniform(0.5, 7))
            rank = chance.randrange(args.workers)
            running[rank].kill()
            running[rank].wait()
            there_at_kill.append(sum(1 for _ in together.rglob("*.ddcm")))
            running[rank] = start(pictures, together, rank, args.workers)
        if any(worker.wait() != 0 for worker in running):
            raise SystemExit("a worker failed")
        seconds_together = time.perf_counter() - begun

        one, many = files(alone), files(together)
        report = {
            "command": " ".join(["python", "benchmarks/soak.py", *sys.argv[1:]]),
            "machine": f"{processor()}, {os.cpu_count()} cores",
            "torch": torch.__version__,
            "coding": " ".join(CODING),
            "images": args.images,
            "workers": args.workers,
            "kills": args.kills,
            "results_there_at_each_kill": there_at_kill,
            "missing": sorted(one.keys() - many.keys()),
            "different": sorted(key for key in one.keys() & many.keys() if one[key] != many[key]),
            "stray": sorted(many.keys() - one.keys()),
            "seconds_undisturbed_one_worker": round(seconds_alone, 1),
            "seconds_with_kills": round(seconds_together, 1),
        }
    write_json(args.output, report, indent=1)
    print({key: value for key, value in report.items() if key not in ("command", "machine", "torch")})
    return 1 if report["missing"] or report["different"] or report["stray"] or len(one) != args.images else 0


if __name__ == "__main__":
    sys.exit(main())
