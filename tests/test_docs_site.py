"""What docs/conf.py makes of docstrings; that the site builds without warnings is what `make docs` is for."""

from __future__ import annotations

import runpy
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
as_rest = runpy.run_path(str(ROOT / "docs" / "conf.py"))["as_rest"]


def test_code_in_backticks_is_literal_and_nothing_else_is_markup() -> None:
    assert as_rest(["|score| + `x_T` is <z*, r> of x0_"]) == [r"\|score\| + ``x_T`` is <z\*, r> of x0\_"]


def test_what_is_indented_after_an_empty_line_is_a_program() -> None:
    docstring = textwrap.dedent("""\
        A call:

            data = codec.compress(image)  # `bytes`

        Args:
            image: of | and *.""")
    assert as_rest(docstring.splitlines()) == [
        "A call:",
        "",
        ".. code-block:: python",
        "",
        "    data = codec.compress(image)  # `bytes`",
        "",
        "Args:",
        r"    image: of \| and \*.",
    ]
