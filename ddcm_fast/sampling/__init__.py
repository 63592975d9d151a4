"""Sampling: the reverse process of any diffusion model with codebook noise, on top of ddcm_fast.codebook.

What a model is (model, condition, curve), which steps are taken (schedule, information), what is coded in each (rules),
who chooses it (choosers), and the loop (sampler, update, graphs).
"""

from typing import TYPE_CHECKING

from ddcm_fast.lazy import exports

if TYPE_CHECKING:
    from ddcm_fast.sampling.choosers import Chooser, Draw, Match, Replay, StepContext, toward
    from ddcm_fast.sampling.model import DiffusionModel
    from ddcm_fast.sampling.sampler import Sample, sample
    from ddcm_fast.sampling.schedule import Step, plan

__all__ = [
    "Chooser",
    "DiffusionModel",
    "Draw",
    "Match",
    "Replay",
    "Sample",
    "Step",
    "StepContext",
    "plan",
    "sample",
    "toward",
]

__getattr__, __dir__ = exports(
    __name__,
    {
        "ddcm_fast.sampling.choosers": ("Chooser", "Draw", "Match", "Replay", "StepContext", "toward"),
        "ddcm_fast.sampling.model": ("DiffusionModel",),
        "ddcm_fast.sampling.sampler": ("Sample", "sample"),
        "ddcm_fast.sampling.schedule": ("Step", "plan"),
    },
)
