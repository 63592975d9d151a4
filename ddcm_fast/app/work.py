"""What the page computes: files and their pictures, which refine while steps run, and other formats of a file's size.

And the command line that does each of them.
"""

from __future__ import annotations

import io
import shlex
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ddcm_fast.app import sizes
from ddcm_fast.codec import container
from ddcm_fast.codec.codec import Codec
from ddcm_fast.codec.config import APPLICATION_PRESET, CodecConfig, preset
from ddcm_fast.codec.identity import dtype_name
from ddcm_fast.codec.images import psnr, to_pil, to_srgb, to_tensor
from ddcm_fast.codec.limits import Limits
from ddcm_fast.errors import ConfigError, DDCMError
from ddcm_fast.models.loading import builtin_models
from ddcm_fast.models.names import split_name
from ddcm_fast.models.wrapped import WrappedModel
from ddcm_fast.sampling.condition import Condition
from ddcm_fast.sampling.draws import own_seeds
from ddcm_fast.sampling.model import DiffusionModel
from ddcm_fast.tasks.edit import check_edit, edit

#: Formats to compare with, by Pillow's names; those that this Pillow lacks are left out.
FORMATS = ("JPEG", "WEBP", "AVIF")

#: Seconds between two pictures of a run.
_PACE = 0.5

#: Name of the thread that a run computes in.
THREAD = "ddcm-app"


#: Threads of runs, and what ends each.
_RUNS: dict[threading.Thread, threading.Event] = {}


class Stopped(Exception):
    """A run that nobody waits for any more."""


class Watched(WrappedModel):
    """A model whose predictions someone sees as they are made, and can end by an exception; nothing else is changed.

    Args:
        inner: the model. see: gets x0_hat (B, *latent_shape) float32 of every prediction.
    """

    def __init__(self, inner: DiffusionModel, see: Callable[[Tensor], None]) -> None:
        super().__init__(inner)
        self._see = see

    def predict(self, x: Tensor, t: float, condition: Any = None) -> tuple[Tensor, Tensor]:
        x0_hat, eps_hat = self.inner.predict(x, t, condition)
        self._see(x0_hat)
        return x0_hat, eps_hat

    def sized(self, shape: torch.Size) -> DiffusionModel:
        return self.inner.sized(shape)

    def changes(self) -> str:
        return ""


@dataclass(frozen=True)
class Result:
    """A file and the picture that it decodes to; dB against the original, where there is one."""

    data: bytes
    image: Image.Image
    psnr: float | None = None


@dataclass(frozen=True)
class Rival:
    """The original in another format: its picture, bytes and PSNR in dB."""

    format: str
    image: Image.Image
    size: int
    psnr: float


@dataclass(frozen=True)
class Served:
    """A model that the page offers.

    Attributes:
        options: words of a command line, beside --model, that load it as it was loaded.
        limits, backend: of what is done with it, see Codec.
    """

    model: DiffusionModel
    options: Sequence[str] = ()
    limits: Limits = field(default_factory=Limits)
    backend: str = "auto"

    @property
    def takes_label(self) -> bool:
        """Whether it can be told a class."""
        return self.model.classes > 0

    @property
    def needs_label(self) -> bool:
        """Whether it has to be told one."""
        try:
            self.model.complete_condition(None)
        except ConfigError:
            return True
        return False

    @property
    def takes_prompt(self) -> bool:
        """Whether it can be told a text."""
        try:
            return self.model.complete_condition(Condition("a")) is not None
        except ConfigError:
            return False

    @property
    def guidance(self) -> float:
        """The model's own guidance scale; 1, which is none, of one that takes no conditions."""
        told = Condition(label=0) if self.takes_label else Condition("a") if self.takes_prompt else None
        own = self.model.complete_condition(told)
        return 1.0 if own is None or own.guidance_scale is None else own.guidance_scale

    @property
    def target_guidance(self) -> float:
        """A scale for the target of an edit: 3, with which digits become others, where it is not higher anyway."""
        return self.guidance if self.needs_label else max(3.0, self.guidance)

    def codec(self, config: CodecConfig | None = None, model: DiffusionModel | None = None) -> Codec:
        """A codec with the limits and the backend; `model` may stand for the served one."""
        return Codec(model or self.model, config, self.backend, limits=self.limits)


# ---- runs ----------------------------------------------------------------------------------------


def _run(
    served: Served,
    action: Callable[[DiffusionModel], Iterator[Result]],
    size: tuple[int, int] | None = None,
) -> Iterator[Image.Image | Result]:
    """Pictures of the model's predictions while `action` runs with it, and its results as they are there.

    `size` is what pictures have of the predictions, which may be larger. A generator that is closed ends the run at
    its next prediction. Raises what `action` raises.
    """
    news: Queue[Image.Image | Result | BaseException | None] = Queue()
    stop = threading.Event()
    shown = time.monotonic()

    def see(x0_hat: Tensor) -> None:
        nonlocal shown
        if stop.is_set():
            raise Stopped
        if time.monotonic() - shown > _PACE and news.empty():
            picture = to_pil(served.model.decode(x0_hat[:1])[0])
            news.put(picture if size is None else picture.crop((0, 0, *size)))
            shown = time.monotonic()

    def work() -> None:
        try:
            for result in action(Watched(served.model, see)):
                news.put(result)
            news.put(None)
        except BaseException as error:
            news.put(error)

    thread = threading.Thread(target=work, name=THREAD, daemon=True)
    _RUNS[thread] = stop
    thread.start()
    try:
        while True:
            try:
                found = news.get(timeout=0.1)
            except Empty:
                continue
            if isinstance(found, BaseException):
                raise found
            if found is None:
                return
            yield found
    finally:
        stop.set()
        thread.join()
        _RUNS.pop(thread, None)


def running() -> list[threading.Thread]:
    """The threads of runs that go on."""
    return [thread for thread in list(_RUNS) if thread.is_alive()]


def end_runs(seconds: float) -> None:
    """Have all runs end at their next prediction, and wait for that at most so long."""
    for stop in list(_RUNS.values()):
        stop.set()
    end = time.monotonic() + seconds
    for thread in list(_RUNS):
        thread.join(max(0.0, end - time.monotonic()))


def compress(served: Served, image: Image.Image, name: str, rate: dict[str, Any]) -> Iterator[Image.Image | Result]:
    """Pictures while an image is coded by a preset, then the Result; `rate` is {"bpp": ...} or {"psnr": ...}.

    Raises DDCMError.
    """

    def action(watched: DiffusionModel) -> Iterator[Result]:
        (coded,) = served.codec(preset(name), watched).encode(image, **rate)
        quality = psnr(to_tensor(image, watched.channels)[0], coded.reconstruction.cpu())
        yield Result(coded.data, coded.image, quality)

    return _run(served, action, image.size)


def decompress(served: Served, data: bytes, first: float = 1.0) -> Iterator[Image.Image | Result]:
    """Pictures while a file, or the first part of it, is decoded, then the Result. Raises DDCMError."""
    header, _ = container.read(data)

    def action(watched: DiffusionModel) -> Iterator[Result]:
        yield Result(data, served.codec(None, watched).decompress(data, first=first))

    return _run(served, action, (header.width, header.height))


def generate(
    served: Served, count: int, side: int, seed: int, condition: Condition | None, **settings: Any
) -> Iterator[Image.Image | Result]:
    """Pictures while `count` images of side x side pixels are drawn, and the Result of each once it is there.

    `seed` is of the draw, `settings` replace those of the preset `ddcm`. Raises DDCMError.
    """

    def action(watched: DiffusionModel) -> Iterator[Result]:
        codec = served.codec(preset(APPLICATION_PRESET, **settings), watched)
        for own in own_seeds(seed, count):
            (coded,) = codec.generate(1, side, side, [own], condition)
            yield Result(coded.data, coded.image)

    return _run(served, action, (side, side))


def edited(
    served: Served,
    picture: Image.Image | Result,
    source: Condition | None,
    target: Condition,
    start: int,
    **settings: Any,
) -> Iterator[Image.Image | Result]:
    """Pictures while an image is coded and then decoded to another target from a step on; the Results of both.

    Args:
        picture: the image, or the first Result of an edit of it under the same source and settings.
        source, target: what the model is told. start: the step, 0 is the noisiest. settings: of the preset `ddcm`.

    Raises DDCMError.
    """
    if not target:
        raise ConfigError("an edit needs a target: choose a label or give a prompt")
    config = preset(APPLICATION_PRESET, **settings)
    check_edit(served.model, config, [target], [start])

    def action(watched: DiffusionModel) -> Iterator[Result]:
        codec, first = served.codec(config, watched), picture
        if isinstance(first, Image.Image):
            (coded,) = codec.encode(first, source)
            first = Result(coded.data, coded.image)
        yield first
        (coded,) = edit(codec, first.data, [target], [start])
        yield Result(coded.data, coded.image)

    return _run(served, action, (picture if isinstance(picture, Image.Image) else picture.image).size)


def rivals(image: Image.Image, size: int) -> list[Rival]:
    """The picture in each of FORMATS, of the best quality that takes at most `size` bytes, or the least there is."""
    Image.init()
    original = to_srgb(image).convert("RGB")
    found = []
    for format in FORMATS:
        if format in Image.SAVE:
            data = _fitting(original, format, size)
            shown = Image.open(io.BytesIO(data)).convert("RGB")
            found.append(Rival(format, shown, len(data), psnr(to_tensor(original)[0], to_tensor(shown)[0])))
    return found


def _fitting(image: Image.Image, format: str, size: int) -> bytes:
    def coded(quality: int) -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, format, quality=quality)
        return buffer.getvalue()

    low, high, best = 1, 100, coded(0)
    while low <= high:
        middle = (low + high) // 2
        data = coded(middle)
        if len(data) <= size:
            low, best = middle + 1, data
        else:
            high = middle - 1
    return best


def header_of(data: bytes) -> container.Header | None:
    """What a file says of itself; None of what is no .ddcm file."""
    try:
        return container.read(data)[0]
    except DDCMError:
        return None


# ---- the same by the command line ----------------------------------------------------------------


def compress_command(served: Served, path: str | None, name: str, rate: dict[str, Any]) -> str:
    """The command line of `compress`, of the whole picture; of the path only the name is shown."""
    picture = _name(path or "photo.png")
    how = [word for key, value in rate.items() for word in (f"--{key}", f"{value:g}")]
    comment, more = _whole(served, path, preset(name))
    words = [picture, _name(picture, ".ddcm"), *_loaded(served), "--preset", name, *how, *more]
    return comment + _line("compress", *words)


def decompress_command(served: Served, path: str | None, first: float) -> str:
    """The command line of `decompress`, of the first percents of a file; of the path only the name is shown."""
    words = [_name(path or "photo.ddcm"), _name(path or "photo.ddcm", "-decoded.png")]
    model = served.model
    if split_name(model.name)[0] not in builtin_models():
        words += ["--model", model.name]
    header = None if path is None else header_of(Path(path).read_bytes())
    if header is not None and header.dtype != dtype_name(model.dtype):
        words += ["--dtype", dtype_name(model.dtype)]
    return _line("decompress", *words, *([] if first == 100 else ["--first", f"{first:g}%"]))


def generate_command(
    served: Served, count: int, side: int, seed: int, condition: Condition | None, **settings: Any
) -> str:
    """The command line of `generate`."""
    size = [] if side == served.model.default_side else ["--size", f"{side}x{side}"]
    return _line(
        "generate",
        *_loaded(served),
        *_told(condition),
        *_set(settings),
        *("-n", count, *size, "--draw-seed", seed, "--output-dir", "out"),
    )


def edit_command(
    served: Served, path: str | None, source: Condition | None, target: Condition, start: int, **settings: Any
) -> str:
    """The command line of `edited`, of the whole picture; of the path only the name is shown."""
    comment, more = _whole(served, path, preset(APPLICATION_PRESET, **settings))
    words = [*_told(source), *_told(target, "target-"), "--t-edit", start, *_set(settings), "--output-dir", "out"]
    return comment + _line("edit", _name(path or "picture.png"), *_loaded(served), *words, *more)


def _line(*words: Any) -> str:
    return shlex.join(["ddcm", *map(str, words)])


def _whole(served: Served, path: str | None, config: CodecConfig) -> tuple[str, list[str]]:
    """A comment where the page makes the picture smaller and the command does not, and limits that this one raises."""
    size = sizes.known(path)
    if size is None:
        return "", []
    return sizes.comment(size, served.model, served.limits.pixels), sizes.options(size, served.model, config)


def _name(path: str, ending: str | None = None) -> str:
    """The name of a file, or one beside it of another ending, so that it is no option."""
    name = Path(path).name if ending is None else f"{Path(path).stem}{ending}"
    return f"./{name}" if name.startswith("-") else name


def _set(settings: dict[str, Any]) -> list[Any]:
    return [word for name, value in settings.items() for word in (f"-{name}", value)]


def _told(condition: Condition | None, whose: str = "") -> list[str]:
    """Options that say a condition, the source's or the `target-`."""
    if condition is None:
        return []
    guidance = "target-guidance" if whose else "guidance-scale"
    words: list[str] = []
    for name, value in ((f"{whose}label", condition.label), (guidance, condition.guidance_scale)):
        words += [] if value is None else [f"--{name}", f"{value:g}"]
    if condition.prompt is not None:  # which may begin with a dash
        words.append(f"--{whose}prompt={condition.prompt}")
    return words


def _loaded(served: Served) -> list[str]:
    """Options that load the model; of a folder only its own name, since where it lies is nothing to visitors."""
    return ["--model", served.model.name, *served.options]
