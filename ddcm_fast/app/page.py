"""The page itself, in Gradio: a tab for each use, one run at a time, errors in one line."""

from __future__ import annotations

import io
import math
import os
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from PIL import Image

from ddcm_fast.app import sizes, work
from ddcm_fast.codec.config import DEFAULT_PRESET, PRESETS
from ddcm_fast.codec.container import MAX_SIDE
from ddcm_fast.codec.identity import dtype_name
from ddcm_fast.codec.limits import Limits
from ddcm_fast.errors import InputError, MissingExtraError, explain
from ddcm_fast.files import MAX_FILE
from ddcm_fast.models.digits import NAME as DIGITS
from ddcm_fast.models.loading import load_model
from ddcm_fast.sampling.condition import Condition
from ddcm_fast.sampling.model import DiffusionModel

#: Pictures that may wait for their turn.
_QUEUE = 16

#: Images that one press of a button makes.
_MOST_IMAGES = 16

#: What a result says while steps run; *Stop* writes that they do no more.
_RUNNING, _STOPPED = "running ...", "stopped"

#: What compressing aims at: a bitrate or a quality.
_BY_RATE, _BY_QUALITY = "a size", "a quality"

#: In the list of labels: none.
_NO_LABEL = "none"

#: Where there are fewer pixels for each of several parts in a row, they stand below one another.
_NARROW = 200

#: Sizes of codebooks to choose from.
_SIZES = [2, 4, 8, 16, 64, 256, 1024, 4096, 16384, 65536]

#: Of pictures with few pixels each is to be seen: they are enlarged, as squares.
_HEAD = """<script>
document.addEventListener("load", (event) => {
  const image = event.target;
  if (image.tagName !== "IMG") return;
  image.toggleAttribute("data-small", Math.max(image.naturalWidth, image.naturalHeight) <= 96);
}, true);
</script>"""
_CSS = """
.grid-wrap { overflow: visible !important; min-height: 0 !important; max-height: none !important; }
.grid-container {
  grid-template-columns: repeat(auto-fill, minmax(max(80px, calc(100% / var(--grid-cols) - 12px)), 1fr)) !important;
}
.caption-label {
  position: static !important; max-width: 100% !important; border: none !important; white-space: normal !important;
}
.thumbnail-lg { height: auto !important; }
#decompress-picture img[data-small] { min-width: 320px; }
img[data-small] { image-rendering: pixelated; object-fit: contain !important; width: 100%; height: 100%; }
"""


def gradio() -> Any:
    """The package. Raises MissingExtraError."""
    try:
        return import_module("gradio")
    except ImportError as error:
        raise MissingExtraError("the page needs gradio: pip install 'ddcm-fast[app]'") from error


def build(
    model: DiffusionModel, limits: Limits | None = None, backend: str = "auto", options: Sequence[str] = ()
) -> Any:
    """The page for a model, and for `digits` beside it: a gradio.Blocks, to be launched.

    Args:
        limits: of what visitors may ask for; by default those of Limits, and pictures of 512 x 512 pixels.
        backend: of the codebook, see Codebook.
        options: words of a command line, beside --model, that load the model as it was loaded.

    Raises MissingExtraError: without gradio.
    """
    gr = gradio()
    limits = limits or Limits(pixels=512**2)
    served = [work.Served(model, options, limits, backend)]
    if model.name != DIGITS:
        served.append(work.Served(load_model(DIGITS, device=model.device), (), limits, backend))
    page = _Page(gr, served)
    with gr.Blocks(title="ddcm-fast", analytics_enabled=False, delete_cache=(3600, 3600)) as blocks:
        gr.Markdown(f"# ddcm-fast\nPictures as noise of a diffusion model, here of `{model.name}`.")
        with gr.Tab("Compress"):
            page.compressing()
        with gr.Tab("Decompress"):
            page.decompressing()
        with gr.Tab("Generate"):
            page.generating()
        with gr.Tab("Edit"):
            page.editing()
    return blocks.queue(max_size=_QUEUE, default_concurrency_limit=1)


def launch(page: Any, **how: Any) -> Any:
    """Launch the page with limits on what is uploaded, and no record of runs; `how` as of gradio.Blocks.launch."""
    return page.launch(max_file_size=MAX_FILE, show_error=True, run_history=False, css=_CSS, head=_HEAD, **how)


class _Page:
    """The tabs, each a method that is called where its parts are to stand.

    Args:
        gr: the package gradio. served: the models, the page's own first.
    """

    #: Of events that need no turn in the queue, and are nothing to programs.
    _AT_ONCE = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}  # noqa: RUF012

    def __init__(self, gr: Any, served: list[work.Served]) -> None:
        self._gr = gr
        self._served = {one.model.name: one for one in served}
        self._own = served[0]

    # ---- a picture to a file ---------------------------------------------------------------------

    def compressing(self) -> None:
        """A picture to a file, beside other formats of its size."""
        gr = self._gr
        with gr.Row():
            with gr.Column():
                given = self._upload("Picture", "compress-picture")
                self._told_of_size(given, None, "compress-size")
                name = gr.Dropdown(list(PRESETS), value=DEFAULT_PRESET, label="Preset")
                by = gr.Radio([_BY_RATE, _BY_QUALITY], value=_BY_RATE, label="Aim at", elem_id="compress-by")
                bpp = gr.Slider(0.05, 1.0, value=0.25, step=0.05, label="Bits a pixel, at most")
                psnr = gr.Slider(20, 45, value=30, step=0.5, label="PSNR in dB, by a few encodings", visible=False)
                start, stop = self._buttons("Compress", "compress")
            with gr.Column():
                both = self._slider("Original and result", "compress-both")
                said = gr.Textbox(label="Result", elem_id="compress-said")
                file = gr.File(label="The .ddcm file", height=110, interactive=False, elem_id="compress-file")
        gr.Markdown("### Beside other formats of that size")
        others = self._gallery(5, "compress-others")
        options = [given, name, by, bpp, psnr]
        by.change(
            lambda by: (gr.update(visible=by == _BY_RATE), gr.update(visible=by == _BY_QUALITY)),
            [by],
            [bpp, psnr],
            **self._AT_ONCE,
        )
        self._command(
            lambda path, name, *rate: work.compress_command(self._own, path, name, _rate(*rate)),
            options,
            "compress-command",
        )
        self._run(self._compress, "compress", start, stop, options, [both, others, said, file], said)

    def _compress(self, folder: Path, path: str | None, name: str, *rate: Any) -> Iterator[tuple[Any, ...]]:
        image, smaller = self._picture(self._own, path)
        for found in work.compress(self._own, image, name, _rate(*rate)):
            if isinstance(found, Image.Image):
                yield (image, found), None, _RUNNING, None
            else:
                size = len(found.data)
                said = _caption(name, size, found.psnr)
                pictures = [(image, "original"), (found.image, said)]
                for other in work.rivals(image, size):
                    least = "" if other.size <= size else ", its smallest"
                    pictures.append((other.image, _caption(other.format, other.size, other.psnr) + least))
                said += f", {8 * size / (image.width * image.height):.3f} bits a pixel{smaller}"
                yield (image, found.image), pictures, said, _kept(folder, f"{_stem(path)}.ddcm", found.data)

    # ---- and back --------------------------------------------------------------------------------

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
        self._command(
            lambda path, first: work.decompress_command(self._of_file(path), path, first),
            [coded, first],
            "decompress-command",
        )
        self._run(self._decompress, "decompress", start, stop, [coded, first], [picture, said], said)

    def _of_file(self, path: str | None) -> work.Served:
        """The model that a file names if the page has it, else the page's own."""
        header = None if path is None else work.header_of(Path(path).read_bytes())
        return self._own if header is None else self._served.get(header.model, self._own)

    def _decompress(self, folder: Path, path: str | None, first: float) -> Iterator[tuple[Any, ...]]:
        data, served = _uploaded(path, ".ddcm file").getvalue(), self._of_file(path)
        header, own = work.header_of(data), dtype_name(served.model.dtype)
        drift = ""
        if header is not None and header.dtype != own:
            drift = f"; made in {header.dtype} and decoded in {own}, which is a little worse"
        for found in work.decompress(served, data, first / 100):
            if isinstance(found, Image.Image):
                yield found, _RUNNING
            else:
                size = f"{found.image.width}x{found.image.height} pixels"
                yield found.image, f"{size} from {first:g} % of {len(data)} bytes{drift}"

    # ---- images out of nothing -------------------------------------------------------------------

    def generating(self) -> None:
        """Images drawn at random, each with its file."""
        gr = self._gr
        with gr.Row():
            with gr.Column():
                model = self._models(list(self._served), "generate")
                label, prompt, guidance = self._told(model, "", "generate")
                with gr.Row():
                    count = gr.Slider(
                        1, _MOST_IMAGES, value=4, step=1, label="Images", min_width=_NARROW, elem_id="generate-count"
                    )
                    seed = gr.Number(
                        0, precision=0, minimum=0, label="Seed", min_width=_NARROW, elem_id="generate-seed"
                    )
                size, steps = self._codebook(64)
                side = gr.Slider(**self._sides(model.value), label="Pixels a side", elem_id="generate-side")
                start, stop = self._buttons("Generate", "generate")
            with gr.Column():
                shown = self._gallery(4, "generate-shown")
                said = gr.Textbox(label="Result", elem_id="generate-said")
                files = self._files(200, "generate-files")
        model.change(lambda name: gr.update(**self._sides(name)), [model], [side], **self._AT_ONCE)
        options = [model, label, prompt, guidance, count, seed, size, steps, side]
        self._command(
            lambda *values: work.generate_command(*self._drawing(*values)[0], **self._drawing(*values)[1]),
            options,
            "generate-command",
        )
        self._run(self._generate, "generate", start, stop, options, [shown, said, files], said)

    def _sides(self, name: str) -> dict[str, Any]:
        """The slider of the images' size, for a model; it is there for those that take any size."""
        served = self._served[name]
        model = served.model
        multiple = model.multiple
        least = -(-model.min_side // multiple) * multiple
        most = max(least, math.isqrt(served.limits.pixels) // multiple * multiple)
        free = model.patch is not None and model.default_side > least and most > least
        if not free:  # what programs give is not looked at
            return {"minimum": 1, "maximum": MAX_SIDE, "value": model.default_side, "step": 1, "visible": False}
        value = min(model.default_side, most)
        return {"minimum": least, "maximum": most, "value": value, "step": multiple, "visible": True}

    def _drawing(
        self, name: str, label: str, prompt: str, guidance: float, count: int, seed: int, size: int, steps: int,
        side: int,
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:  # fmt: skip
        """What work.generate takes, by position and by name."""
        served = self._served[name]
        condition = _condition(served, label, prompt, guidance)
        side = int(side) if self._sides(name)["visible"] else served.model.default_side
        return (served, int(count), side, int(seed or 0), condition), {"K": int(size), "T": int(steps)}

    def _generate(self, folder: Path, *values: Any) -> Iterator[tuple[Any, ...]]:
        args, settings = self._drawing(*values)
        count = args[1]
        done: list[tuple[Image.Image, str]] = []
        kept: list[str] = []
        for found in work.generate(*args, **settings):
            if isinstance(found, Image.Image):
                yield [*done, (found, "")], _RUNNING, kept
            else:
                name = f"{len(done):04d}"
                done.append((found.image, f"{name}: {len(found.data)} bytes"))
                kept.append(_kept(folder, f"{name}.ddcm", found.data))
                yield done, _RUNNING if len(done) < count else f"{count} images and their files", kept

    # ---- images into others ----------------------------------------------------------------------

    def editing(self) -> None:
        """A picture coded under one label or prompt and decoded under another from some step on."""
        gr = self._gr
        names = [name for name, served in self._served.items() if served.takes_label or served.takes_prompt]
        before = gr.State(None)
        with gr.Row():
            with gr.Column():
                model = self._models(names, "edit")
                given = self._upload("Picture", "edit-picture")
                self._told_of_size(given, model, "edit-size")
                told = self._told(model, " of the picture", "edit", "7")
                draw = gr.Button("Draw such a picture", elem_id="edit-draw")
                target = self._told(model, " of the target", "edit-target", "1", target=True)
                size, steps = self._codebook(256)
                begin = gr.Slider(
                    0, 100, value=70, step=1, label="Step at which the target takes over (later: less change)"
                )
                start, stop = self._buttons("Edit", "edit")
            with gr.Column():
                shown = self._gallery(2, "edit-shown")
                said = gr.Textbox(label="Result", elem_id="edit-said")
                files = self._files(150, "edit-files")
        steps.change(
            lambda steps, at: gr.update(maximum=steps, value=min(at, steps)), [steps, begin], [begin], **self._AT_ONCE
        )
        options = [model, given, *told, *target, size, steps, begin]
        self._command(
            lambda *values: work.edit_command(
                self._editing(*values)[0], values[1], *self._editing(*values)[1], **self._editing(*values)[2]
            ),
            options,
            "edit-command",
        )
        outputs = [shown, said, files, before]
        self._run(self._edit, "edit", start, stop, [*options, before], outputs, said, [before])
        self._run(self._draw, "draw", draw, stop, [model, *told, steps], [given, said], said)

    def _editing(
        self, name: str, path: str | None, label: str, prompt: str, guidance: float, *others: Any
    ) -> tuple[work.Served, tuple[Any, ...], dict[str, Any]]:
        """What work.edited takes: the model, what is told from when on, settings."""
        served = self._served[name]
        to_label, to_prompt, to_guidance, size, steps, begin = others
        source = _condition(served, label, prompt, guidance)
        target = _condition(served, to_label, to_prompt, to_guidance) or Condition()
        return served, (source, target, int(begin)), {"K": int(size), "T": int(steps)}

    def _edit(self, folder: Path, *values: Any) -> Iterator[tuple[Any, ...]]:
        *given, before = values
        served, (source, target, begin), settings = self._editing(*given)
        path = given[1]
        image, smaller = self._picture(served, path)
        # Where the picture and its condition are those of the run before, so is its file.
        key = (served.model.name, path, source, tuple(settings.items()))
        known = before[1] if before is not None and before[0] == key else None
        results: list[work.Result] = []
        pictures: list[tuple[Image.Image, str]] = []
        for found in work.edited(served, known or image, source, target, begin, **settings):
            if isinstance(found, Image.Image):
                yield [*pictures, (found, "")], _RUNNING, None, before
                continue
            results.append(found)
            before = (key, results[0])
            what = str(target) + f", from step {begin} on" if pictures else "the picture, coded"
            pictures.append((found.image, f"{what}: {len(found.data)} bytes"))
            short = "edited" if target.label is None else target.label
            names = [f"{_stem(path)}.ddcm", f"{_stem(path)}_{short}_{begin}.ddcm"]
            files = [_kept(folder, name, one.data) for name, one in zip(names, results, strict=False)]
            end = f"a picture, edited, and both files{smaller}"
            yield pictures, _RUNNING if len(results) < 2 else end, files, before

    def _draw(
        self, folder: Path, name: str, label: str, prompt: str, guidance: float, steps: int
    ) -> Iterator[tuple[Any, ...]]:
        """A picture to edit, another one each time."""
        served = self._served[name]
        condition = _condition(served, label, prompt, guidance)
        side, seed = served.model.default_side, secrets.randbelow(1 << 31)
        for found in work.generate(served, 1, side, seed, condition, K=64, T=int(steps)):
            if isinstance(found, work.Result):
                path = folder / "drawn.png"
                found.image.save(path)
                yield str(path), ""

    # ---- parts that tabs share -------------------------------------------------------------------

    def _upload(self, label: str, name: str) -> Any:
        """A place for a picture, which is read by the codec: Gradio's own reading takes formats that start programs."""
        given = self._gr.Image(
            type="filepath", sources=["upload", "clipboard"], label=label, height=300, elem_id=name
        )
        given.preprocess = lambda upload: None if upload is None else upload.path
        return given

    def _told_of_size(self, given: Any, model: Any, name: str) -> None:
        """A line below an uploaded picture that the page makes smaller; `model` is a list of models, None the own."""
        gr = self._gr

        def tell(path: str | None, *chosen: str) -> Any:
            served = self._served[chosen[0]] if chosen else self._own
            size = sizes.known(path)
            text = "" if size is None else sizes.notice(size, served.model, served.limits.pixels)
            return gr.update(value=text, visible=text != "")

        shown = gr.Markdown(visible=False, elem_id=name)
        inputs = [given] if model is None else [given, model]
        gr.on([one.change for one in inputs], tell, inputs, [shown], **self._AT_ONCE)

    def _picture(self, served: work.Served, path: str | None) -> tuple[Image.Image, str]:
        """The uploaded picture in a size that the page takes, and what is to be said of that. Raises InputError."""
        image, size = sizes.read(_uploaded(path, "picture"), served.model, served.limits.pixels)
        smaller = f"; of the picture made {sizes.words(image.size)}, from {sizes.words(size)}"
        return image, "" if size == image.size else smaller

    def _slider(self, label: str, name: str) -> Any:
        """Two pictures, one over the other."""
        return self._gr.ImageSlider(type="pil", format="png", label=label, interactive=False, elem_id=name)

    def _gallery(self, columns: int, name: str) -> Any:
        """Pictures with a line below each."""
        return self._gr.Gallery(
            show_label=False, format="png", columns=columns, height="auto", object_fit="contain", elem_id=name
        )

    def _files(self, height: int, name: str) -> Any:
        """Files to download."""
        return self._gr.File(
            label="Their .ddcm files", file_count="multiple", height=height, interactive=False, elem_id=name
        )

    def _models(self, names: list[str], name: str) -> Any:
        return self._gr.Dropdown(names, value=names[0], label="Model", elem_id=f"{name}-model")

    def _told(
        self,
        model: Any,
        whose: str,
        name: str,
        label: str = _NO_LABEL,
        target: bool = False,
    ) -> list[Any]:
        """Label, prompt and guidance scale, as far as the chosen model takes them; `label` where it has that one.

        A `target` is told more emphatically, and cannot be none.
        """
        gr = self._gr
        most = max(served.model.classes for served in self._served.values())

        def parts(chosen: str) -> list[dict[str, Any]]:
            served = self._served[chosen]
            labels = [str(label) for label in range(served.model.classes or most)]
            labels = labels if target or served.needs_label else [_NO_LABEL, *labels]
            takes = served.takes_label, served.takes_prompt
            first = label if label in labels else next(iter(labels), None)
            return [
                {"choices": labels, "value": first, "visible": takes[0]},
                {"visible": takes[1]},
                {"value": served.target_guidance if target else served.guidance, "visible": any(takes)},
            ]

        first, second, third = parts(model.value)
        with gr.Row():
            made = [
                gr.Dropdown(**first, label=f"Label{whose}", min_width=_NARROW, elem_id=f"{name}-label"),
                gr.Textbox(**second, label=f"Prompt{whose}", min_width=_NARROW, elem_id=f"{name}-prompt"),
                gr.Slider(0, 20, step=0.5, **third, label="Guidance scale", min_width=_NARROW),
            ]
        model.change(
            lambda chosen: [gr.update(**part) for part in parts(chosen)], [model], made, **self._AT_ONCE
        )
        return made

    def _codebook(self, size: int) -> tuple[Any, Any]:
        """Atoms in the codebook, and steps."""
        gr = self._gr
        with gr.Row():
            return (
                gr.Dropdown(_SIZES, value=size, label="Atoms in the codebook, K", min_width=_NARROW),
                gr.Slider(10, 1000, value=100, step=10, label="Steps, T", min_width=_NARROW),
            )

    def _buttons(self, label: str, name: str) -> tuple[Any, Any]:
        gr = self._gr
        with gr.Row():
            start = gr.Button(label, variant="primary", elem_id=f"{name}-start")
            return start, gr.Button("Stop", elem_id=f"{name}-stop")

    def _command(self, line: Any, options: list[Any], name: str) -> None:
        """The command line that does the same, which follows the options; line(*their values) writes it."""
        gr = self._gr

        def follow(*values: Any) -> str:
            try:
                return str(line(*values))
            except Exception as error:  # of what is half written; the button says it too
                return f"# {explain(error)}"

        shown = gr.Code(
            follow(*(option.value for option in options)),
            label="The same by the command line",
            language="shell",
            interactive=False,
            lines=1,
            wrap_lines=True,
            elem_id=name,
        )
        gr.on([option.change for option in options], follow, options, [shown], **self._AT_ONCE)

    def _run(
        self,
        action: Any,
        name: str,
        start: Any,
        stop: Any,
        options: list[Any],
        outputs: list[Any],
        said: Any,
        kept: Sequence[Any] = (),
    ) -> None:
        """A button that starts action(folder for files, *values of options) -> values of outputs, one that ends it.

        What was in the outputs is another run's, and goes when this begins, but for `kept`.
        """
        gr = self._gr

        def run(*values: Any) -> Iterator[tuple[Any, ...]]:
            yield tuple(_RUNNING if output is said else gr.skip() if output in kept else None for output in outputs)
            try:
                # Gradio has copied a file to its cache, which it empties, before it asks for what comes next.
                with tempfile.TemporaryDirectory(prefix="ddcm-run-", dir=os.environ.get("GRADIO_TEMP_DIR")) as folder:
                    yield from action(Path(folder), *values)
            except Exception as error:
                yield tuple("" if output is said else gr.skip() for output in outputs)
                raise gr.Error(explain(error), print_exception=False) from error

        def stopped(text: str) -> str:
            return _STOPPED if text == _RUNNING else text

        running = start.click(run, options, outputs, api_name=name)
        stop.click(stopped, [said], [said], cancels=[running], **self._AT_ONCE)


def _rate(by: str, bpp: float, psnr: float) -> dict[str, float]:
    return {"bpp": bpp} if by == _BY_RATE else {"psnr": psnr}


def _condition(served: work.Served, label: str, prompt: str, guidance: float) -> Condition | None:
    """What the model is told, of what the page has, hidden parts aside; None: nothing."""
    number = int(label) if served.takes_label and label != _NO_LABEL else None
    text = prompt if served.takes_prompt and prompt else None
    if number is None and text is None:
        return None
    return Condition(text, label=number, guidance_scale=guidance)


def _uploaded(path: str | None, what: str) -> io.BytesIO:
    """What was uploaded; its name on this machine is nothing to visitors. Raises InputError: nothing was."""
    if path is None:
        raise InputError(f"there is no {what} yet: drop one, or choose a file")
    return io.BytesIO(Path(path).read_bytes())


def _stem(path: str | None) -> str:
    return Path(path or "photo").stem


def _kept(folder: Path, name: str, data: bytes) -> str:
    """A file to download."""
    path = folder / name
    path.write_bytes(data)
    return str(path)


def _caption(name: str, size: int, quality: float | None) -> str:
    return f"{name}: {size} bytes" + ("" if quality is None else f", PSNR {quality:.2f} dB")
