"""Rules: what is coded at a step."""

from .base import Rule
from .greedy import Greedy
from .pursuit import Pursuit

__all__ = ["Greedy", "Pursuit", "Rule"]
