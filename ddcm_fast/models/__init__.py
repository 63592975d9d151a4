"""Models: the adapter face, the built-in models and how to load one."""

from ddcm_fast.models.loading import load_model, wrap_pipeline
from ddcm_fast.models.pixel import PixelModel
from ddcm_fast.models.tiled import TiledModel
from ddcm_fast.sampling.model import DiffusionModel

__all__ = ["DiffusionModel", "PixelModel", "TiledModel", "load_model", "wrap_pipeline"]
