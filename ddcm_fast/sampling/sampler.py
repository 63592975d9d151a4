"""The one sampling loop: generating, encoding, decoding, restoring and editing differ only in the chooser."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ddcm_fast.sampling.autocast import no_autocast
from ddcm_fast.sampling.choosers import Chooser, StepContext
from ddcm_fast.sampling.graphs import StepGraphs
from ddcm_fast.sampling.model import DiffusionModel
from ddcm_fast.sampling.rules import Rule
from ddcm_fast.sampling.schedule import Step
from ddcm_fast.sampling.update import complete, initial_state

#: Steps are not equally long where a model predicts on averaged pictures, so their work is shown, in parts too.
_BAR = "{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total:.1f} evaluations [{elapsed}<{remaining}]"


@dataclass(frozen=True)
class Sample:
    """x0 (B, *latent_shape) float32 and the letters (B, n) of every coded step, in order, on the device."""

    x0: Tensor
    letters: list[Tensor]


def sample(
    model: DiffusionModel,
    steps: Sequence[Step],
    rule: Rule,
    chooser: Chooser,
    noise: Tensor,
    condition: Any = None,
    progress: bool | None = False,
    description: str = "",
    graphs: StepGraphs | None = None,
    on_step_end: Callable[[int, float, dict[str, Tensor]], Any] | None = None,
) -> Sample:
    """Run the reverse process, all of it inside `model.using()`.

    Args:
        model, steps, rule: from load_model, schedule.plan and rules.
        chooser: Draw to generate, toward(x0) or Match to encode, Replay to decode.
        noise: x_T before scaling, (B, *latent_shape) float32 standard normal.
        condition: given to the model; or a function of the Step that returns it (editing).
        progress: show a progress bar: True, False, or None for "if standard error is a terminal".
        description: text of the progress bar.
        graphs: take the steps as CUDA graphs; made of the same model, steps and rule.
        on_step_end: called after each step that is no graph: (its index, its timestep, {"latents": x_s, "x0_hat": the
            prediction that the step began with}); the tensors are not to be changed.

    Returns:
        Sample. The same inputs give the same bits on the same device.
    """
    letters: list[Tensor] = []
    hide = None if progress is None else not progress
    with no_autocast(), torch.inference_mode(), model.using():
        x = initial_state(model, steps[0], noise.to(model.device, torch.float32))
        work = [model.cost(step.t, x.shape) for step in steps]
        bar = tqdm(total=sum(work), disable=hide, desc=description, leave=False, bar_format=_BAR)
        if graphs is not None:
            graphs.begin(x, chooser)
        for step, following in zip(steps, [*steps[1:], None], strict=True):
            current = condition(step) if callable(condition) else condition
            if graphs is not None:
                choice = graphs.take(step, chooser, current)
            else:
                x0_hat, eps_hat = model.predict(x, step.t, current) if chooser.ahead is None else chooser.ahead
                chooser.ahead = None
                x, choice = complete(
                    StepContext(model, rule, step, x, x0_hat, eps_hat, current, following), chooser, step
                )
                if on_step_end is not None:
                    on_step_end(step.index, step.t, {"latents": x, "x0_hat": x0_hat})
            if choice is not None:
                letters.append(choice)
            bar.update(work[step.index])
        bar.close()
        return Sample(x if graphs is None else graphs.state(), letters)
