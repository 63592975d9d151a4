"""Compile every kernel that the backend launches for one kind and GPU architecture; needs no GPU.

    python tests/triton_compile.py KIND CAPABILITY [DIRECTORY]

The host code runs as ever, on CPU tensors, with launches replaced by compilations. Prints a JSON list of the kernels'
registers, stack, local and shared memory; writes their cubins into DIRECTORY if given.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from ddcm_fast.kernels import (
    gaussian,
    hadamard_search,
    operations,
    ranking,
    rotation,
    sign,
    synthesis,
)
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from ddcm_fast.law import CodebookSpec

_BIN = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


class _Driver:
    """As much of a driver as compiling asks for."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self.target


class Compiler:
    """Stands in for ddcm_fast.kernels.launch.launch."""

    def __init__(self, directory: Path | None) -> None:
        self.directory = directory
        self.kernels: dict[str, dict[str, object]] = {}

    def __call__(self, kernel, programs, *args, **meta):
        meta.setdefault("enable_fp_fusion", True)
        configs = getattr(kernel, "configs", [None])
        if not meta.get("SEARCH", True):
            configs = configs[:1]  # only the ends differ from the search
        function = kernel.fn if hasattr(kernel, "configs") else kernel
        for config in configs:
            options = dict(meta)
            if config is not None:
                options.update(config.all_kwargs())
            name = f"{function.fn.__module__}.{function.fn.__name__}".removeprefix("ddcm_fast.kernels.")
            key = name + "".join(f"-{k}{v}" for k, v in sorted(options.items()))
            if key in self.kernels:
                continue
            compiled = function.warmup(*args, grid=(programs,), **options)
            self.kernels[key] = {"name": name, "meta": options, **self._resources(compiled, key)}

    def _resources(self, compiled, key: str) -> dict[str, int]:
        with tempfile.TemporaryDirectory() as scratch:
            path = (self.directory or Path(scratch)) / f"{key}.cubin"
            path.write_bytes(compiled.asm["cubin"])
            usage = subprocess.run(
                [_BIN / "cuobjdump", "--dump-resource-usage", path],
                capture_output=True, text=True, check=True,
            ).stdout  # fmt: skip
        found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", usage)
        assert found, usage
        registers, stack, _, local = map(int, found.groups())
        return {
            "registers": registers,
            "stack": stack,
            "local": local,
            "shared": compiled.metadata.shared,
        }


def main(kind: str, capability: str, directory: str | None = None) -> None:
    driver.set_active(_Driver(int(capability)))
    compiler = Compiler(Path(directory) if directory else None)
    for module in (gaussian, hadamard_search, ranking, rotation, sign, synthesis):
        module.launch = compiler
    step = torch.tensor(5)
    for size, dim in ((70000, 5000),) if kind != "hadamard" else ((70000, 17000), (1000, 1500)):
        spec = CodebookSpec(kind, dim, size, seed=7)
        for batch in {"gaussian": (1, 4, 9, 32, 50, 200), "sign": (1, 3, 8, 9, 20, 200), "hadamard": (1, 4)}[kind]:
            w = torch.randn(batch, dim)
            operations.search(spec, w, step, True, None)
        operations.scores(spec, w[:1], step)
        operations.topk(spec, w[:1], step, 3, True, torch.zeros(size))
        operations.to_image_order(spec, operations.to_codebook_order(spec, w[:1]))
        for batch in (2, 9, 32, 50, 200) if kind == "gaussian" else (1,):
            operations.scores_and_norms(spec, torch.randn(batch, dim), step)
        operations.combine(spec, torch.zeros(1, 1, 2, dtype=torch.int64), torch.ones(1, 1, 2), step)
    print(json.dumps(list(compiler.kernels.values())))


if __name__ == "__main__":
    main(*sys.argv[1:])
