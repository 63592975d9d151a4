"""Compile every kernel that the backend launches for one kind and GPU architecture; needs no GPU.

    python tests/backends/triton_compile.py KIND CAPABILITY [DIRECTORY] [--quick]

The host code runs as ever, on meta tensors, with launches replaced by compilations. Prints a JSON list of the kernels'
registers, stack, local and shared memory, and whether they multiply by warp groups; writes their cubins into DIRECTORY
if given. With --quick, only those of one search, one synthesis and one trellis.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from ddcm_fast.codebook.law import CodebookSpec

_BIN = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


#: (K, D) that between them reach every kernel; the second of `sign` has sums of more than 31 bits.
SHAPES = {
    "gaussian": [(70000, 5000)],
    "sign": [(70000, 5000), (1000, 128 * 65536 + 5)],
    "hadamard": [(70000, 17000), (1000, 1500), (70000, 4000), (5000, 1500), (5000, 200), (200, 5000), (3000, 40)],
}

#: Batches that between them reach every tile.
BATCHES = {
    "gaussian": (1, 2, 4, 9, 32, 50, 100, 256),
    "sign": (1, 2, 4, 9, 20, 50, 100, 256),
    "hadamard": (1, 2, 4, 20),
}

#: Bits of a letter and of memory that between them reach every tile of a trellis: of one part, of two to 256, of many
#: letters and of few.
TRELLISES = [(5, 12), (1, 1), (3, 5), (4, 8), (2, 12), (1, 16), (5, 16), (6, 16), (7, 16), (8, 8), (8, 16)]


class _Driver:
    """As much of a driver as compiling asks for."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_benchmarker(self) -> None:
        """Triton 3.2 asks for it when a kernel to be tuned is defined."""

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
        from ddcm_fast.kernels.launch import named

        meta.setdefault("enable_fp_fusion", True)
        configs = getattr(kernel, "configs", [None])
        arguments = named(kernel, args)
        if getattr(kernel, "early_config_prune", None) is not None:
            configs = kernel.early_config_prune(configs, arguments, **meta)
        elif arguments.get("key_ptr", True) is None:
            configs = configs[:1]  # only the ends differ from the search
        function = kernel.fn if hasattr(kernel, "configs") else kernel
        for config in configs:
            options = dict(meta)
            if config is not None:
                options.update(config.all_kwargs())
            name = f"{function.fn.__module__}.{function.fn.__name__}".removeprefix("ddcm_fast.kernels.")
            given = "".join(f"-{k}" for k, v in arguments.items() if v is None)
            key = name + given + "".join(f"-{k}{v}" for k, v in sorted(options.items()))
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
            "warp_group": "wgmma.mma_async" in compiled.asm["ptx"],
        }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=SHAPES)
    parser.add_argument("capability", type=int)
    parser.add_argument("directory", type=Path, nargs="?")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    driver.set_active(_Driver(arguments.capability))
    # Triton 3.2 looks for the driver when kernels are defined.
    from ddcm_fast.kernels import operations, rotate, search_gaussian, search_hadamard, search_sign, select, trellis

    compiler = Compiler(arguments.directory)
    combine = sys.modules["ddcm_fast.kernels.combine"]  # the package's attribute is the operation
    for module in (search_gaussian, search_hadamard, search_sign, select, rotate, combine, trellis):
        module.launch = compiler
    torch.set_default_device("meta")  # only shapes and types are looked at
    step = torch.empty((), dtype=torch.int64)
    for size, dim in SHAPES[arguments.kind]:
        spec = CodebookSpec(arguments.kind, dim, size, seed=7)
        for batch in BATCHES[arguments.kind]:
            w = torch.empty(batch, dim)
            operations.search(spec, w, step, True, None)
            if arguments.quick:
                break
            operations.search(spec, w, step, True, torch.empty(size))
            operations.scores(spec, w, step)
            operations.scores_and_norms(spec, w, step)
        operations.combine(spec, torch.empty(1, 1, 2, dtype=torch.int64), torch.empty(1, 1, 2), step)
        if arguments.quick:
            break
        operations.search(spec, w, step, False, torch.empty(1, size))
        operations.topk(spec, w, step, 3, True, torch.empty(size))
        operations.to_image_order(spec, operations.to_codebook_order(spec, w))
    if arguments.kind == "hadamard":  # paths are the same of every kind
        for letter_bits, memory in TRELLISES[: 1 if arguments.quick else None]:
            spec = CodebookSpec(arguments.kind, 12288, 1 << (memory + letter_bits - 1), 200, seed=7)
            operations.trellis_search(spec, torch.empty(1, 12288), step, letter_bits)
    print(json.dumps(list(compiler.kernels.values())))


if __name__ == "__main__":
    main()
