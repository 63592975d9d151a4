"""Check and measure the GPU backends, for a GPU that can be had for minutes.

    python benchmarks/gpu_check.py --output DIR                    # all stages, the most important first
    python benchmarks/gpu_check.py --output DIR --stage check      # at most 150 s
    python benchmarks/gpu_check.py --output DIR --stage measure    # at most 240 s
    python benchmarks/gpu_check.py --output DIR --stage model      # at most 60 s; needs diffusers
    python benchmarks/gpu_check.py --output DIR --stage train --photos PHOTOS --minutes 8
    python benchmarks/gpu_check.py --output DIR --device cpu       # a rehearsal: stage check on the CPU backends

Needs a checkout, torch and a CUDA GPU (nvcc for the cuda backend); no installed package. Each part of a stage is a
process of its own with a limit of its own, so that an illegal access or a hang ends that part alone. Lines are printed
as they are known, and DIR/gpu_check.json is written after each part; a stage run later adds to it.

Exit status: 0 if every check passed, 1 if one failed or a part broke, 2 where there is no GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from gpu.checkout import REPOSITORY, use_checkout
from gpu.report import LISTS, Report, failures, reach, summary, write

KINDS = ("sign", "hadamard", "gaussian")
BUDGET = {"check": 150.0, "measure": 240.0, "model": 60.0, "train": 60.0}  # seconds; train's beside its --minutes


@dataclass(frozen=True)
class Part:
    """A process: the part's name, its limit in seconds, and what its command is run by."""

    name: str
    limit: float
    by: tuple[str, ...] = ()
    title: str = ""

    @property
    def label(self) -> str:
        return self.title or self.name


def stage_check(device: str) -> list[list[Part]]:
    """Groups of parts; those of a group run side by side."""
    if device == "cpu":
        return [[Part("environment", 60)], [Part(f"quick cpu {kind}", 120) for kind in KINDS]]
    sanitizer = find_sanitizer()
    by = (sanitizer, "--error-exitcode", "9") if sanitizer else ()
    checked = [Part(f"memcheck {kind}", 60, by, f"compute-sanitizer {kind}") for kind in KINDS] if by else []
    return [
        [Part("environment", 60)],
        [Part("build", 100)],
        [Part(f"quick cuda {kind}", 40) for kind in KINDS],
        [
            *(Part("clusters", 30), *checked),
            *(Part(f"triton {kind} {i}", 60) for i in range(6) for kind in KINDS),
            *(Part(f"paths triton {kind}", 90) for kind in KINDS),
        ],
        [Part(f"grid cuda {kind}", 60) for kind in KINDS],
    ]


def stage_measure() -> list[list[Part]]:
    """One part at a time: they would slow each other down."""
    return [
        [Part("goals", 60)],
        *([Part(f"searches cuda {kind}", 40)] for kind in KINDS),
        [Part("usual", 60)],
        [Part("ceilings", 40)],
        [Part("others cuda", 40)],
        [Part("best_paths triton", 40)],
        *([Part(f"searches triton {kind}", 60)] for kind in KINDS),
    ]


def find_sanitizer() -> str | None:
    """compute-sanitizer, on the path or beside nvcc."""
    nvcc = shutil.which("nvcc")
    beside = [str(Path(nvcc).resolve().parent)] if nvcc else []
    return shutil.which("compute-sanitizer", path=os.pathsep.join([os.environ.get("PATH", ""), *beside]))


class Driver:
    """Runs parts in processes of their own and gathers what they write."""

    def __init__(self, output: Path, device: str) -> None:
        self.path, self.parts, self.device = output / "gpu_check.json", output / "parts", device
        self.data: dict[str, Any] = {name: [] for name in LISTS}
        if self.path.is_file():
            self.data |= json.loads(self.path.read_text())

    def run(self, groups: list[list[Part]], seconds: float) -> None:
        """The groups of a stage one after the other, within the stage's budget."""
        end = time.monotonic() + seconds
        for group in groups:
            left = end - time.monotonic()
            if left < 5:
                for part in group:
                    self._note("skipped", part, "out of time")
                continue
            self._together([(part, min(part.limit, left)) for part in group])

    def _together(self, parts: list[tuple[Part, float]]) -> None:
        """Run parts side by side, no more at a time than there are processors."""
        waiting, running = list(parts), []
        while waiting or running:
            while waiting and len(running) < (os.cpu_count() or 1):
                part, limit = waiting.pop(0)
                running.append((part, self._start(part, limit), time.monotonic(), limit))
            time.sleep(0.05)
            for job in list(running):
                part, process, start, limit = job
                late = time.monotonic() - start > limit
                if process.poll() is None and not late:
                    continue
                running.remove(job)
                if process.poll() is None:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                self._gather(part, process.returncode, f"took more than {limit:.0f} s" if late else None)

    def _start(self, part: Part, limit: float) -> subprocess.Popen[bytes]:
        report = self._report(part)
        report.unlink(missing_ok=True)
        command = [*part.by, sys.executable, str(REPOSITORY / "benchmarks" / "gpu_check.py"), "--part", part.name]
        command += ["--output", str(report), "--device", self.device, "--limit", f"{limit:.1f}"]
        return subprocess.Popen(command, start_new_session=True)

    def _report(self, part: Part) -> Path:
        return self.parts / f"{part.label.replace(' ', '-')}.json"

    def _gather(self, part: Part, status: int, wrong: str | None) -> None:
        """Take over a part's results, in the place of those of an earlier run."""
        with contextlib.suppress(FileNotFoundError):
            found = json.loads(self._report(part).read_text())
            for name in LISTS:
                kept = [row for row in self.data[name] if row.get("part") != part.label]
                self.data[name] = kept + [{**row, "part": part.label} for row in found.pop(name)]
            self.data.setdefault("seconds", {})[part.label] = found.pop("seconds", {})
            missing = self.data.get("missing", {}) | found.pop("missing", {})
            self.data |= found
            self.data["missing"] = missing
        if wrong is None and status not in (0, 1):
            wrong = f"was ended by signal {signal.Signals(-status).name}" if status < 0 else f"exited with {status}"
        if wrong is not None:
            self._note("errors", part, f"the part {wrong}")
        self.write()

    def _note(self, what: str, part: Part, text: str) -> None:
        key = "reason" if what == "skipped" else "error"
        self.data[what].append({"section": part.label, key: text, "part": part.label})
        print(f"{part.label}: {text}", flush=True)

    def write(self) -> None:
        """The results so far, with what they say of the goals."""
        self.data["reach"] = reach(self.data) if self.device == "cuda" else []
        self.data["passed"] = not failures(self.data) and not self.data["errors"]
        write(self.path, self.data)


def train(driver: Driver, photos: Path | None, minutes: float) -> None:
    """Train the built-in model on, from its committed weights."""
    part = Part("train", BUDGET["train"] + 60 * minutes)
    if photos is None or not photos.exists():
        driver._note("skipped", part, "give the photographs by --photos")
        return
    place = driver.parts.parent / "photo"
    command = [sys.executable, "-m", "ddcm_fast.models.train", "photo", "--minutes", f"{minutes:g}"]
    command += ["--data", str(photos), "--output", str(place), "--device", "cuda"]
    command += ["--init", str(REPOSITORY / "ddcm_fast/models/weights/photo")]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    try:
        status = subprocess.run(command, timeout=part.limit, env=environment, check=False).returncode
    except subprocess.TimeoutExpired:
        status = -signal.SIGKILL
    if status != 0:
        driver._note("errors", part, f"training ended with {status}")
    driver.write()


def one_part(name: str, path: Path, device: str, limit: float) -> int:
    """What a part's own process does."""
    use_checkout()
    import torch
    from gpu.parts import named

    torch.manual_seed(time.time_ns() % 2**31)
    report = Report(path, limit)
    report.guard(name, lambda: named(name)(report, device), 0)
    report.write()
    return 1 if report.failures() or report.data["errors"] else 0


def main(argv: list[str] | None = None) -> int:
    """Command line entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for gpu_check.json")
    parser.add_argument("--stage", choices=("all", *BUDGET), default="all", help="default: check, measure, model")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seconds", type=float, help="of the stage; what no longer fits is left out (default: above)")
    parser.add_argument("--photos", type=Path, help="of stage train: a tar archive of photographs")
    parser.add_argument("--minutes", type=float, default=8.0, help="of stage train (default: 8)")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=float, default=60.0, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.part is not None:
        return one_part(args.part, args.output, args.device, args.limit)
    if args.device == "cuda" and shutil.which("nvidia-smi") is None and not Path("/dev/nvidia0").exists():
        print("gpu_check needs a CUDA GPU that torch can use; there is none here", file=sys.stderr)
        return 2
    driver = Driver(args.output, args.device)
    stages = ("check", "measure", "model") if args.stage == "all" else (args.stage,)
    for stage in stages[:1] if args.device == "cpu" else stages:
        if stage == "train":
            train(driver, args.photos, args.minutes)
        else:
            groups = {"check": stage_check(args.device), "measure": stage_measure(), "model": [[Part("model", 60)]]}
            driver.run(groups[stage], BUDGET[stage] if args.seconds is None else args.seconds)
    driver.write()
    print(summary(driver.data))
    return 0 if driver.data["passed"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
