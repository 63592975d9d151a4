"""Rules that every source of the package keeps, read from its syntax tree."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted([*ROOT.glob("ddcm_fast/**/*.py"), *ROOT.glob("kernels/**/*.py")])

#: Functions that make tensors from nothing: torch's default dtype and device, which are the user's, must not decide.
MAKERS = {
    *("arange", "empty", "empty_strided", "eye", "full", "linspace", "logspace", "ones", "rand", "randint", "randn"),
    *("randperm", "range", "scalar_tensor", "tensor", "zeros", "as_tensor", "asarray", "fftfreq", "rfftfreq"),
    *("hann_window", "hamming_window", "kaiser_window", "blackman_window", "bartlett_window", "tril_indices"),
    *("triu_indices", "frombuffer"),
}
#: torch modules under whose name a maker may be called.
NAMESPACES = {"torch", "fft", "windows"}


def missing(source: str) -> list[tuple[int, str]]:
    """(line, what) of every call that makes a tensor and leaves dtype or device to torch's global state."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        name, owner = node.func.attr, node.func.value
        owner_name = owner.id if isinstance(owner, ast.Name) else owner.attr if isinstance(owner, ast.Attribute) else ""
        given = {keyword.arg for keyword in node.keywords}
        if None in given:  # **options
            continue
        if name in MAKERS and owner_name in NAMESPACES:
            needed = {"dtype", "device"}
        elif name == "Generator" and owner_name == "torch":
            needed = set() if node.args else {"device"}
        else:
            continue
        found += [(node.lineno, f"{name} without {what}") for what in sorted(needed - given)]
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_tensors_name_dtype_and_device(path):
    assert missing(path.read_text(encoding="utf-8")) == []


def test_the_rule_sees_what_it_should():
    code = """
torch.zeros(3)
torch.zeros(3, dtype=d)
torch.fft.fftfreq(3, device=c)
torch.Generator()
torch.Generator("cpu"), torch.zeros(3, dtype=d, device=c), x.new_zeros(3), tl.zeros((3,), tl.int64), np.zeros(3)
"""
    assert missing(code) == [
        (2, "zeros without device"),
        (2, "zeros without dtype"),
        (3, "zeros without device"),
        (4, "fftfreq without dtype"),
        (5, "Generator without device"),
    ]
