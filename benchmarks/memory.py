"""How much memory coding a picture takes, by its size and by how many are coded together, whole and in tiles.

    python benchmarks/memory.py --output benchmarks/results/memory.json

Each case runs in a process of its own, which loads `photo`, notes what it holds, codes pictures of noise and says the
peak of its resident memory (Linux); for one picture another process decodes the file. One coded step, a tail of one and
as many atoms a step as the preset has by default at 0.25 bpp. With glibc told to give freed blocks back
(MALLOC_MMAP_THRESHOLD_=65536) memory does not depend on the number of steps, as the cases with more of them show;
"malloc": "default" is without that, where it grows with the steps. A case that would take more than --most bytes, in
proportion to those before it, is left out and said to be. The output is written after every case, and cases that it has
are not measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from photographs import processor

from ddcm_fast.files import JSON, Outputs, write_json

TILED = "photo#tile=128,16"
#: Model, side, images together, preset, steps, glibc's malloc.
CASES = (
    *(("photo", side, batch, "trellis", 1, "returns") for side in (64, 128, 256, 512, 1024) for batch in (1, 8)),
    *(("photo", side, 1, "trellis", 16, "returns") for side in (256, 512)),
    *(("photo", side, 1, "trellis", 16, "default") for side in (256, 512, 1024)),
    *(("photo", 256, batch, "ddcm", 1, "returns") for batch in (1, 8)),
    *((TILED, side, batch, "trellis", 1, "returns") for side in (512, 1024) for batch in (1, 8)),
    *((TILED, side, 1, "trellis", 1, "returns") for side in (2048, 4096)),
    *((TILED, side, 8, "trellis", 1, "returns") for side in (2048, 4096)),
)
_COLUMNS = ("model", "side", "batch", "preset", "steps", "malloc")
#: glibc's: from this size on, a freed block goes back to the system at once.
_RETURNS = {"MALLOC_MMAP_THRESHOLD_": "65536"}
#: Bits a pixel and steps of the default, by which a step's atoms are counted; bits of a letter.
_BPP, _STEPS, _BITS = 0.25, 16, 5


def run(case: Sequence[Any], file: Path, coding: bool) -> dict[str, int]:
    """Code or decode in this process; bytes held before and at the peak."""
    import torch

    from ddcm_fast import Codec, load_model
    from ddcm_fast import preset as named
    from ddcm_fast.codec.limits import Limits, held_by_image

    name, side, batch, preset, steps, _ = case
    torch.set_num_threads(1)
    if preset == "ddcm":
        config = named("ddcm", T=steps + 1, K=4096)
    else:
        atoms = max(1, round(_BPP * side * side / _BITS / _STEPS))
        config = named(preset, T=steps, atoms=steps * atoms)
    model = load_model(name, device="cpu")
    codec = Codec(model, config, batch_size=batch, exact=True, limits=Limits(memory=1 << 40))
    dim = 1
    for part in model.latent_shape(side, side):
        dim *= part
    held = held_by_image(config, dim, "auto", model.device)
    few = named("ddcm", T=2, K=16) if preset == "ddcm" else named(preset, T=2, atoms=8)
    Codec(model, few).encode(torch.zeros(1, 3, 32, 32))  # code, tables and threads that stay
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    if coding:
        images = torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
        (first, *_) = codec.encode(images)
        file.write_bytes(first.data)
    else:
        codec.decode_many([file.read_bytes()] * batch)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"loaded": before, "peak": peak, "held_by_image": held}


def measure(case: tuple[str, int, int, str, int, str]) -> dict[str, Any]:
    """In processes of its own."""
    row: dict[str, Any] = dict(zip(_COLUMNS, case, strict=True))
    environment = {**os.environ, **(_RETURNS if row["malloc"] == "returns" else {})}
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for way in ("compress", "decompress") if row["batch"] == 1 else ("compress",):
            command = [sys.executable, __file__, "--case", json.dumps(case), "--way", way, "--file", f"{folder}/a"]
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            if done.returncode != 0:
                raise SystemExit(f"{case}: {done.stderr[-2000:]}")
            found = json.loads(done.stdout)
            row |= {"loaded": found["loaded"], way: found["peak"], "held_by_image": found["held_by_image"]}
    return row | {"seconds": round(time.perf_counter() - start, 1)}


def expected(rows: list[dict[str, Any]], name: str, side: int, batch: int) -> float:
    """Bytes, in proportion to the largest case of as many images before."""
    alike = [row for row in rows if row["model"] == name and row["batch"] == batch and "compress" in row]
    if not alike:
        return 0.0
    row = max(alike, key=lambda other: int(other["side"]))
    return float(row["loaded"] + (row["compress"] - row["loaded"]) * side**2 / row["side"] ** 2)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="JSON to write")
    parser.add_argument("--most", type=float, default=8e9, help="bytes that a case may take")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        print(json.dumps(run(json.loads(args.case), args.file, args.way == "compress")))
        return
    if args.output is None:
        parser.error("--output is needed")
    Outputs().add(args.output, JSON)
    rows: list[dict[str, Any]] = json.loads(args.output.read_text())["cases"] if args.output.exists() else []
    there = [tuple(row[key] for key in _COLUMNS) for row in rows]
    for case in CASES:
        if case in there:
            continue
        bytes_expected = expected(rows, case[0], case[1], case[2])
        if bytes_expected > args.most:
            rows.append(dict(zip(_COLUMNS, case, strict=True)) | {"left_out": round(bytes_expected)})
        else:
            rows.append(measure(case))
        print(rows[-1], flush=True)
        report = {
            "command": " ".join(["python", "benchmarks/memory.py", *sys.argv[1:]]),
            "machine": f"{processor()}, one thread",
            "bytes": "resident: loaded before coding, and the peak of compressing and decompressing",
            "cases": rows,
        }
        write_json(args.output, report, indent=1)


if __name__ == "__main__":
    main()
