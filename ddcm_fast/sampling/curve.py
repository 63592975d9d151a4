"""InformationCurve: how far x0_hat is from x0 at each noise level. Measured and used in information.py."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from bisect import bisect_right
from dataclasses import dataclass, replace
from typing import Any

from ddcm_fast.errors import ModelError


@dataclass(frozen=True)
class InformationCurve:
    """Mean squared error a state entry of x0_hat at timesteps `t` (increasing); linear in t between them.

    Attributes:
        power: the mean square of x0 itself, the error of knowing nothing.
        averaged_from: timesteps from which on x0_hat is predicted on a picture averaged over 2 x 2, 4 x 4, ... pixels,
            since that is where it is better (MultiscaleModel). `mse` is of such predictions.
        errors: of each resolution at every timestep, the full one first; for pictures that do not fit all of them.
    """

    t: tuple[float, ...]
    mse: tuple[float, ...]
    power: float
    averaged_from: tuple[float, ...] = ()
    errors: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self) -> None:
        increasing = all(a < b for a, b in itertools.pairwise(self.t))
        finite = all(map(math.isfinite, (*self.t, *self.mse, self.power)))
        if len(self.t) < 2 or len(self.t) != len(self.mse) or not (increasing and finite):
            raise ModelError(
                f"an information curve needs two or more increasing timesteps, each with its error, not {len(self.t)} "
                f"and {len(self.mse)}"
            )
        if min(self.mse) < 0 or self.power <= 0:
            raise ModelError(
                f"a curve's errors must be at least 0, not {min(self.mse)}, and its power above 0, not {self.power}"
            )
        if not all(a <= b for a, b in itertools.pairwise(self.averaged_from)):
            raise ModelError(f"the timesteps from which on a picture is averaged must increase: {self.averaged_from}")
        if self.averaged_from and [len(row) for row in self.errors] != [len(self.t)] * (len(self.averaged_from) + 1):
            raise ModelError(f"a curve needs the errors of each resolution at each of its {len(self.t)} timesteps")

    def limited(self, resolutions: int) -> InformationCurve:
        """The curve of pictures that only the first `resolutions` of the resolutions fit."""
        if resolutions > len(self.averaged_from):
            return self
        averaged_from = self.averaged_from[: resolutions - 1]
        mse = tuple(self.errors[bisect_right(averaged_from, t)][i] for i, t in enumerate(self.t))
        return replace(self, mse=mse, averaged_from=averaged_from, errors=self.errors[:resolutions])

    def at(self, t: float) -> float:
        """Mean squared error of x0_hat at a timestep."""
        if t <= self.t[0]:
            return self.mse[0]
        if t >= self.t[-1]:
            return self.mse[-1]
        i = bisect_right(self.t, t)
        share = (t - self.t[i - 1]) / (self.t[i] - self.t[i - 1])
        return self.mse[i - 1] + share * (self.mse[i] - self.mse[i - 1])

    @property
    def digest(self) -> bytes:
        """4 bytes that tell this curve from another; files whose schedule follows the curve depend on it.

        Without `averaged_from`, which is in the model's fingerprint, since files on any schedule depend on that.
        """
        said = [self.t, self.mse, self.power, *self.errors]
        return hashlib.sha256(json.dumps(said).encode()).digest()[:4]

    def to_json(self) -> dict[str, Any]:
        """As stored in a model folder's ddcm.json under "information"."""
        said: dict[str, Any] = {"t": list(self.t), "mse": list(self.mse), "power": self.power}
        if self.averaged_from:
            said.update(averaged_from=list(self.averaged_from), errors=[list(row) for row in self.errors])
        return said

    @classmethod
    def from_json(cls, value: Any) -> InformationCurve:
        """Inverse of to_json. Raises ModelError for anything else."""
        try:
            mse = tuple(float(m) for m in value["mse"])
            averaged = tuple(float(t) for t in value.get("averaged_from", ()))
            errors = tuple(tuple(float(e) for e in row) for row in value.get("errors", ()))
            return cls(tuple(float(t) for t in value["t"]), mse, float(value["power"]), averaged, errors)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ModelError("the model's information curve is damaged; run `ddcm calibrate` again") from error
