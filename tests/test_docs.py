"""The documentation names files that exist and commands that the parser takes, and its programs run."""

from __future__ import annotations

import ast
import importlib
import re
import runpy
import shlex
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from PIL import Image

from ddcm_fast.cli.command import build_parser
from ddcm_fast.codebook import backends

ROOT = Path(__file__).resolve().parents[1]
_WHERE = ("*.md", "docs/**/*.md", ".github/*.md", "benchmarks/**/*.md", "ddcm_fast/models/weights/*/*.md")
PAGES = sorted(page for pattern in _WHERE for page in ROOT.glob(pattern))

#: Tested elsewhere: by test_cli_files.py, and with a pipeline by test_scheduler.py.
_OTHERS = ("demo", "text_to_image", "text_to_audio", "img2img", "own_objective")
EXAMPLES = sorted(path for path in ROOT.glob("examples/*.py") if path.stem not in _OTHERS)

kernels = pytest.mark.skipif(backends.available() == ["reference"], reason="a million atoms need a fused kernel")

_FOLDERS = (
    *("benchmarks", "csrc", "ddcm_fast", "docs", "examples", "kernels", "packaging", "share", "tests"),
    *(".github", ".ci"),
)
#: A path from the root, wherever it stands, and in backticks also the end of a source's path.
_PATH = re.compile(rf"(?<![\w/.])(?:{'|'.join(map(re.escape, _FOLDERS))})/[\w./*-]*[\w/*]")
_SOURCE = re.compile(r"`([\w./*-]+\.(?:py|cu|cpp|h))`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")


def missing_paths(text: str) -> list[str]:
    """Paths of the repository that a page names and that are not there; NAME and FAMILY stand for anything."""
    text = re.sub(r"\]\([^)]*\)|https?://\S+", "", text).replace("NAME", "*").replace("FAMILY", "*")
    missing = [path for path in _PATH.findall(text) if not any(ROOT.glob(path.rstrip("/")))]
    folders = [ROOT / folder for folder in _FOLDERS]
    return missing + [
        path
        for path in _SOURCE.findall(text)
        if not any(ROOT.glob(path)) and not any(any(folder.glob(f"**/{path}")) for folder in folders)
    ]


def anchors(page: Path) -> set[str]:
    """What `#...` may name: GitHub's form of each heading."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(text: str) -> list[str]:
    """Every `ddcm ...` line of a page's code blocks, continued lines joined."""
    joined = re.sub(r"\\\n\s*", "", text)
    return re.findall(r"^(?: {4,}|\t)?(ddcm [a-z].*)$", joined, re.MULTILINE)


def programs(page: Path) -> list[str]:
    """Every Python block of a page."""
    blocks = re.findall(r"^( *```python\n.*?)^ *```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [textwrap.dedent(block).split("\n", 1)[1] for block in blocks]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_paths_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    dead = []
    for link in _LINK.findall(text):
        name, _, anchor = link.partition("#")
        if re.match(r"\w+:", name):
            continue
        target = page.parent / name if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    assert dead + missing_paths(text) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_parse(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in commands(page.read_text(encoding="utf-8")):
        try:
            build_parser().parse_args(shlex.split(command, comments=True)[1:])
        except SystemExit:
            pytest.fail(f"{command}\n{capsys.readouterr().err}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_imports_work(page: Path) -> None:
    for program in programs(page):
        for node in ast.walk(ast.parse(program)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ddcm_fast"):
                module = importlib.import_module(node.module)
                assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the photograph that the programs read; one thread."""
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    Image.effect_mandelbrot((32, 32), (-3, -2.5, 2, 2.5), 50).convert("RGB").save("photo.jpg")
    return tmp_path


@kernels
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_run_and_are_short(path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [path.name, "photo.jpg"])
    runpy.run_path(str(path), run_name="__main__")
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 40


def test_every_result_has_its_script() -> None:
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    helpers = {"conftest.py", "photographs.py"}
    made = [*ROOT.glob("benchmarks/*.py"), *ROOT.glob("benchmarks/*.cu"), *ROOT.glob("benchmarks/results/*")]
    assert [path.name for path in made if path.name not in helpers and f"`{path.name}`" not in page] == []


def test_what_is_looked_for_is_found() -> None:
    assert missing_paths("tests/no.py, `no.py`, `noise.h`, [x](docs/x.md)") == ["tests/no.py", "no.py"]
    text = "    ddcm info \\\n        a.ddcm   # why\n    ddcm-other\n"
    assert commands(text) == ["ddcm info a.ddcm   # why"]
    assert sum(len(commands(page.read_text(encoding="utf-8"))) for page in PAGES) > 15
