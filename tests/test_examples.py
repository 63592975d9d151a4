"""Every example is run as its first lines say, from a folder of its own, and leaves nothing but what it says."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"

#: Name -> what it prints. The demo takes a minute: `make demo` runs it.
WANTED = {"codec": "bits a pixel", "own_sampler": "are the picture", "search": "atom"}


def test_no_example_is_forgotten():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*WANTED, "demo"}


@pytest.mark.parametrize("name", [pytest.param("codec", marks=pytest.mark.slow), "own_sampler", "search"])
def test_example(name, tmp_path):
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py")],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert WANTED[name] in done.stdout and not list(tmp_path.iterdir())
