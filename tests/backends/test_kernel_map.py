"""docs/kernels/map.md leads where it says: every path exists, and every kernel it names is in the file beside it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

MAP = Path(__file__).resolve().parents[2] / "docs" / "kernels" / "map.md"
LAW = (MAP.parents[1] / "noise-law.md").read_text(encoding="utf-8")
REFERENCE = MAP.parents[2] / "ddcm_fast" / "codebook" / "reference.py"
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in MAP.read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and not line.startswith("| operation |")
]


def defines(path: Path, name: str) -> bool:
    return re.search(rf"^\s*(def|struct|[\w<>:*& ]+?) {name}\b", path.read_text(encoding="utf-8"), re.M) is not None


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_the_map_is_true(row):
    _, sections, reference, *files = row
    assert all(f"\n## {section}." in LAW for section in sections.split(", "))
    for name in re.findall(r"`(\w+)`", reference):
        assert defines(REFERENCE, name), name
    assert len(files) == 4
    for cell in files:
        links = re.findall(r"\[([\w.]+)\]\(([\w./]+)\)([^\[]*)", cell)
        assert links, cell
        for label, target, names in links:
            path = MAP.parent / target
            assert path.is_file() and path.name == label, target
            for name in re.findall(r"`(\w+)`", names):
                assert defines(path, name), (target, name)


def test_every_kernel_file_is_on_the_map():
    """A new file of kernels gets its place; what several operations share has none."""
    shared = {"__init__.py", "launch.py", "residual.py", "driver.h", "driver.cpp", "interface.h", "interface.cpp",
              "kernels.h", "simd.h", "pool.h", "pool.cpp", "avx2.cpp", "avx512.cpp", "avx512.h",
              "avx512vnni.cpp", "portable.cpp",
              "gaussian_coefficients.h", "gaussian_coefficients.py", "block.h", "scalar.h", "mma.h", "launch.h",
              "plan.h", "emulate.cpp"}  # fmt: skip
    text = MAP.read_text(encoding="utf-8")
    for folder in ("kernels", "csrc/cpu", "csrc/cuda"):
        for path in (MAP.parents[2] / folder).glob("*.*"):
            assert path.name in shared or path.suffix == ".cu" or f"/{folder}/{path.name})" in text, path
