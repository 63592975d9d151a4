"""Rules: what is coded at a step."""

from .base import Rule
from .greedy import Greedy
from .product import Product
from .pursuit import Pursuit

__all__ = ["Greedy", "Product", "Pursuit", "Rule"]
