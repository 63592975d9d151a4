"""Models: the adapter face, the built-in models and how to load one."""

from .base import DiffusionModel
from .loading import load_model, wrap_pipeline
from .pixel import PixelModel
from .tiled import TiledModel

__all__ = ["DiffusionModel", "PixelModel", "TiledModel", "load_model", "wrap_pipeline"]
