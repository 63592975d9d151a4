"""The training loop of the photo model: one optimiser step after another, saved so that a later run goes on exactly."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import math
import os
import pickle
import signal
import sys
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import pixel_unshuffle
from torch.optim.swa_utils import get_ema_multi_avg_fn
from tqdm import tqdm

from ddcm_fast import files
from ddcm_fast.errors import first_line
from ddcm_fast.models.train.data import Pictures, centre_crops, load_photos
from ddcm_fast.models.train.errors import TrainError
from ddcm_fast.models.train.pages import draw_pages
from ddcm_fast.models.train.photo import (
    SCHEDULER_NAME,
    WEIGHTS_NAME,
    Denoiser,
    EvalTable,
    TrainConfig,
    alphas_cumprod,
    autocast,
    check,
    epsilon_of,
    evaluate,
    load_model,
    loss_weights,
    new_model,
    patch_of,
    prediction_of,
    save_model,
    timestep_density,
    usable_device,
    usual_batch,
)

STATE_NAME = "train-state.pt"
STATE = files.Kind("a file of torch.save", zipfile.is_zipfile)
STALL_SECONDS = 10.0
"""The longest one step may count towards ``minutes`` (a paused process does not age)."""


class _Clock:
    """Seconds a run was active: no single step counts for more than ``STALL_SECONDS``."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self._last = time.monotonic()

    def start(self) -> None:
        """Forget the time since the last tick."""
        self._last = time.monotonic()

    def tick(self) -> float:
        now = time.monotonic()
        self.seconds += min(now - self._last, STALL_SECONDS)
        self._last = now
        return self.seconds


@contextlib.contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM in a list, so that a run ends after its step and saves."""
    seen: list[int] = []
    before = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, lambda n, _frame: seen.append(n))
    except ValueError:  # not the main thread
        pass
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _log(line: str) -> None:
    """One line on standard output, past a progress bar."""
    with tqdm.external_write_mode():
        print(line, flush=True)


def learning_rate(config: TrainConfig, step: int, progress: float) -> float:
    """Linear warm-up over ``warmup`` steps times a cosine from 1 to ``final_lr`` over the run."""
    warm = min(1.0, (step + 1) / max(1, config.warmup))
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
    return config.lr * warm * (config.final_lr + (1.0 - config.final_lr) * cosine)


def read_state(folder: Path) -> dict[str, Any]:
    """What ``Training.save`` wrote to a folder, on the CPU."""
    try:
        state: dict[str, Any] = torch.load(folder / STATE_NAME, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise TrainError(f"cannot resume from {folder}: {first_line(error)}") from error
    return state


class Training:
    """A run under way: the network, its average, the optimiser, the random streams, and the steps and seconds taken.

    All that decides the next step is in the saved state, so that on one device a resumed run takes the steps that an
    uninterrupted one would have taken. ``density`` is the probability of each timestep.

    On a GPU the network is compiled (but for ``config.eager``), once a crop size: its normalisations and activations
    would otherwise cost more than its convolutions.
    """

    def __init__(self, model: Denoiser, config: TrainConfig, device: torch.device, density: np.ndarray) -> None:
        self.config, self.device, self.patch = config, device, patch_of(model)
        self.batch = usual_batch(device) if config.batch is None else config.batch
        self.memory = torch.channels_last if device.type != "mps" else torch.contiguous_format
        self.model = model.to(device=device, memory_format=self.memory).train()
        compiled = device.type == "cuda" and not config.eager
        self._network = torch.compile(self.model, dynamic=False) if compiled else self.model
        self.ema = copy.deepcopy(model).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            *(model.parameters(), config.lr, (0.9, 0.99)), weight_decay=config.weight_decay, fused=device.type == "cuda"
        )
        self.draws = torch.Generator("cpu").manual_seed(config.seed)
        self.noises = torch.Generator(device).manual_seed(config.seed + 1)
        self.clock = _Clock()
        self.steps = 0
        abar = alphas_cumprod()
        self._density = torch.from_numpy(density)
        self._weight = torch.from_numpy(loss_weights(abar, config.snr_power, density)).float().to(device)
        self._abar = torch.from_numpy(abar).float().to(device)
        self._logged = (0, 0.0)  # steps and seconds at the last log line, and what has been measured since
        self._losses: list[torch.Tensor] = []
        self._norms: list[torch.Tensor] = []

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what ``read_state`` returned."""
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.draws.set_state(state["draws"])
        self.noises.set_state(state["noises"])
        self.steps = int(state["step"])
        self.clock.seconds = float(state["seconds"])

    def save(self, folder: Path, outputs: files.Outputs) -> None:
        """Write the averaged weights and the state file, which were added to ``outputs``."""
        content = {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "draws": self.draws.get_state(),
            "noises": self.noises.get_state(),
            "step": self.steps,
            "seconds": self.clock.seconds,
            "config": dataclasses.asdict(self.config),
        }
        buffer = io.BytesIO()
        torch.save(content, buffer)
        save_model(self.ema, self.config.prediction, folder, outputs)
        outputs.write(folder / STATE_NAME, buffer.getvalue())

    def progress(self) -> float:
        """The share of the run that is done: 1 at the end of its steps or minutes, whichever comes first."""
        parts = [0.0]
        if self.config.steps is not None:
            parts.append(self.steps / self.config.steps)
        if self.config.minutes is not None:
            parts.append(self.clock.seconds / (60.0 * self.config.minutes))
        return max(parts)

    def _loss(self, pictures: Pictures) -> torch.Tensor:
        """The weighted loss of a fresh batch of crops, timesteps and noise."""
        config, draws = self.config, self.draws
        which = int(torch.randint(len(config.crops), (), generator=draws, dtype=torch.int64, device="cpu"))
        crop = config.crops[which]
        batch = max(1, round(self.batch * (config.crops[0] / crop) ** 2))
        times = torch.multinomial(self._density, batch, replacement=True, generator=draws)
        x0 = pixel_unshuffle(pictures.sample(batch, crop, config.scales, draws, config.pages), self.patch)
        times = times.to(self.device)
        noise = torch.randn(x0.shape, generator=self.noises, device=self.device, dtype=torch.float32)
        abar = self._abar[times, None, None, None]
        noisy = (abar.sqrt() * x0 + (1.0 - abar).sqrt() * noise).contiguous(memory_format=self.memory)
        with autocast(self.device, config.dtype):
            guess = self._network(noisy, times, return_dict=False)[0]
        guess = epsilon_of(guess.float(), noisy, abar, config.prediction)
        errors = (guess - noise).square().mean(dim=(1, 2, 3))
        return (self._weight[times] * errors).mean()

    def step(self, pictures: Pictures) -> None:
        """One step of the optimiser and of the average."""
        rate = learning_rate(self.config, self.steps, self.progress())
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self._loss(pictures)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        self.optimizer.step()
        self.steps += 1
        decay = min(self.config.ema, self.steps / (10.0 + self.steps))
        get_ema_multi_avg_fn(decay)([*self.ema.parameters()], [*self.model.parameters()], None)
        self._losses.append(loss.detach())
        self._norms.append(norm.detach())
        self.clock.tick()

    def _report(self) -> None:
        """Log the means since the last line, and start anew. Raises TrainError: the loss is not finite."""
        mean = float(torch.stack(self._losses).mean())
        if not math.isfinite(mean):
            raise TrainError(f"the loss is not finite at step {self.steps}: lower --lr")
        seconds = self.clock.seconds
        speed = (self.steps - self._logged[0]) / max(1e-9, seconds - self._logged[1])
        _log(
            f"step {self.steps} loss {mean:.5f} grad {float(torch.stack(self._norms).mean()):.3f} "
            f"lr {self.optimizer.param_groups[0]['lr']:.2e} {speed:.2f} steps/s {seconds / 60:.1f} min "
            f"{100 * min(1.0, self.progress()):.0f}%"
        )
        self._logged = (self.steps, seconds)
        self._losses, self._norms = [], []

    def run(self, pictures: Pictures, folder: Path, outputs: files.Outputs) -> bool:
        """Steps to the end of the run, or until a signal or ``stop_after`` (False); saves on the way and at last."""
        config, first = self.config, self.steps
        self.clock.start()
        saved = self.clock.seconds
        self._logged = (self.steps, self.clock.seconds)
        finished = True
        bar = tqdm(total=config.steps, initial=self.steps, disable=not sys.stderr.isatty(), unit="step")
        with _stop_signals() as signals, bar:
            while self.progress() < 1.0:
                if signals or (config.stop_after is not None and self.steps - first >= config.stop_after):
                    finished = False
                    break
                self.step(pictures)
                bar.update()
                if self.steps % config.log_every == 0:
                    self._report()
                if self.clock.seconds - saved >= 60.0 * config.save_minutes:
                    self.save(folder, outputs)
                    saved = self.clock.seconds
        self.save(folder, outputs)
        return finished


def _evaluate_held_out(model: Denoiser, photos: Sequence[torch.Tensor], config: TrainConfig) -> EvalTable:
    """On centre crops as large as half of the photographs allow, at most 256 pixels."""
    sides = sorted(min(p.shape[:2]) for p in photos)
    size = min(256, sides[len(sides) // 2] // 16 * 16)
    return evaluate(model, centre_crops(photos, size), prediction=config.prediction, dtype=config.dtype)


def train_photo(
    data: str | os.PathLike[str],
    output: str | os.PathLike[str],
    config: TrainConfig,
    *,
    init: str | os.PathLike[str] | None = None,
    unet_config: str | os.PathLike[str] | None = None,
    resume: bool = False,
) -> EvalTable | None:
    """Train the photo model on a tar of photographs.

    Writes the averaged (EMA) weights to the diffusers folder ``output`` and everything needed to
    go on to ``train-state.pt`` in it, about every ``save_minutes``. ``init`` is a diffusers folder
    to start from; without it the model starts fresh, in the shape of ``unet_config``. ``resume``
    goes on from ``output``. On one device a resumed run takes the steps that an uninterrupted one
    would have taken. Returns the held-out table, or None where the run stopped early.
    """
    check(config)
    device = usable_device(config.device)
    density = timestep_density(alphas_cumprod(), config.t_range, config.t_uniform)
    if not Path(data).is_file():
        raise TrainError(f"no such tar file: {data}")
    folder = Path(output)
    outputs = files.Outputs([Path(data)], folder=folder)
    for name in ("config.json", SCHEDULER_NAME):
        outputs.add(folder / name, files.JSON)
    for name, kind in ((WEIGHTS_NAME, files.SAFETENSORS), (STATE_NAME, STATE)):
        outputs.add(folder / name, kind)

    state = read_state(folder) if resume else None
    torch.manual_seed(config.seed)
    source = folder if resume else init
    model = load_model(source) if source is not None else new_model(unet_config)
    if source is not None and config.prediction != prediction_of(source):
        raise TrainError(
            f"the model in {source} predicts {prediction_of(source)}: give --prediction {prediction_of(source)}"
        )
    training = Training(model, config, device, density)
    if state is not None:
        training.restore(state)
        del state

    cache = load_photos(data, short_side=config.short_side, holdout=config.holdout)
    photos = [p for p in cache.train if min(p.shape[:2]) >= max(config.crops)]
    if not photos:
        raise TrainError(f"no training photograph is {max(config.crops)} pixels on each side")
    _log(
        f"{len(photos)} training photographs ({len(cache.train) - len(photos)} too small), "
        f"{len(cache.held_out)} held out; "
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters on {device}"
    )
    pages = draw_pages(config.page_count, config.seed, max(config.crops)) if config.pages else []
    if not training.run(Pictures(photos, pages, device), folder, outputs):
        _log(f"stopped and saved at step {training.steps}; go on with --resume")
        return None
    table = _evaluate_held_out(training.ema, cache.held_out, config)
    _log(f"done: {training.steps} steps, {training.clock.seconds / 60:.1f} minutes; averaged weights in {folder}")
    _log(f"held-out photographs ({table.images} of {table.size} x {table.size}):")
    _log(table.markdown())
    return table
