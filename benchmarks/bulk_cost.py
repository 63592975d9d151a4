"""How right `ddcm compress --dry-run` is about seconds and bytes: foretold and real, one after the other.

    python benchmarks/bulk_cost.py --images DIR --output benchmarks/results/bulk_cost.json

For each setting the command foretells a run over crops of the folder's photographs, and then runs. What the same
command takes when everything is there already (loading, reading, comparing) is subtracted. One thread. `real` is what
a clock says, `processor` the processor's own seconds, which are what counts where others are at work on the machine.
The output is written after every setting; exits with status 1 if a foretold time is 25 % or more from the processor's,
but for --psnr, whose number of encodings depends on the image.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
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

#: Sides of the crops (several: a mixture), images, and options.
CASES = (
    ((64,), 12, "--preset trellis --bpp 0.5"),
    ((64,), 12, "--preset product --bpp 0.5"),
    ((64,), 12, "--preset ddcm -K 65536 --bpp 0.5"),
    ((192,), 12, "--preset trellis --bpp 0.25"),
    ((192,), 12, "--preset product --bpp 0.25"),
    ((192,), 4, "--preset ddcm -K 65536 -T 40"),
    ((256,), 12, "--preset trellis"),
    ((256,), 8, "--preset product --bpp 0.25"),
    ((256,), 4, "--preset ddcm -K 65536 -T 40"),
    ((64, 192, 256), 12, "--preset trellis --bpp 0.25"),
    ((192,), 6, "--preset trellis --psnr 28"),
    ((64,), 8, "--preset ddcm -K 1048576 -T 10"),
)
_RIGHT = 0.25


def run(command: list[str]) -> tuple[float, float, str]:
    """Seconds by the clock and the processor, and what the command said. Exits if it fails."""
    wall, own, said = time.perf_counter(), time.process_time(), io.StringIO()
    with contextlib.redirect_stdout(said):
        status = ddcm([*command, "--json"])
    if status != 0:
        raise SystemExit(f"ddcm {shlex.join(command)} failed")
    return time.perf_counter() - wall, time.process_time() - own, said.getvalue()


def measure(folder: Path, output: Path, options: str) -> dict[str, Any]:
    """Of one setting: what was foretold, and what came of it."""
    command = ["compress", str(folder), str(output), *shlex.split(options)]
    foretold = json.loads(run([*command, "--dry-run"])[2])
    wall, own, said = run(command)
    wall_nothing, own_nothing, _ = run(command)
    seconds, real = 3600 * foretold["hours"], wall - wall_nothing
    return {
        "foretold": round(seconds, 2),
        "network": round(3600 * foretold["network_hours"], 2),
        "search": round(3600 * foretold["search_hours"], 2),
        "real": round(real, 2),
        "processor": round(own - own_nothing, 2),
        "error": round(seconds / (own - own_nothing) - 1, 3),
        "error_by_the_clock": round(seconds / real - 1, 3),
        "measured_for": foretold["measured_seconds"],
        "bytes_foretold": foretold["bytes"],
        "bytes": json.loads(said)["bytes"],
    }


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
        "seconds": "of the whole run, loading subtracted",
        "settings": [],
    }
    with tempfile.TemporaryDirectory() as name:
        for number, (sides, images, options) in enumerate(CASES):
            folder = Path(name) / f"in-{number}"
            save_crops(args.images, sides, images, folder)
            row = {"sides": sides, "images": images, "options": options}
            row |= measure(folder, Path(name) / f"out-{number}", options)
            report["settings"].append(row)
            print(row, flush=True)
            write_json(args.output, report, indent=1)
    return 0 if all(abs(row["error"]) < _RIGHT or "--psnr" in row["options"] for row in report["settings"]) else 1


if __name__ == "__main__":
    sys.exit(main())
