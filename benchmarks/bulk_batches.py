"""How much faster runs over many are in batches: processor seconds an image of `ddcm compress` and `ddcm decompress`.

    python benchmarks/bulk_batches.py --images DIR --output benchmarks/results/bulk_batches.json

Crops of the folder's photographs are coded by the command itself, each setting with several --batch-size. What the same
command takes when everything is there already (loading, reading, comparing) is subtracted. One thread; processor
seconds, so that other work on the machine counts little. The files of all batch sizes are compared byte for byte; exits
with status 1 if any differ. The output is written after every setting.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from photographs import ran, save_crops

from ddcm_fast.cli import main as ddcm
from ddcm_fast.files import JSON, Outputs, write_json

#: Side of the crops, images, and options.
CASES = (
    (64, 16, "--preset ddcm -T 20 -K 4096"),
    (64, 16, "--preset ddcm -T 20 -K 65536"),
    (64, 16, "--preset ddcm -T 10 -K 1048576"),
    (64, 16, "--preset pursuit -T 20 -K 4096"),
    (64, 16, "--preset turbo -T 20 --atoms 400"),
    (64, 16, "--preset product -T 20 -K 65536 --atoms 200"),
    (64, 16, "--preset trellis -T 16 --atoms 600"),
    (256, 8, "--preset ddcm -T 10 -K 4096"),
    (256, 8, "--preset ddcm -T 10 -K 65536"),
)
BATCHES = (1, 2, 8, 16)


def seconds(command: list[str]) -> float:
    """Processor seconds of a command. Exits if it fails."""
    start = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        status = ddcm([*command, "-q"])
    if status != 0:
        raise SystemExit(f"ddcm {shlex.join(command)} failed")
    return time.process_time() - start


def net(command: list[str], images: int) -> float:
    """Seconds an image, without what the command takes with nothing to do."""
    return round((seconds(command) - seconds(command)) / images, 4)


def results(folder: Path) -> dict[str, bytes]:
    """The files of a folder but its manifest."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".jsonl"}


def measure(folder: Path, images: int, options: str) -> dict[str, Any]:
    """Of one setting: seconds an image by batch size, both ways."""
    with tempfile.TemporaryDirectory() as name:
        there, rows = Path(name), []
        seconds(["compress", str(folder), str(there / "warm"), *shlex.split(options), "--limit", "1"])
        for size in BATCHES:
            many = ["--batch-size", str(size)]
            coded, back = there / f"{len(rows)}", there / f"{len(rows)}-back"
            compress = net(["compress", str(folder), str(coded), *shlex.split(options), *many], images)
            decompress = net(["decompress", str(coded), str(back), *many], images)
            rows.append({"batch": size, "compress": compress, "decompress": decompress})
        folders = [there / f"{i}" for i in range(len(rows))]
        same = all(
            results(one) == results(folders[0]) and results(Path(f"{one}-back")) == results(Path(f"{folders[0]}-back"))
            for one in folders
        )
    return {"options": options, "images": images, "same_bytes": same, "seconds_an_image": rows}


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder of photographs")
    parser.add_argument("--output", type=Path, required=True, help="JSON to write")
    args = parser.parse_args()
    Outputs().add(args.output, JSON)
    torch.set_num_threads(1)
    report: dict[str, Any] = {
        **ran(args),
        "seconds": "processor's, loading subtracted",
        "settings": [],
    }
    with tempfile.TemporaryDirectory() as name:
        for side, images, options in CASES:
            folder = Path(name) / f"{side}-{images}"
            if not folder.exists():
                save_crops(args.images, [side], images, folder)
            row = {"side": side, **measure(folder, images, options)}
            report["settings"].append(row)
            print(row, flush=True)
            write_json(args.output, report, indent=1)
    return 0 if all(row["same_bytes"] for row in report["settings"]) else 1


if __name__ == "__main__":
    sys.exit(main())
