"""Rules: what is coded at a step."""

from .base import Rule
from .greedy import Greedy
from .product import Product
from .pursuit import Pursuit
from .rcc import Rcc
from .threshold import Threshold
from .trellis import Trellis

__all__ = ["Greedy", "Product", "Pursuit", "Rcc", "Rule", "Threshold", "Trellis"]
