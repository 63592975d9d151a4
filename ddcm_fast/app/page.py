"""The page itself, in Gradio: two tabs, one run at a time, errors in one line."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from PIL import Image

from ddcm_fast.app import work
from ddcm_fast.codec.config import DEFAULT_PRESET, PRESETS
from ddcm_fast.codec.images import load_image
from ddcm_fast.codec.limits import Limits
from ddcm_fast.errors import DDCMError, InputError, MissingExtraError
from ddcm_fast.files import MAX_FILE
from ddcm_fast.sampling.model import DiffusionModel

#: Pictures that may wait for their turn.
_QUEUE = 16


def gradio() -> Any:
    """The package. Raises MissingExtraError."""
    try:
        return import_module("gradio")
    except ImportError as error:
        raise MissingExtraError("the page needs gradio: pip install 'ddcm-fast[app]'") from error


def build(model: DiffusionModel, max_side: int = 512, limits: Limits | None = None, backend: str = "auto") -> Any:
    """The page for a model: a gradio.Blocks, to be launched.

    Args:
        max_side: pictures have at most max_side^2 pixels. limits: of everything else, and of pixels if they are lower.
        backend: of the codebook, see Codebook.

    Raises MissingExtraError: without gradio.
    """
    gr = gradio()
    limits = limits or Limits()
    limits = replace(limits, pixels=min(limits.pixels, max_side**2))

    def compress(path: str | None, name: str, bpp: float) -> Iterator[tuple[Any, ...]]:
        command = work.command(model.name, name, bpp)
        try:
            if path is None:
                raise InputError("there is no picture yet: drop one, or choose a file")
            image = load_image(path, limits.pixels)  # not Gradio, whose formats start other programs
            for found in work.compress(model, image, name, bpp, limits, backend):
                if isinstance(found, Image.Image):
                    yield (image, found), gr.skip(), "coding ...", gr.skip(), command
                else:
                    others = work.rivals(image, len(found.data))
                    shown = [(other.image, _caption(other.format, other.size, other.psnr)) for other in others]
                    said = _caption(name, len(found.data), found.psnr)
                    yield (image, found.image), shown, said, _kept(found.data), command
        except DDCMError as error:
            raise gr.Error(str(error), print_exception=False) from error

    def decompress(path: str | None, first: float) -> Iterator[tuple[Any, str]]:
        try:
            if path is None:
                raise InputError("there is no file yet: drop a .ddcm file, or choose one")
            data = Path(path).read_bytes()
            for found in work.decompress(model, data, first / 100, limits, backend):
                if isinstance(found, Image.Image):
                    yield found, "decoding ..."
                else:
                    yield found.image, f"{first:g} % of {len(data)} bytes"
        except DDCMError as error:
            raise gr.Error(str(error), print_exception=False) from error

    with gr.Blocks(title="ddcm-fast", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown(f"# ddcm-fast\nPictures as noise of a diffusion model, here of `{model.name}`.")
        with gr.Tab("Compress"):
            with gr.Row():
                with gr.Column():
                    given = gr.Image(type="filepath", image_mode=None, label="Picture")
                    name = gr.Dropdown(list(PRESETS), value=DEFAULT_PRESET, label="Preset")
                    bpp = gr.Slider(0.05, 1.0, value=0.25, step=0.05, label="Bits a pixel, at most")
                    with gr.Row():
                        start, stop = gr.Button("Compress", variant="primary"), gr.Button("Stop")
                with gr.Column():
                    both = gr.ImageSlider(type="pil", label="Original and result", interactive=False)
                    said = gr.Textbox(label="Result")
                    file = gr.File(label="The .ddcm file")
            others = gr.Gallery(label="Other formats at that size", columns=3, height="auto")
            command = gr.Code(label="The same by the command line", language="shell")
            run = start.click(
                compress, [given, name, bpp], [both, others, said, file, command], api_name="compress"
            )
            stop.click(None, cancels=[run])
        with gr.Tab("Decompress"):
            with gr.Row():
                with gr.Column():
                    coded = gr.File(label="A .ddcm file", file_types=[".ddcm"])
                    first = gr.Slider(1, 100, value=100, step=1, label="Percent of it that are decoded")
                    with gr.Row():
                        begin, end = gr.Button("Decompress", variant="primary"), gr.Button("Stop")
                with gr.Column():
                    picture = gr.Image(type="pil", format="png", label="Picture", interactive=False)
                    told = gr.Textbox(label="Result")
            decoding = begin.click(decompress, [coded, first], [picture, told], api_name="decompress")
            end.click(None, cancels=[decoding])
    return page.queue(max_size=_QUEUE, default_concurrency_limit=1)


def launch(page: Any, **how: Any) -> Any:
    """Launch the page with limits on what is uploaded; `how` as of gradio.Blocks.launch."""
    return page.launch(max_file_size=MAX_FILE, show_error=True, **how)


def _caption(name: str, size: int, quality: float | None) -> str:
    return f"{name}: {size} bytes" + ("" if quality is None else f", PSNR {quality:.2f} dB")


def _kept(data: bytes) -> str:
    """A file of the bytes, to download; Gradio copies it to its cache, which it empties after an hour."""
    path = Path(tempfile.mkdtemp(prefix="ddcm-app-")) / "photo.ddcm"
    path.write_bytes(data)
    return str(path)
