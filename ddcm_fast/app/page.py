"""The page itself, in Gradio: a tab for each use, one run at a time, errors in one line."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from PIL import Image

from ddcm_fast.app import work
from ddcm_fast.cli.terminal import explain
from ddcm_fast.codec.config import DEFAULT_PRESET, PRESETS
from ddcm_fast.codec.identity import dtype_name
from ddcm_fast.codec.images import load_image
from ddcm_fast.codec.limits import Limits
from ddcm_fast.errors import InputError, MissingExtraError
from ddcm_fast.files import MAX_FILE
from ddcm_fast.sampling.model import DiffusionModel

#: Pictures that may wait for their turn.
_QUEUE = 16

#: What a result says while steps run; *Stop* writes that they do no more.
_RUNNING, _STOPPED = "running ...", "stopped"

#: What compressing aims at: a bitrate or a quality.
_BY_RATE, _BY_QUALITY = "a size", "a quality"

#: Fewer pixels a side are shown enlarged, pixel by pixel; the files keep their size.
_SMALL = 192


def gradio() -> Any:
    """The package. Raises MissingExtraError."""
    try:
        return import_module("gradio")
    except ImportError as error:
        raise MissingExtraError("the page needs gradio: pip install 'ddcm-fast[app]'") from error


def build(model: DiffusionModel, limits: Limits | None = None, backend: str = "auto") -> Any:
    """The page for a model: a gradio.Blocks, to be launched.

    Args:
        limits: of what visitors may ask for; by default those of Limits, and pictures of 512 x 512 pixels.
        backend: of the codebook, see Codebook.

    Raises MissingExtraError: without gradio.
    """
    gr = gradio()
    page = _Page(gr, model, limits or Limits(pixels=512**2), backend)
    with gr.Blocks(title="ddcm-fast", analytics_enabled=False, delete_cache=(3600, 3600)) as blocks:
        gr.Markdown(f"# ddcm-fast\nPictures as noise of a diffusion model, here of `{model.name}`.")
        with gr.Tab("Compress"):
            page.compressing()
        with gr.Tab("Decompress"):
            page.decompressing()
    return blocks.queue(max_size=_QUEUE, default_concurrency_limit=1)


def launch(page: Any, **how: Any) -> Any:
    """Launch the page with limits on what is uploaded; `how` as of gradio.Blocks.launch."""
    return page.launch(max_file_size=MAX_FILE, show_error=True, **how)


class _Page:
    """The tabs, each a method that is called where its parts are to stand.

    Args:
        gr: the package gradio. model, limits, backend: see build.
    """

    def __init__(self, gr: Any, model: DiffusionModel, limits: Limits, backend: str) -> None:
        self._gr, self._model, self._limits, self._backend = gr, model, limits, backend

    def compressing(self) -> None:
        """A picture to a file, beside other formats of its size."""
        gr = self._gr
        with gr.Row():
            with gr.Column():
                given = self._upload("Picture", "compress-picture")
                name = gr.Dropdown(list(PRESETS), value=DEFAULT_PRESET, label="Preset")
                by = gr.Radio([_BY_RATE, _BY_QUALITY], value=_BY_RATE, label="Aim at", elem_id="compress-by")
                bpp = gr.Slider(0.05, 1.0, value=0.25, step=0.05, label="Bits a pixel, at most")
                psnr = gr.Slider(20, 45, value=30, step=0.5, label="PSNR in dB, by a few encodings", visible=False)
                start, stop = self._buttons("Compress", "compress")
            with gr.Column():
                both = gr.ImageSlider(
                    type="pil", format="png", label="Original and result", interactive=False, elem_id="compress-both"
                )
                said = gr.Textbox(label="Result", elem_id="compress-said")
                file = gr.File(label="The .ddcm file", height=90, elem_id="compress-file")
        gr.Markdown("### Beside other formats of that size")
        others = gr.Gallery(
            show_label=False, format="png", columns=5, height="auto", object_fit="contain", elem_id="compress-others"
        )
        options = [given, name, by, bpp, psnr]
        self._command(
            lambda model, path, name, by, *rates: work.compress_command(model, path, name, by == _BY_QUALITY, *rates),
            options,
            "compress-command",
        )
        by.change(
            lambda by: (gr.update(visible=by == _BY_RATE), gr.update(visible=by == _BY_QUALITY)),
            [by],
            [bpp, psnr],
            **self._AT_ONCE,
        )
        outputs = [both, others, said, file]
        self._run(self._compress, "compress", start, stop, options, outputs, said)

    def decompressing(self) -> None:
        """A file, or a prefix of one, to its picture."""
        gr = self._gr
        with gr.Row():
            with gr.Column():
                coded = gr.File(label="A .ddcm file", height=200, elem_id="decompress-file")
                first = gr.Slider(1, 100, value=100, step=1, label="Percent of it that are decoded")
                start, stop = self._buttons("Decompress", "decompress")
            with gr.Column():
                picture = gr.Image(
                    type="pil", format="png", label="Picture", interactive=False, elem_id="decompress-picture"
                )
                said = gr.Textbox(label="Result", elem_id="decompress-said")
        self._command(work.decompress_command, [coded, first], "decompress-command")
        self._run(self._decompress, "decompress", start, stop, [coded, first], [picture, said], said)

    # ---- what the buttons start ------------------------------------------------------------------

    def _compress(
        self, folder: Path, path: str | None, name: str, by: str, bpp: float, psnr: float
    ) -> Iterator[tuple[Any, ...]]:
        image = load_image(_uploaded(path, "picture"), self._limits.pixels)
        rate = {"bpp": bpp} if by == _BY_RATE else {"psnr": psnr}
        original = _shown(image)
        for found in work.compress(self._model, image, name, rate, self._limits, self._backend):
            if isinstance(found, Image.Image):
                yield (original, _shown(found)), None, _RUNNING, None
            else:
                size = len(found.data)
                said = _caption(name, size, found.psnr)
                pictures = [(original, "original"), (_shown(found.image), said)]
                for other in work.rivals(image, size):
                    least = "" if other.size <= size else ", its smallest"
                    pictures.append((_shown(other.image), _caption(other.format, other.size, other.psnr) + least))
                rate_met = f"{said}, {8 * size / (image.width * image.height):.3f} bits a pixel"
                yield (original, _shown(found.image)), pictures, rate_met, _kept(folder, path, found.data)

    def _decompress(self, folder: Path, path: str | None, first: float) -> Iterator[tuple[Any, ...]]:
        data, own = _uploaded(path, ".ddcm file").getvalue(), dtype_name(self._model.dtype)
        made = work.made_in(data)
        drift = "" if made in (None, own) else f"; made in {made} and decoded in {own}, which is a little worse"
        for found in work.decompress(self._model, data, first / 100, self._limits, self._backend):
            if isinstance(found, Image.Image):
                yield _shown(found), _RUNNING
            else:
                size = f"{found.image.width}x{found.image.height} pixels"
                yield _shown(found.image), f"{size} from {first:g} % of {len(data)} bytes{drift}"

    # ---- parts that tabs share -------------------------------------------------------------------

    #: Of events that need no turn in the queue, and are nothing to programs.
    _AT_ONCE = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}  # noqa: RUF012

    def _upload(self, label: str, name: str) -> Any:
        """A place for a picture, which is read by the codec: Gradio's own reading takes formats that start programs."""
        given = self._gr.Image(
            type="filepath", sources=["upload", "clipboard"], label=label, height=300, elem_id=name
        )
        given.preprocess = lambda upload: None if upload is None else upload.path
        return given

    def _buttons(self, label: str, name: str) -> tuple[Any, Any]:
        gr = self._gr
        with gr.Row():
            start = gr.Button(label, variant="primary", elem_id=f"{name}-start")
            return start, gr.Button("Stop", elem_id=f"{name}-stop")

    def _command(self, line: Any, options: list[Any], name: str) -> None:
        """The command line that does the same, which follows the options; line(model, *their values) writes it."""
        gr = self._gr

        def follow(*values: Any) -> str:
            return str(line(self._model, *values))

        shown = gr.Code(
            follow(*(option.value for option in options)),
            label="The same by the command line",
            language="shell",
            interactive=False,
            elem_id=name,
        )
        gr.on([option.change for option in options], follow, options, [shown], **self._AT_ONCE)

    def _run(
        self, action: Any, name: str, start: Any, stop: Any, options: list[Any], outputs: list[Any], said: Any
    ) -> None:
        """A button that starts action(folder for files, *values of options) -> values of outputs, one that ends it."""
        gr = self._gr

        def run(*values: Any) -> Iterator[tuple[Any, ...]]:
            yield tuple(_RUNNING if output is said else None for output in outputs)  # what was there is another's
            try:
                # Gradio has copied a file to its cache, which it empties, before it asks for what comes next.
                with tempfile.TemporaryDirectory(prefix="ddcm-app-") as folder:
                    yield from action(Path(folder), *values)
            except Exception as error:
                yield tuple("" if output is said else gr.skip() for output in outputs)
                raise gr.Error(explain(error)[1], print_exception=False) from error

        def stopped(text: str) -> str:
            return _STOPPED if text == _RUNNING else text

        running = start.click(run, options, outputs, api_name=name)
        stop.click(stopped, [said], [said], cancels=[running], **self._AT_ONCE)


def _uploaded(path: str | None, what: str) -> io.BytesIO:
    """What was uploaded; its name on this machine is nothing to visitors. Raises InputError: nothing was."""
    if path is None:
        raise InputError(f"there is no {what} yet: drop one, or choose a file")
    return io.BytesIO(Path(path).read_bytes())


def _kept(folder: Path, made_of: str | None, data: bytes) -> str:
    """A .ddcm file to download, named as what it was made of."""
    path = folder / Path(made_of or "photo").with_suffix(".ddcm").name
    path.write_bytes(data)
    return str(path)


def _shown(image: Image.Image) -> Image.Image:
    """A picture as the page shows it: of few pixels, each as a square that can be seen."""
    times = _SMALL // max(image.size)
    return image if times < 2 else image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)


def _caption(name: str, size: int, quality: float | None) -> str:
    return f"{name}: {size} bytes" + ("" if quality is None else f", PSNR {quality:.2f} dB")
