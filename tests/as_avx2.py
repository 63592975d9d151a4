"""Runs pytest as a processor with AVX2 and without AVX-512 computes: other instructions, other orders of sums.

    python tests/as_avx2.py [PYTEST ARGUMENTS]

Each library has a switch of its own. Where a processor has no AVX-512 there is nothing to imitate: says so, status 0.
"""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np

_CHECK = """
import as_avx2, torch
from ddcm_fast.codebook.backends import cpu
found = torch.backends.cpu.get_cpu_capability(), as_avx2.newer_features(), cpu.instruction_set()
assert found == ("AVX2", [], "avx2"), f"the imitation of an older processor did not take: {found}"
"""


def newer_features() -> list[str]:
    """What numpy uses here beyond AVX2, by the names of this numpy (it warns of names that it does not use)."""
    found = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])
    return [name for name in found if name.startswith("AVX512") or name == "X86_V4"]


def main() -> None:
    newer = newer_features()
    if not newer:
        print("this processor has no AVX-512: `make test` has shown how it computes without")
        return
    here = os.path.dirname(os.path.abspath(__file__))
    environment = {
        **os.environ,
        "DDCM_CPU_ISA": "avx2",
        "NPY_DISABLE_CPU_FEATURES": " ".join(newer),
        "OPENBLAS_CORETYPE": "Haswell",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
    }
    subprocess.run([sys.executable, "-c", _CHECK], env={**environment, "PYTHONPATH": here}, check=True)
    os.execve(sys.executable, [sys.executable, "-m", "pytest", *sys.argv[1:]], environment)


if __name__ == "__main__":
    main()
