"""ddcm-fast: fast codebook noise, sampler and codec for Denoising Diffusion Codebook Models."""

from ddcm_fast.codebook.codebook import Codebook
from ddcm_fast.codec.codec import Codec, Encoded
from ddcm_fast.codec.config import PRESETS, CodecConfig, preset
from ddcm_fast.codec.limits import Limits
from ddcm_fast.errors import DDCMError
from ddcm_fast.models import DiffusionModel, load_model
from ddcm_fast.sampling.condition import Condition

__version__ = "0.1.0"

__all__ = [
    "PRESETS",
    "Codebook",
    "Codec",
    "CodecConfig",
    "Condition",
    "DDCMError",
    "DiffusionModel",
    "Encoded",
    "Limits",
    "__version__",
    "load_model",
    "preset",
]
