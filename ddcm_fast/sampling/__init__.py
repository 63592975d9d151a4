"""Sampling: the reverse process of any diffusion model with codebook noise, on top of ddcm_fast.codebook.

What a model is (model, condition, curve), which steps are taken (schedule, information), what is coded in each (rules),
who chooses it (choosers), and the loop (sampler, update, graphs).
"""

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
