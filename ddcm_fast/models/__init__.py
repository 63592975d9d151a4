"""Models: the adapter face, the built-in models and how to load one."""

from typing import TYPE_CHECKING

from ddcm_fast.lazy import exports

if TYPE_CHECKING:
    from ddcm_fast.models.loading import load_model, wrap_pipeline
    from ddcm_fast.models.pixel import PixelModel
    from ddcm_fast.models.tiled import TiledModel
    from ddcm_fast.sampling.model import DiffusionModel

__all__ = ["DiffusionModel", "PixelModel", "TiledModel", "load_model", "wrap_pipeline"]

__getattr__, __dir__ = exports(
    __name__,
    {
        "ddcm_fast.models.loading": ("load_model", "wrap_pipeline"),
        "ddcm_fast.models.pixel": ("PixelModel",),
        "ddcm_fast.models.tiled": ("TiledModel",),
        "ddcm_fast.sampling.model": ("DiffusionModel",),
    },
)
