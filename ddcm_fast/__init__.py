"""ddcm-fast: fast codebook noise, sampler and codec for Denoising Diffusion Codebook Models."""

from .codebook import Codebook
from .codec import Codec, Encoded
from .condition import Condition
from .config import PRESETS, CodecConfig, preset
from .errors import DDCMError
from .limits import Limits
from .models import DiffusionModel, load_model

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
