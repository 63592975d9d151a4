"""`ddcm doctor`: what a bug report should contain."""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from ddcm_fast import __version__
from ddcm_fast.cli.arguments import add_json
from ddcm_fast.cli.terminal import say
from ddcm_fast.codebook import backends, build, library_cache
from ddcm_fast.codebook.backends import hardware, selftest
from ddcm_fast.codebook.codebook import Codebook

_PACKAGES = ("torch", "numpy", "diffusers", "transformers", "triton", "safetensors", "pillow")

#: The search that is timed: kind, D and K; the reference is given fewer atoms.
_KIND, _DIM, _SIZE, _REFERENCE_SIZE = "sign", 4096, 16384, 512

#: Seconds that a backend is timed for.
_SECONDS = 0.2


def add_parser(commands: Any) -> None:
    """The subcommand `doctor`."""
    p = commands.add_parser(
        "doctor",
        description="Say what is installed here, which backends serve and why others do not, whether each computes "
        "what the noise law says, and how fast. Put it into a bug report.",
    )
    add_json(p, "it")
    p.set_defaults(run=_run)


def report() -> dict[str, Any]:
    """Everything that `ddcm doctor` says. Builds the kernels that are not built, and runs each backend's self-test."""
    devices = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    return {
        "ddcm-fast": __version__,
        "python": sys.version.split()[0],
        "system": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "cuda": {"torch": torch.version.cuda, "driver": hardware.driver()},
        "processor": {"name": hardware.processor(), "threads": torch.get_num_threads()},
        "gpus": [hardware.gpu(torch.device(name)) for name in devices[1:]],
        "compilers": {"c++": _command(build.compiler), "nvcc": _command(build.nvcc)},
        "caches": _caches(),
        "backends": [_backend(name, torch.device(device)) for device in devices for name in backends.names()],
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _command(find: Callable[[], list[str]]) -> str:
    try:
        return shlex.join(find())
    except build.BuildError as error:
        return f"none: {error}"


def _caches() -> list[dict[str, Any]]:
    preferred = library_cache.preferred_folder()
    found = []
    for folder in (build.SHIPPED_DIR, *([preferred] if preferred else []), *library_cache.temporary_folders()):
        refusal = None if folder == build.SHIPPED_DIR else library_cache.refusal(folder)
        files = sorted(path.name for path in folder.glob("*") if path.is_file()) if refusal is None else []
        found.append({"folder": str(folder), "refused": refusal, "files": files})
    return found


def _backend(name: str, device: torch.device) -> dict[str, Any]:
    """How a backend does on a device: why it is missing, its self-test, entries of noise searched a second."""
    missing = backends.missing(name, device)
    row: dict[str, Any] = {"name": name, "device": str(device), "missing": missing, "self_test": None, "speed": None}
    if missing is None and (name == "reference" or backends.load(name).asked(device)):
        wrong = selftest.ask(backends.load(name), device)
        row["self_test"] = wrong or "passed"
        row["speed"] = None if wrong else _speed(name, device)
    return row


def _speed(name: str, device: torch.device) -> float:
    """Entries of noise searched a second, for one residual."""
    size = _REFERENCE_SIZE if name == "reference" else _SIZE
    book = Codebook(_KIND, _DIM, size, backend=name)
    residual = torch.ones(1, _DIM, dtype=torch.float32, device=device)
    count, start = -1, 0.0  # the first search is not timed
    while count < 1 or time.perf_counter() - start < _SECONDS:
        book.search(residual, 0)[2].sum().item()  # waits for the device
        count += 1
        start = start or time.perf_counter()
    return count * size * _DIM / (time.perf_counter() - start)


def _run(args: argparse.Namespace) -> None:
    found = report()
    if args.json:
        say(json.dumps(found))
        return
    say(f"ddcm-fast  {found['ddcm-fast']}, Python {found['python']}, {found['system']}")
    packages = [f"{name} {number or 'missing'}" for name, number in found["packages"].items()]
    say(f"packages   {', '.join(packages)}")
    say(f"processor  {found['processor']['name']}, {found['processor']['threads']} threads")
    say(f"CUDA       torch for {found['cuda']['torch']}, driver {found['cuda']['driver']}")
    for name in found["gpus"]:
        say(f"GPU        {name}")
    for name, command in found["compilers"].items():
        say(f"{name:<10} {command}")
    for cache in found["caches"]:
        state = cache["refused"] or f"{len(cache['files'])} files"
        say(f"cache      {cache['folder']}: {state}")
    for row in found["backends"]:
        state = row["missing"] or f"self-test {row['self_test'] or 'not run here'}"
        speed = f", {row['speed']:.1e} entries/s ({_KIND}, D={_DIM})" if row["speed"] else ""
        say(f"{row['name']:<10} {row['device']}: {state}{speed}")
