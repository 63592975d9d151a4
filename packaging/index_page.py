"""README.md as a package index shows it, which has none of the files beside it. Loaded by setup.py, by path."""

import re
from pathlib import Path

_ELSEWHERE = r"(?!https?://)[^)]*"


def index_page(readme: Path) -> str:
    """The text of README.md without pictures that lie beside it; links to other files are their words alone."""
    text = readme.read_text(encoding="utf-8")
    text = re.sub(rf"!\[[^]]*\]\({_ELSEWHERE}\)\n*", "", text)
    return re.sub(rf"\[([^]]*)\]\({_ELSEWHERE}\)", r"\1", text)
