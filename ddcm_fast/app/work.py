"""What the page computes: a picture's file and its refinement while steps run, the same size in other formats."""

from __future__ import annotations

import io
import shlex
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ddcm_fast.codec import container
from ddcm_fast.codec.codec import Codec
from ddcm_fast.codec.config import preset
from ddcm_fast.codec.identity import dtype_name
from ddcm_fast.codec.images import psnr, to_pil, to_srgb, to_tensor
from ddcm_fast.codec.limits import Limits
from ddcm_fast.errors import DDCMError
from ddcm_fast.models.loading import builtin_models, default_device, default_dtype
from ddcm_fast.models.names import split_name
from ddcm_fast.models.wrapped import WrappedModel
from ddcm_fast.sampling.model import DiffusionModel

#: Formats to compare with, by Pillow's names; those that this Pillow lacks are left out.
FORMATS = ("JPEG", "WEBP", "AVIF")

#: Seconds between two pictures of a run.
_PACE = 0.5


#: Name of the thread that a run computes in.
THREAD = "ddcm-app"


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


def _run(model: DiffusionModel, action: Callable[[DiffusionModel], Result]) -> Iterator[Image.Image | Result]:
    """Pictures of the model's predictions while `action` runs with it, then its result.

    A generator that is closed ends the run at its next prediction. Raises what `action` raises.
    """
    news: Queue[Image.Image | Result | BaseException] = Queue()
    stop = threading.Event()
    shown = time.monotonic()

    def see(x0_hat: Tensor) -> None:
        nonlocal shown
        if stop.is_set():
            raise Stopped
        if time.monotonic() - shown > _PACE and news.empty():
            news.put(to_pil(model.decode(x0_hat[:1])[0]))
            shown = time.monotonic()

    def work() -> None:
        try:
            news.put(action(Watched(model, see)))
        except BaseException as error:
            news.put(error)

    thread = threading.Thread(target=work, name=THREAD, daemon=True)
    thread.start()
    try:
        while True:
            try:
                found = news.get(timeout=0.1)
            except Empty:
                continue
            if isinstance(found, BaseException):
                raise found
            yield found
            if isinstance(found, Result):
                return
    finally:
        stop.set()
        thread.join()


def compress(
    model: DiffusionModel,
    image: Image.Image,
    name: str,
    rate: dict[str, Any],
    limits: Limits | None = None,
    backend: str = "auto",
) -> Iterator[Image.Image | Result]:
    """Pictures while an image is coded by a preset, then the Result; `rate` is {"bpp": ...} or {"psnr": ...}.

    Raises DDCMError.
    """

    def action(watched: DiffusionModel) -> Result:
        (coded,) = Codec(watched, preset(name), backend, limits=limits).encode(image, **rate)
        quality = psnr(to_tensor(image, model.channels)[0], coded.reconstruction.cpu())
        return Result(coded.data, coded.image, quality)

    return _run(model, action)


def decompress(
    model: DiffusionModel, data: bytes, first: float = 1.0, limits: Limits | None = None, backend: str = "auto"
) -> Iterator[Image.Image | Result]:
    """Pictures while a file, or the first part of it, is decoded, then the Result. Raises DDCMError."""

    def action(watched: DiffusionModel) -> Result:
        return Result(data, Codec(watched, backend=backend, limits=limits).decompress(data, first=first))

    return _run(model, action)


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


# ---- the same by the command line ----------------------------------------------------------------


def compress_command(
    model: DiffusionModel, path: str | None, name: str, by_psnr: bool, bpp: float, psnr: float
) -> str:
    """The command line that codes a picture as the page does, at a bitrate or to a quality."""
    picture = Path(path or "photo.png").name
    rate = ["--psnr", f"{psnr:g}"] if by_psnr else ["--bpp", f"{bpp:g}"]
    file = Path(picture).with_suffix(".ddcm").name
    return shlex.join(["ddcm", "compress", picture, file, *_loaded(model), "--preset", name, *rate])


def decompress_command(model: DiffusionModel, path: str | None, first: float) -> str:
    """The command line that decodes a file, or the first percents of it, as the page does."""
    words = ["ddcm", "decompress", Path(path or "photo.ddcm").name, f"{Path(path or 'photo').stem}-decoded.png"]
    if split_name(model.name)[0] not in builtin_models():
        words += ["--model", model.name]
    if path is not None and made_in(Path(path).read_bytes()) not in (None, dtype_name(model.dtype)):
        words += ["--dtype", dtype_name(model.dtype)]
    return shlex.join(words if first == 100 else [*words, "--first", f"{first:g}%"])


def made_in(data: bytes) -> str | None:
    """The dtype that a file was made in; None of what is no .ddcm file."""
    try:
        return container.read(data)[0].dtype
    except DDCMError:
        return None


def _loaded(model: DiffusionModel) -> list[str]:
    """Options that load the model; of a folder only its own name, since where it lies is nothing to visitors."""
    words = ["--model", model.name]
    if model.device.type != default_device().type:
        words += ["--device", model.device.type]
    if model.dtype != default_dtype(model.device):
        words += ["--dtype", dtype_name(model.dtype)]
    return words
