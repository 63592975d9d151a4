"""Every Python block of the documentation runs, and the commands of its pages for beginners.

A page is one program: its blocks run in order, in one namespace and one folder with a photograph. What stands for a
model of the hub is a tiny one of the same class.
"""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from scheduler_cases import picture
from test_docs import PAGES, ROOT, kernels, programs
from tiny_pipelines import build

from ddcm_fast.cli import main

#: ```sh blocks are run as well: `ddcm` lines in order with the Python blocks.
_BLOCK = re.compile(r"^( *)```(python|sh)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)

TINY = "tiny"


def _pipeline(folder: Path) -> dict[str, Any]:
    return {"pipe": build("sd"), "side": 8, "photo": picture()}


def _models(folder: Path) -> dict[str, Any]:
    build("sd").save_pretrained(folder / TINY)
    large = picture().resize((32, 32))
    return {"image": large, "other": large}


#: What a page takes for granted, and what its words stand for here.
PREPARED: dict[str, Callable[[Path], dict[str, Any]]] = {
    "README.md": lambda folder: {"residual": torch.randn(1, 16384)},
    "docs/sampler.md": _pipeline,
    "docs/models.md": _models,
}
STANDS_FOR = {
    "docs/models.md": {
        '"stabilityai/stable-diffusion-2-1-base"': repr(TINY),
        '"..."': repr(TINY),
        '"cuda"': '"cpu"',
        '"float16"': '"float32"',
    }
}
#: Over 5 s of processor time.
SLOW = ("docs/models.md", "docs/tutorials/compress.md", "docs/tutorials/many.md")
WITH_PROGRAMS = [str(page.relative_to(ROOT)) for page in PAGES if programs(page)]


def blocks(page: str) -> list[tuple[str, str]]:
    """(language, text) of a page's Python and shell blocks, in order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for word, stand_in in STANDS_FOR.get(page, {}).items():
        assert word in text
        text = text.replace(word, stand_in)
    return [(language, textwrap.dedent(code)) for _, language, code in _BLOCK.findall(text)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the photograph that the programs read; one thread."""
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    Image.effect_mandelbrot((40, 40), (-3, -2.5, 2, 2.5), 50).convert("RGB").save("photo.jpg")
    return tmp_path


@kernels
@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=pytest.mark.slow if page in SLOW else ()) for page in WITH_PROGRAMS]
)
def test_a_page_runs(page: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = {"__name__": "__main__", **PREPARED.get(page, lambda folder: {})(folder)}
    for language, code in blocks(page):
        if language == "python":
            exec(compile(code, page, "exec"), names)
            continue
        for line in code.splitlines():
            if line.startswith("ddcm "):
                status = main(shlex.split(line, comments=True)[1:])
                assert status == 0, f"{line}\n{capsys.readouterr().err}"


def test_the_programs_are_found() -> None:
    assert len(WITH_PROGRAMS) > 10
    assert {language for page in WITH_PROGRAMS for language, _ in blocks(page)} == {"python", "sh"}
