"""Rules: what is coded at a step."""

from ddcm_fast.sampling.rules.base import Rule
from ddcm_fast.sampling.rules.greedy import Greedy
from ddcm_fast.sampling.rules.product import Product
from ddcm_fast.sampling.rules.pursuit import Pursuit
from ddcm_fast.sampling.rules.rcc import Rcc
from ddcm_fast.sampling.rules.threshold import Threshold
from ddcm_fast.sampling.rules.trellis import Trellis

__all__ = ["Greedy", "Product", "Pursuit", "Rcc", "Rule", "Threshold", "Trellis"]
