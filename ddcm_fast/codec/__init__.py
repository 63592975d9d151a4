"""The codec: images to the bytes of .ddcm files and back, on top of ddcm_fast.sampling and the models.

Configuration and presets (config), the file (container) and whose it is (identity), one image size (job), rate control
(rate), limits, pictures (images), and the files of the DDCM authors' code (official).
"""

from typing import TYPE_CHECKING

from ddcm_fast.lazy import exports

if TYPE_CHECKING:
    from ddcm_fast.codec.codec import Codec, Encoded
    from ddcm_fast.codec.config import PRESETS, CodecConfig, preset

__all__ = ["PRESETS", "Codec", "CodecConfig", "Encoded", "preset"]

__getattr__, __dir__ = exports(
    __name__,
    {
        "ddcm_fast.codec.codec": ("Codec", "Encoded"),
        "ddcm_fast.codec.config": ("PRESETS", "CodecConfig", "preset"),
    },
)
