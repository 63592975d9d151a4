"""Images a second of `ddcm compress` over a folder on a machine's cores: one by one, and as it is done by default.

    python benchmarks/bulk_throughput.py --images DIR --output benchmarks/results/bulk_throughput.json

"One by one" is a process with a thread a core and --batch-size 1; "by default" a worker a core, each with one thread
and the batch size that it chooses. Seconds are a clock's, less those of the same command when everything is there
already (loading, reading, comparing). Their files differ, since the network's bits depend on the number of threads. The
output is written after every figure; one that holds figures of the same command is gone on with.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from photographs import ran, save_crops

from ddcm_fast.files import JSON, Outputs, write_json

SETTINGS = ("--preset product -T 20 -K 65536", "--preset ddcm -T 20 -K 1048576")


def seconds(folder: Path, output: Path, options: str, workers: int, cores: int) -> float:
    """What some workers take together for a folder. Exits if one fails."""
    begun = time.perf_counter()
    command = [sys.executable, "-m", "ddcm_fast.cli", "compress", str(folder), str(output), *shlex.split(options), "-q"]
    running = []
    for rank in range(workers):
        threads = str(cores // workers)
        environment = {**os.environ, "RANK": str(rank), "WORLD_SIZE": str(workers), "OMP_NUM_THREADS": threads}
        running.append(subprocess.Popen(command, env=environment))
    if any([worker.wait() != 0 for worker in running]):
        raise SystemExit(f"ddcm {shlex.join(command[3:])} failed")
    return time.perf_counter() - begun


def measure(folder: Path, there: Path, options: str, images: int, cores: int) -> dict[str, Any]:
    """Of one setting: images a second both ways."""
    seconds(folder, there / "warm", f"{options} --limit 1", 1, cores)  # which compiles the library where it must be
    row: dict[str, Any] = {"options": options}
    for name, workers, more in (("one by one", 1, " --batch-size 1"), ("by default", cores, "")):
        output = there / name.replace(" ", "-")
        took = seconds(folder, output, options + more, workers, cores)
        took -= seconds(folder, output, options + more, workers, cores)
        row[name] = {"seconds": round(took, 2), "images_a_second": round(images / took, 3)}
    row["times"] = round(row["by default"]["images_a_second"] / row["one by one"]["images_a_second"], 2)
    return row


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder of photographs")
    parser.add_argument("--output", type=Path, required=True, help="JSON to write")
    parser.add_argument("--count", type=int, default=64, help="crops of 64x64 (default: 64)")
    args = parser.parse_args()
    Outputs().add(args.output, JSON)
    cores = os.cpu_count() or 1
    report: dict[str, Any] = {
        **ran(args),
        "load_average_before": round(os.getloadavg()[0], 1),
        "images": args.count,
        "settings": [],
    }
    if args.output.exists() and (before := json.loads(args.output.read_text()))["command"] == report["command"]:
        report = before
    with tempfile.TemporaryDirectory() as name:
        save_crops(args.images, [64], args.count, Path(name) / "in")
        for i, options in enumerate(SETTINGS):
            if options not in (row["options"] for row in report["settings"]):
                row = measure(Path(name) / "in", Path(name) / f"{i}", options, args.count, cores)
                report["settings"].append(row)
                print(row, flush=True)
                write_json(args.output, report, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
