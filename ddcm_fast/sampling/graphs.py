"""StepGraphs: whole sampling steps as CUDA graphs, network and codebook kernels together.

A step is hundreds of kernels; where they are small, launching them takes longer than running them. A CUDA graph
launches all of a step at once. What it computes is a model's `predictor` and sampler.complete, as in the loop, on
tensors that stay in place (state, target, letters); the numbers of the step come from a table on the device, at a row
that is itself a tensor. So one graph serves all steps of a form.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ddcm_fast.errors import ConfigError, ModelError, first_line
from ddcm_fast.sampling.choosers import Blind, Chooser, StepContext, Toward
from ddcm_fast.sampling.model import DiffusionModel, Level
from ddcm_fast.sampling.rules import RULES, Rule
from ddcm_fast.sampling.schedule import Step
from ddcm_fast.sampling.update import Update, complete

Work = Callable[[], Any]


def require_gpu(model: DiffusionModel) -> None:
    """Raise ConfigError for a model that is not on a GPU."""
    if model.device.type != "cuda":
        raise ConfigError(f"CUDA graphs need the model on a GPU; {model.name!r} is on {str(model.device)!r}")


def cuda_graph(work: Work, pool: Any) -> Work:
    """Capture work on tensors that stay in place, which has run before; the function returned repeats it.

    pool: of memory, shared by graphs that are never replayed at the same time and leave nothing in it.
    Raises ModelError: the work waits for the device, or does something else that cannot be captured.
    """
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, pool=pool):
            work()
    except RuntimeError as error:
        said = f"this step cannot be captured in a CUDA graph; leave cuda_graph out: {first_line(error)}"
        raise ModelError(said) from error
    return graph.replay


class _Given(Chooser):
    """Letters that lie where the graph reads them."""

    def __init__(self, letters: Tensor) -> None:
        self._letters = letters

    def choose(self, context: StepContext) -> Tensor:
        return self._letters


class _Form:
    """All steps of one form. The first runs as it is, which warms kernels and caches up; the second is recorded.

    Args:
        work: takes the step with the letters given, or chooses them; returns them, (B, n), None of a step without.
        record: see StepGraphs.
    """

    def __init__(self, work: Callable[[Tensor | None], Tensor | None], record: Callable[[Work], Work]) -> None:
        self._work, self._record = work, record
        self._given: Tensor | None = None
        self._chosen: Tensor | None = None
        self._replay: Work | None = None
        self._warm = False

    def take(self, given: Tensor | None) -> Tensor | None:
        """Take the step; the letters, a tensor of the caller's own."""
        if given is not None:
            self._given = _put(self._given, given)
        if not self._warm:
            choice = self._work(self._given)
            self._chosen = None if choice is None else torch.empty_like(choice)
            self._warm = True
            return choice if given is None else given
        if self._replay is None:
            self._replay = self._record(self._in_place)
        self._replay()
        return given if given is not None or self._chosen is None else self._chosen.clone()

    def _in_place(self) -> None:
        choice = self._work(self._given)
        if choice is not None and self._chosen is not None and self._given is None:
            self._chosen.copy_(choice)


class StepGraphs:
    """The steps of one schedule, taken by sampler.sample. Keep it: later runs replay what the first has captured.

    Args:
        model, steps, rule: what sample is given.
        record: turns work on tensors that stay in place into a function that repeats it: CUDA graphs where None;
            something that runs on a CPU in tests.

    Raises:
        ConfigError: a rule that cannot be captured, or a model that is not on a GPU.
    """

    def __init__(
        self, model: DiffusionModel, steps: Sequence[Step], rule: Rule, record: Callable[[Work], Work] | None = None
    ) -> None:
        if not rule.capturable:
            names = ", ".join(name for name, other in RULES.items() if other.capturable)
            raise ConfigError(
                f"the rule {rule.name or type(rule).__name__!r} cannot be captured in a CUDA graph, only {names} can"
            )
        if record is None:
            require_gpu(model)
            record = partial(cuda_graph, pool=torch.cuda.graph_pool_handle())
        self._model, self._rule, self._record = model, rule, record
        # A decoder whose letters have ended takes a coded step without noise: the row after all others of that index.
        self._count = len(steps)
        self._rows = [*steps, *(step.deterministic for step in steps)]
        self._row = torch.zeros((), dtype=torch.int64, device=model.device)
        self._x = self._target = self._weight = torch.empty(0, device=model.device, dtype=torch.float32)
        self._table = self._x
        self._forms: dict[Any, _Form] = {}

    def begin(self, x: Tensor, chooser: Chooser) -> None:
        """Start at a state x (B, *latent_shape) float32.

        Raises ConfigError: a model that cannot be captured, or a chooser that needs more than the step's own
        prediction.
        """
        if not isinstance(chooser, (Blind, Toward)):
            raise ConfigError(f"a CUDA graph cannot serve the chooser {type(chooser).__name__}; leave cuda_graph out")
        if x.shape != self._x.shape:
            self._forms.clear()
            numbers = [
                [*self._model.at(s.t, x.shape).level(s.t), s.alpha_s, s.direction, s.noise] for s in self._rows
            ]
            self._table = torch.tensor(numbers, dtype=torch.float32, device=x.device)
        self._x = _put(self._x, x)
        if isinstance(chooser, Toward):
            self._target = _put(self._target, chooser.target.expand_as(x))
            if chooser.weight is not None:
                self._weight = _put(self._weight, chooser.weight.expand_as(x))

    def take(self, step: Step, chooser: Chooser, condition: Any) -> Tensor | None:
        """Take a step; its letters (B, n), or None of a step without. Replays wait for nothing."""
        row, given = step.index, None
        if step.coded and isinstance(chooser, Blind):
            given = chooser.letters(self._rule, step, len(self._x), self._x.device)
            if given is None:
                row, step = self._count + step.index, step.deterministic
        weighted = isinstance(chooser, Toward) and chooser.weight is not None
        letters = tuple(self._rule.radices(step)) if step.coded else step.noise > 0
        model = self._model.at(step.t, self._x.shape)
        key = (model, condition, letters, given is None, weighted)
        if key not in self._forms:
            self._forms[key] = _Form(self._work(model, step, weighted, condition), self._record)
        self._row.fill_(row)
        return self._forms[key].take(given)

    def state(self) -> Tensor:
        """The state (B, *latent_shape) after the last step taken, a tensor of the caller's own."""
        return self._x.clone()

    def _work(
        self, model: DiffusionModel, step: Step, weighted: bool, condition: Any
    ) -> Callable[[Tensor | None], Tensor | None]:
        """What all steps of the form of this one do."""
        predict = model.predictor(condition, self._x.shape)
        toward = Toward(self._target, self._weight if weighted else None)
        step = dataclasses.replace(step, position=self._row)

        def work(given: Tensor | None) -> Tensor | None:
            # index_select: indexing with a 0-d tensor would wait for its value.
            numbers = self._table.index_select(0, self._row.view(1))[0].unbind()
            level, update = Level(*numbers[:-3]), Update(*numbers[-3:])
            x0_hat, eps_hat = predict(self._x, level)
            context = StepContext(self._model, self._rule, step, self._x, x0_hat, eps_hat, condition)
            x, choice = complete(context, toward if given is None else _Given(given), update)
            self._x.copy_(x)
            return choice

        return work


def _put(place: Tensor | None, value: Tensor) -> Tensor:
    """A tensor with the value: `place` itself where it fits."""
    if place is None or place.shape != value.shape:
        return value.clone(memory_format=torch.contiguous_format)
    return place.copy_(value)
