"""The pictures of docs/app.md: the page in Chromium, with something done in each tab.

    python docs/screenshots.py --output docs

It wants the extras `app` and `demo`, selenium, and Debian's chromium and chromium-driver.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from ddcm_fast import load_model
from ddcm_fast.app import page
from ddcm_fast.files import picture, write

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "examples")]

from browser import Browser, missing  # noqa: E402
from demo import photograph  # noqa: E402

#: The astronaut's head and shoulders.
_PART = (96, 0, 352, 256)


def compressed(browser: Browser, folder: Path) -> None:
    """The tab *Compress* after a picture."""
    path = folder / "astronaut.png"
    photograph().crop(_PART).save(path)
    browser.upload("compress-picture", path)
    browser.press("compress-start")
    browser.wait(lambda: "bits a pixel" in browser.text("compress-said"))


def generated(browser: Browser, folder: Path) -> None:
    """The tab *Generate* after eight threes."""
    browser.tab("Generate")
    browser.choose("generate-model", "digits")
    browser.choose("generate-label", "3")
    browser.fill("generate-count", "8")
    browser.press("generate-start")
    browser.wait(lambda: "their files" in browser.text("generate-said"))


def edited(browser: Browser, folder: Path) -> None:
    """The tab *Edit* after a seven was drawn and made a one."""
    browser.tab("Edit")
    browser.press("edit-draw")
    browser.wait(lambda: "drawn.png" in browser.text("edit-command"))
    browser.press("edit-start")
    browser.wait(lambda: "both files" in browser.text("edit-said"))


#: Name of a picture -> what is done before it, and the window's size.
SHOWN: dict[str, tuple[Callable[[Browser, Path], None], int, int]] = {
    "app-compress": (compressed, 940, 1000),
    "app-generate": (generated, 1080, 900),
    "app-edit": (edited, 1080, 900),
}


def main() -> None:
    """Make all of them."""
    parser = argparse.ArgumentParser(prog="python docs/screenshots.py", description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "docs", help="folder of the pictures")
    args = parser.parse_args()
    if (lacking := missing()) is not None:
        parser.error(lacking)
    app = page.build(load_model("photo"))
    _, url, _ = page.launch(app, prevent_thread_lock=True, quiet=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, (action, width, height) in SHOWN.items():
            browser = Browser(Path(folder), width, height)
            browser.open(url)
            action(browser, Path(folder))
            shot = Image.open(io.BytesIO(browser.shot())).convert("RGB")
            small = shot.quantize(256, dither=Image.Dither.NONE)
            buffer = io.BytesIO()
            small.save(buffer, "PNG", optimize=True)
            write(args.output / f"{name}.png", buffer.getvalue(), picture("PNG"))
            print(f"{name}.png: {small.width}x{small.height}, {len(buffer.getvalue()) >> 10} KiB")
            browser.close()
    app.close()


if __name__ == "__main__":
    main()
