"""Files of the DDCM authors' own code (github.com/DDCM-2025/ddcm-compressed-image-generation): read, decode, write.

Such a .bin file holds nothing but indices; everything else is in its path: `T=.._in..-.._K=.._M=.._C=.._model=../`.
Its noise is torch.randn's after torch.manual_seed(step), a K x D tensor a step, so it decodes to the encoder's picture
only on the same kind of device, in the same dtype, with the same torch stream. That codebook (TorchRandn) exists for
these files alone and is materialised, step by step.

The sampler is theirs too: DDIM with eta = 1 on timesteps linspace(0, 999, T), each step ending 1000 // T timesteps
below where it starts, the last one at the level of timestep 0; the empty prompt and no guidance. Files of their
text-based editing have `cfg=..` in the path and a source prompt, which their code writes beside the file.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddcm_fast.codebook.codebook import Codebook
from ddcm_fast.codec.limits import Limits
from ddcm_fast.errors import ConfigError, FormatError, InputError
from ddcm_fast.sampling.choosers import Chooser, Replay, toward
from ddcm_fast.sampling.condition import MAX_BYTES, Condition, Edit
from ddcm_fast.sampling.model import DiffusionModel
from ddcm_fast.sampling.rules import Greedy, Pursuit, Rule
from ddcm_fast.sampling.sampler import Sample, sample
from ddcm_fast.sampling.schedule import Step

INITIAL_SEED = 100000

#: Short names of models in paths and where they are.
_MODELS = {
    "stable-diffusion-v1-4": "CompVis/stable-diffusion-v1-4",
    "stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
}


@dataclass(frozen=True)
class Settings:
    """What a path says.

    Attributes:
        T: steps. high, low: only timesteps from high down to low carry bits. K: atoms. M: atoms a step.
        C: bits of a coefficient. model: short name of the model.
        cfg: scale of classifier-free guidance, of files of text-based editing.
    """

    T: int
    high: int
    low: int
    K: int
    M: int = 1
    C: int = 1
    model: str = ""
    cfg: float | None = None

    def __post_init__(self) -> None:
        most = Pursuit.parameters
        possible = self.T >= 1 and self.K >= 2 and 1 <= self.M <= most["M"].high and 1 <= self.C <= most["C"].high
        if not (possible and self.high >= self.low >= 0 and (self.cfg is None or math.isfinite(self.cfg))):
            raise FormatError(
                f"impossible settings of an official file, see the name that its folder must have: {self}"
            )

    @staticmethod
    def of_path(path: Path | str) -> Settings:
        """Read them from the path of a file; raises FormatError if it does not say all of them."""
        text = str(path).replace("\\", "/")
        number = {key: re.search(rf"{key}=(\d{{1,12}})(?!\d)", text) for key in "TKMC"}
        span, model = re.search(r"_in(\d{1,12})-(\d{1,12})(?!\d)", text), re.search(r"model=([^/]+)/", text)
        if span is None or model is None or None in number.values():
            raise FormatError(
                f"{path}: an official DDCM file needs its folder's name, T=.._in..-.._K=.._M=.._C=.._model=.., "
                "which says how to decode it"
            )
        T, K, M, C = (int(number[key][1]) for key in "TKMC")  # type: ignore[index]
        cfg = re.search(r"cfg=(\d{1,6}(?:\.\d{1,12})?)(?![\d.])", text)
        return Settings(T, int(span[1]), int(span[2]), K, M, C, model[1], float(cfg[1]) if cfg else None)

    def folder(self) -> str:
        """The folder name that says them."""
        cfg = "" if self.cfg is None else f"_cfg={self.cfg}"
        return f"T={self.T}_in{self.high}-{self.low}_K={self.K}_M={self.M}_C={self.C}{cfg}_model={self.model}"

    @property
    def hub_id(self) -> str:
        """Where the model is."""
        return _MODELS.get(self.model, f"stabilityai/{self.model}" if self.model else "")

    @property
    def bits(self) -> int:
        """Bits of a step: M indices of ceil(log2 K) bits and M - 1 coefficients of C bits, alternating."""
        return self.M * (self.K - 1).bit_length() + (self.M - 1) * self.C


def _fields(settings: Settings) -> list[int]:
    """Widths of a step's fields in bits: index, coefficient, index, ..."""
    index = (settings.K - 1).bit_length()
    return [index] + [settings.C, index] * (settings.M - 1)


def _bytes(settings: Settings, steps: int) -> int:
    """Of a file with so many coded steps."""
    return (settings.bits * steps + 7) // 8


def unpack(data: bytes, settings: Settings, steps: int) -> list[list[int]]:
    """The letters of each coded step: k_1, then pairs (code of c, k).

    One big-endian number, its leading zeros lost in writing and padded again by the file's length.

    Raises FormatError: another length than the settings ask for, or an index beyond K.
    """
    bits = settings.bits * steps
    value = int.from_bytes(data, "big")
    if len(data) != _bytes(settings, steps) or value.bit_length() > bits:
        raise FormatError(f"the file has {len(data)} bytes where its name asks for {_bytes(settings, steps)}")
    rows = []
    for i in range(steps):
        own = value >> settings.bits * (steps - 1 - i) & ((1 << settings.bits) - 1)
        row: list[int] = []
        for width in reversed(_fields(settings)):
            row.append(own & ((1 << width) - 1))
            own >>= width
        row.reverse()
        for m in range(1, len(row), 2):
            if row[m] == 0:  # no further atom: what follows is not read
                row[m:] = [0] * (len(row) - m)
                break
        if max(row[0::2]) >= settings.K:
            raise FormatError("the file holds an index beyond K: it is corrupt, or its name is another's")
        rows.append(row)
    return rows


def pack(rows: list[list[int]], settings: Settings) -> bytes:
    """The inverse of unpack."""
    value = 0
    for row in rows:
        for width, number in zip(_fields(settings), row, strict=True):
            value = value << width | number
    return value.to_bytes(_bytes(settings, len(rows)), "big")


class TorchRandn(Codebook):
    """The official code's noise: atoms of step i are torch.randn(K, D) of a generator seeded with i.

    Args:
        dim: D. size: K. dtype: in which noise is drawn. device: on which.
    """

    def __init__(self, dim: int, size: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__("gaussian", dim, size, signed=False)
        self._dtype, self._device = dtype, device
        self._kept: tuple[int, Tensor] | None = None

    def draw(self, seed: int, count: int) -> Tensor:
        """(count, D) float32 of a seed."""
        generator = torch.Generator(self._device).manual_seed(seed)
        shape = (count, self.spec.dim)
        return torch.randn(shape, generator=generator, device=self._device, dtype=self._dtype).float()

    def _atoms(self, step: int | Tensor) -> Tensor:
        step = int(step)
        if self._kept is None or self._kept[0] != step:
            self._kept = (step, self.draw(step, self.spec.size))
        return self._kept[1]

    def search(
        self, residual: Tensor, step: int | Tensor, bias: Tensor | None = None, shard: tuple[int, int] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        first, last = (0, self.spec.size) if shard is None else self.spec.shard(*shard)
        scores = residual.flatten(1) @ self._atoms(step)[first:last].T
        index = (scores if bias is None else scores + bias[..., first:last]).argmax(dim=1, keepdim=True)
        return index + first, torch.ones_like(index, dtype=torch.int8), scores.gather(1, index)

    def scores(self, residual: Tensor, step: int | Tensor) -> Tensor:
        return (residual.flatten(1) @ self._atoms(step).T).unsqueeze(1)

    def scores_and_norms(self, residual: Tensor, step: int | Tensor) -> tuple[Tensor, Tensor]:
        return self.scores(residual, step), self._atoms(step).square().sum(dim=1).unsqueeze(0)

    def combine(self, index: Tensor, coefficient: Tensor, step: int | Tensor) -> Tensor:
        self.check_index(index)
        picked = self._atoms(step)[index.flatten(1).to(self._device)]
        return (coefficient.flatten(1).unsqueeze(-1).to(picked) * picked).sum(dim=1)


class _Official(Rule):
    """Steps without bits draw a single atom, as the official code does."""

    book: TorchRandn

    def uncoded_noise(self, batch: int, step: Step, device: torch.device) -> Tensor:
        return self.book.draw(step.index, 1).expand(batch, -1).to(device)


class _OfficialGreedy(_Official, Greedy):
    pass


class _OfficialPursuit(_Official, Pursuit):
    pass


def _rule(book: TorchRandn, settings: Settings) -> Rule:
    rule: _Official = (
        _OfficialGreedy(book) if settings.M == 1 else _OfficialPursuit(book, settings.M, settings.C, official_grid=True)
    )
    rule.book = book
    return rule


def steps_of(model: DiffusionModel, settings: Settings) -> list[Step]:
    """The official sampler's steps. Where T does not divide 1000, a step ends beside where the next starts: so be it.

    Raises ConfigError: more steps than timesteps.
    """
    count = int(model.max_timestep) + 1
    if count < settings.T:
        raise ConfigError(f"T is {settings.T}; it must be at most {count}, the timesteps of the model")
    spacing = (count - 1) / max(1, settings.T - 1)
    # numpy's round of linspace: halves go to even, as in Python.
    times = [round(i * spacing) for i in reversed(range(settings.T))]
    steps = []
    for i, t in enumerate(times):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = (model.alpha_sigma(max(0, u)) for u in (t, t - count // settings.T))
        v2 = (sigma_s / sigma_t) ** 2 * max(0.0, 1 - (alpha_t / alpha_s) ** 2)
        coded = t >= 1 and settings.low <= t <= settings.high
        direction = math.sqrt(max(0.0, sigma_s**2 - v2))
        steps.append(Step(i, float(t), alpha_t, sigma_t, alpha_s, sigma_s, math.sqrt(v2), direction, coded))
    return steps


def source_prompt(path: Path) -> str | None:
    """The prompt that their editing writes beside a file, None if there is none."""
    stem = path.name.split(".")[0].removesuffix("_noise_indices")
    try:
        return (path.parent / f"{stem}_srcprompt.txt").read_text(encoding="utf-8")[:MAX_BYTES]
    except (OSError, UnicodeDecodeError):
        return None


def _condition(model: DiffusionModel, settings: Settings, prompt: str | None) -> Condition | None:
    """What the model is told. Raises ConfigError: a prompt is missing, or the file knows none."""
    if (settings.cfg is None) != (prompt is None):
        said = "no cfg, so it has no" if settings.cfg is None else f"cfg={settings.cfg:g}, so it needs its"
        raise ConfigError(
            f"the file's name says {said} source prompt: give --prompt with such files alone, or leave "
            "NAME_srcprompt.txt beside NAME_noise_indices.bin"
        )
    # Their code guides only where there is a prompt.
    return model.complete_condition(Condition(prompt, guidance_scale=settings.cfg)) if prompt else None


def _run(
    model: DiffusionModel,
    settings: Settings,
    side: int,
    steps: list[Step],
    chooser: Chooser,
    progress: bool | None,
    condition: Any = None,
) -> Sample:
    shape = model.latent_shape(side, side)
    book = TorchRandn(math.prod(shape), settings.K, model.dtype, model.device)
    noise = book.draw(INITIAL_SEED, 1).view(1, *shape)
    return sample(model, steps, _rule(book, settings), chooser, noise, condition, progress, "official DDCM")


def _check(model: DiffusionModel, settings: Settings, side: int, limits: Limits) -> None:
    """Raise LimitError before a codebook is made that is too large: it is held as drawn and in float32."""
    limits.check("pixels", side * side)
    limits.check("pixel_steps", side * side * settings.T * settings.M)
    limits.check("evaluations", settings.T * model.calls(side, side))
    limits.check("memory", 8 * settings.K * math.prod(model.latent_shape(side, side)))


def decode(
    path: Path | str,
    model: DiffusionModel,
    settings: Settings | None = None,
    progress: bool | None = False,
    limits: Limits | None = None,
    prompt: str | None = None,
    edit: Edit | None = None,
) -> Tensor:
    """An official .bin file -> image (C, H, W) float32 in [-1, 1], of the model's own size.

    Args:
        path: of the file, below the folder that says its settings.
        model: load_model(settings.hub_id); float32 or float16 as in the encoder, on the same kind of device.
        settings: where the path does not say them.
        progress, limits: see Codec.
        prompt: the source prompt of a file with `cfg`; see source_prompt.
        edit: their text-based editing: from a step on, another prompt, with its guidance.

    Raises:
        FormatError: the file does not fit its name. LimitError: its name asks for more than the limits allow.
        InputError: it cannot be read. ConfigError: a file with `cfg` without its prompt, or the other way round.
    """
    settings = settings or Settings.of_path(path)
    side = model.default_side
    condition = _condition(model, settings, prompt)
    told = Edit(0, condition) if edit is None else Edit(edit.start, model.complete_condition(edit.condition))
    _check(model, settings, side, limits or Limits())
    steps = steps_of(model, settings)
    coded = sum(step.coded for step in steps)
    try:
        with open(path, "rb") as file:
            data = file.read(_bytes(settings, coded) + 1)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    rows = unpack(data, settings, coded)
    letters = [torch.tensor([row], dtype=torch.int64, device="cpu") for row in rows]
    done = _run(
        model, settings, side, steps, Replay(letters), progress, lambda step: told.at(step.index, condition)
    )
    return model.decode(done.x0)[0]


def encode(
    image: Tensor,
    model: DiffusionModel,
    settings: Settings,
    progress: bool | None = False,
    prompt: str | None = None,
) -> tuple[bytes, Tensor]:
    """An image (C, H, W) in [-1, 1] of the model's own size -> the bytes of an official file, and what it decodes to.

    To compare with the official code, not to use: its codebooks are materialised.
    """
    side = model.default_side
    if image.shape[-2:] != (side, side):
        raise ConfigError(
            f"the image is {tuple(image.shape)}; an official file takes the model's own size, {side}x{side}"
        )
    with torch.inference_mode():
        target = model.encode(image[None].to(model.device))
    condition = _condition(model, settings, prompt)
    done = _run(model, settings, side, steps_of(model, settings), toward(target), progress, condition)
    rows = [letters[0].tolist() for letters in done.letters]
    return pack(rows, settings), model.decode(done.x0)[0]
