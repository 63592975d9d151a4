"""The codec: images to the bytes of .ddcm files and back, on top of ddcm_fast.sampling and the models.

Configuration and presets (config), the file (container), rate control (rate, pace), limits, pictures (images), and the
files of the DDCM authors' code (official).
"""

from ddcm_fast.codec.codec import Codec, Encoded
from ddcm_fast.codec.config import PRESETS, CodecConfig, preset

__all__ = ["PRESETS", "Codec", "CodecConfig", "Encoded", "preset"]
