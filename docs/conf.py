"""The documentation site, built by `make docs`: the Markdown pages as they are, and the interface from docstrings.

Sphinx's source folder is the repository, so that links between pages, and from them to programs and results, are the
same on a code host, in a checkout and on the site.
"""

from __future__ import annotations

import re
from itertools import takewhile
from typing import Any

from ddcm_fast import __version__

project = "ddcm-fast"
author = "The ddcm-fast authors"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/index"
_PAGES = ("docs/**", "benchmarks/results/*.md", "examples/space/README.md", "ddcm_fast/models/weights/**", "*.md")
include_patterns = list(_PAGES)
exclude_patterns = ["docs/site", ".venv", "build", "dist"]

myst_heading_anchors = 4

autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"ddcm-fast {release}"
html_copy_source = False
html_show_sourcelink = False
html_extra_path = ["site"]  # index.html, which leads from the top to docs/

_CODE = re.compile(r"(`[^`]+`)")
_INDENT = "    "


def _escaped(line: str) -> str:
    """Code in single backticks as reST has it, in double ones; no other character means anything."""
    parts = _CODE.split(line)
    return "".join(f"`{part}`" if _CODE.fullmatch(part) else re.sub(r"([*|\\_])", r"\\\1", part) for part in parts)


def as_rest(lines: list[str]) -> list[str]:
    """A docstring's plain sentences as reST. What is indented after an empty line is a program."""
    done: list[str] = []
    while lines:
        if lines[0].startswith(_INDENT) and done and not done[-1]:
            code = list(takewhile(lambda line: not line or line.startswith(_INDENT), lines))
            done += [".. code-block:: python", "", *code]
            lines = lines[len(code) :]
        else:
            done.append(_escaped(lines[0]))
            lines = lines[1:]
    return done


def setup(app: Any) -> None:
    def convert(app: Any, what: str, name: str, item: Any, options: Any, lines: list[str]) -> None:
        lines[:] = as_rest(lines)

    app.connect("autodoc-process-docstring", convert, priority=400)  # before napoleon's
