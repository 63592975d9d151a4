"""A plugin of Pillow: `import ddcm_fast.pillow`, and Pillow opens and saves .ddcm files (docs/pillow.md).

A file is opened by its header alone, without torch; the model is loaded, and the picture decoded, at `load()`, which
Pillow calls when pixels are wanted. As for `ddcm decompress`, a file chooses only among the built-in models.
"""

from __future__ import annotations

from dataclasses import fields
from functools import lru_cache
from typing import IO, TYPE_CHECKING, Any

from PIL import Image, ImageFile

from ddcm_fast.codec import container
from ddcm_fast.codec.config import DEFAULT_MODEL, DEFAULT_PRESET, QUALITIES, CodecConfig, preset
from ddcm_fast.errors import ConfigError, DDCMError, ModelError, PillowError
from ddcm_fast.files import MAX_FILE
from ddcm_fast.models.names import channels

if TYPE_CHECKING:
    from ddcm_fast.sampling.condition import ConditionLike
    from ddcm_fast.sampling.model import DiffusionModel

FORMAT, ENDING, MIME = "DDCM", ".ddcm", "image/x-ddcm"

#: What `draft` can leave of a picture's sides: 1 / these.
_SCALES = (2, 4, 8, 16)

_RATES = {"bpp", "psnr"}
#: Keywords of Image.save: what Codec.compress takes, and all of them.
_CODING = ("bpp", "psnr", "condition", "embed_condition", "mask")
_KEYWORDS = ("quality", *_CODING, "model", "preset", *(field.name for field in fields(CodecConfig)))


class DDCMImageFile(ImageFile.ImageFile):
    """A .ddcm file. Its size and mode are known at once, its pixels after `load()`.

    Attributes:
        header: what the file says of itself, a container.Header.
        model: of a file whose model is not built in, to be set before the pixels are wanted: a DiffusionModel, a
            diffusers pipeline, a folder or a hub id.
        condition: of a file whose condition does not travel, to be set likewise: a Condition or a prompt.

    Raises PillowError, an OSError: in `Image.open` for a file that is damaged or too new or belongs into a pipeline's
    call, in `load` for one that cannot be decoded.
    """

    format, format_description = FORMAT, "Denoising Diffusion Codebook Models"
    header: container.Header
    model: Any = None
    condition: ConditionLike = None
    _data: bytes | None = None
    _scale: int = 1  # of the picture's sides, those decoded are 1 / scale

    def _open(self) -> None:
        assert self.fp is not None
        self._data = self.fp.read(MAX_FILE + 1)
        if len(self._data) > MAX_FILE:
            raise PillowError(f"the file has more than {MAX_FILE >> 20} MiB; a .ddcm file has at most that")
        try:
            self.header, _ = container.read(self._data)
            container.refuse_pipelines(self.header.model)
        except DDCMError as error:
            raise PillowError(str(error)) from error
        self._size = (self.header.width, self.header.height)
        self._mode = "L" if channels(self.header.model) == 1 else "RGB"

    def draft(self, mode: str | None, size: tuple[int, int] | None) -> tuple[str, tuple[int, int, float, float]] | None:
        """Have a smaller picture decoded, of at least `size`, which is quicker; `thumbnail` calls it.

        Its sides are 1/2, 1/4, 1/8 or 1/16 of the picture's, see Codec.preview; the mode stays. Returns the mode and
        the box of the picture in it, or None: all of it is needed, or it is decoded already.
        """
        if self._data is None or size is None:
            return None
        width, height = self.header.width, self.header.height
        most = min(width // max(1, size[0]), height // max(1, size[1]))
        self._scale = max((scale for scale in _SCALES if scale <= most), default=1)
        self._size = (-(-width // self._scale), -(-height // self._scale))
        return None if self._scale == 1 else (self.mode, (0, 0, width / self._scale, height / self._scale))

    def load(self) -> Any:
        """Decode the picture, if that is still to be done. Raises PillowError."""
        if self._data is not None:
            picture = self._decode(self._data)
            self._data, self._mode, self.im = None, picture.mode, picture.im
            if self._exclusive_fp and self.fp is not None:  # it was opened for this picture
                self.fp.close()
                self.fp = None
        return super().load()

    def _decode(self, data: bytes) -> Image.Image:
        from ddcm_fast.codec.codec import Codec
        from ddcm_fast.models.loading import require_builtin

        try:
            if self.model is None:
                require_builtin(self.header.model)
            model = _loaded(self.header.model if self.model is None else self.model, self.header.dtype)
            codec = Codec(model)
            if self._scale > 1:
                return codec.preview(data, self._scale, self.condition)
            return codec.decompress(data, condition=self.condition)
        except ModelError as error:
            raise PillowError(f"{error}; with Pillow set the image's attribute `model` before its pixels") from error
        except DDCMError as error:
            raise PillowError(str(error)) from error


@lru_cache(maxsize=2)
def _load(name: str, dtype: str | None) -> DiffusionModel:
    from ddcm_fast.models.loading import load_model

    return load_model(name, dtype=dtype)


def _loaded(model: Any, dtype: str | None) -> Any:
    """A model by its name, loaded once for several pictures; anything else is a model."""
    return _load(str(model), dtype) if hasattr(model, "__fspath__") or isinstance(model, str) else model


def _save(image: Image.Image, file: IO[bytes], _: str | bytes) -> None:
    """What Image.save does with this format; its keywords are those of docs/pillow.md. Raises DDCMError."""
    from ddcm_fast.codec.codec import Codec

    given = dict(image.encoderinfo)
    for name in given:
        if name not in _KEYWORDS:
            raise ConfigError(f"saving a .ddcm file takes no {name!r}, only {', '.join(_KEYWORDS)}")
    model = given.pop("model", DEFAULT_MODEL)
    how = {name: given.pop(name) for name in _CODING if name in given}
    if "quality" in given:
        if (quality := given.pop("quality")) not in QUALITIES:
            raise ConfigError(f"quality is {quality!r}; choose one of {', '.join(QUALITIES)}, or give bpp= or psnr=")
        if how.keys() & _RATES:
            raise ConfigError(f"quality is {quality!r}, which is a bitrate; give it without bpp= and psnr=")
        how["bpp"] = QUALITIES[quality]
    config = preset(given.pop("preset", DEFAULT_PRESET), **given)
    if config.shares_atoms and not how.keys() & _RATES and not given.keys() & {"M", "atoms"}:
        how["bpp"] = QUALITIES["medium"]
    data = Codec(_loaded(model, None), config).compress(image, **how)
    assert isinstance(data, bytes)
    file.write(data)


def _accept(prefix: bytes) -> bool:
    return prefix.startswith(container.MAGIC)


Image.register_open(FORMAT, DDCMImageFile, _accept)
Image.register_save(FORMAT, _save)
Image.register_extension(FORMAT, ENDING)
Image.register_mime(FORMAT, MIME)
