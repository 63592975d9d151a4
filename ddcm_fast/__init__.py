"""ddcm-fast: fast codebook noise, sampler and codec for Denoising Diffusion Codebook Models."""

from typing import TYPE_CHECKING

from ddcm_fast.lazy import exports

if TYPE_CHECKING:
    from ddcm_fast.codebook.codebook import Codebook
    from ddcm_fast.codec import container
    from ddcm_fast.codec.codec import Codec, Encoded
    from ddcm_fast.codec.config import PRESETS, CodecConfig, preset
    from ddcm_fast.codec.limits import Limits
    from ddcm_fast.codec.scheduler import DDCMScheduler
    from ddcm_fast.errors import DDCMError
    from ddcm_fast.models.loading import load_model
    from ddcm_fast.sampling.condition import Condition
    from ddcm_fast.sampling.model import DiffusionModel

__version__ = "0.1.0"

__all__ = [
    "PRESETS",
    "Codebook",
    "Codec",
    "CodecConfig",
    "Condition",
    "DDCMError",
    "DDCMScheduler",
    "DiffusionModel",
    "Encoded",
    "Limits",
    "__version__",
    "container",
    "load_model",
    "preset",
]

__getattr__, __dir__ = exports(
    __name__,
    {
        "ddcm_fast.codebook.codebook": ("Codebook",),
        "ddcm_fast.codec": ("container",),
        "ddcm_fast.codec.codec": ("Codec", "Encoded"),
        "ddcm_fast.codec.config": ("PRESETS", "CodecConfig", "preset"),
        "ddcm_fast.codec.limits": ("Limits",),
        "ddcm_fast.codec.scheduler": ("DDCMScheduler",),
        "ddcm_fast.errors": ("DDCMError",),
        "ddcm_fast.models.loading": ("load_model",),
        "ddcm_fast.sampling.condition": ("Condition",),
        "ddcm_fast.sampling.model": ("DiffusionModel",),
    },
)
