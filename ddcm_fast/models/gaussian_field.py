"""`gaussian-field`: an analytic model, the codecs' test bench with a known rate-distortion bound.

Images are a stationary Gaussian field: independent in the Fourier basis, with the 1/f^2 power spectrum of natural
images by default. The optimal denoiser is then a Wiener filter, information and MMSE at every noise level are
closed forms, and reverse water-filling gives the fewest bits at a distortion (Cover and Thomas, section 10.3.3). So a
codec can be compared with the limit in seconds on a CPU, and a difference between two rules is the rules', not a
network's.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ddcm_fast.errors import ConfigError
from ddcm_fast.sampling.curve import InformationCurve
from ddcm_fast.sampling.information import curve_levels
from ddcm_fast.sampling.model import DiffusionModel, eps_from_x0

TIMESTEPS = 1000
BETA_FIRST, BETA_LAST = 1e-4, 0.02  # the linear schedule of DDPM (Ho et al., 2020)
_BISECTIONS = 200


@lru_cache(maxsize=1)
def _log_snr_table() -> list[float]:
    """ln(alpha^2 / sigma^2) at the timesteps 0 to 999 of DDPM's linear schedule."""
    betas = torch.linspace(BETA_FIRST, BETA_LAST, TIMESTEPS, dtype=torch.float64, device="cpu")
    kept = torch.cumprod(1 - betas, 0)
    return [float(v) for v in torch.log(kept / (1 - kept))]


def _bisect(function: Callable[[float], float], target: float, low: float, high: float) -> float:
    """The x in [low, high] with function(x) = target, for an increasing function and positive bounds."""
    for _ in range(_BISECTIONS):
        middle = math.sqrt(low * high)
        if function(middle) < target:
            low = middle
        else:
            high = middle
    return math.sqrt(low * high)


class GaussianField(DiffusionModel):
    """Independent Gaussian channels with power proportional to 1 / f^exponent, f in cycles a pixel.

    The constant component gets the power of the lowest frequency. With the default variance 4.6 % of the entries of a
    drawn image lie outside [-1, 1]; nothing is clipped, so that the closed forms hold. Real images in [-1, 1] can be
    coded too: the model is then merely a crude prior.

    Args:
        exponent: of the power spectrum; 0 is white noise, 2 is typical of photographs.
        variance: of every entry.
        floor: smallest power of a component, as a fraction of `variance`.
        channels: 3 or 1, independent of each other.
        device: where predictions are computed.
    """

    def __init__(
        self,
        exponent: float = 2.0,
        variance: float = 0.25,
        floor: float = 1e-4,
        channels: int = 3,
        device: torch.device | str = "cpu",
    ) -> None:
        if channels not in (1, 3) or not variance > 0 or not 0 <= floor <= 1 or not math.isfinite(exponent):
            raise ConfigError(
                f"impossible Gaussian field: exponent {exponent}, variance {variance}, floor {floor}, "
                f"{channels} channels; take variance > 0, floor 0 to 1, 1 or 3 channels"
            )
        self.name = "gaussian-field"
        self.device = torch.device(device)
        self.dtype = torch.float32
        self.max_timestep = float(TIMESTEPS - 1)
        self.channels = channels
        self.exponent = exponent
        self.variance = variance
        self.floor = floor
        self._gains: dict[tuple[int, int], Tensor] = {}
        levels = curve_levels(self)  # exact, for a typical size: the curve hardly depends on it
        side = 64
        # Six digits, as a measured curve has: the last ones depend on the processor, and files on the curve.
        errors = tuple(float(f"{self.mmse(t, side, side):.6g}") for t in levels)
        self.information = InformationCurve(tuple(levels), errors, variance)

    # ---- the field -------------------------------------------------------------------------------

    def power(self, height: int, width: int) -> Tensor:
        """Variance of every component of the orthonormal 2-d DFT of one channel: (H, W) float64, mean `variance`."""
        fy = torch.fft.fftfreq(height, dtype=torch.float64, device="cpu")
        fx = torch.fft.fftfreq(width, dtype=torch.float64, device="cpu")
        frequency = (fy[:, None].square() + fx[None, :].square()).sqrt()
        frequency = frequency.clamp_min(1 / max(height, width))
        power = frequency**-self.exponent
        power = (power / power.mean()).clamp_min(self.floor)
        normalised: Tensor = self.variance * power / power.mean()
        return normalised

    def draw(self, count: int, height: int, width: int, seed: int = 0) -> Tensor:
        """Independent samples: (count, channels, H, W) float32 on the CPU."""
        generator = torch.Generator("cpu").manual_seed(seed)
        white = torch.randn(count, self.channels, height, width, dtype=torch.float64, generator=generator, device="cpu")
        return self._filter(white, self.power(height, width).sqrt()).float()

    @staticmethod
    def _filter(x: Tensor, gain: Tensor) -> Tensor:
        """Multiply the DFT of x (..., H, W) by a real, even gain (H, W)."""
        half = gain[:, : gain.shape[1] // 2 + 1]
        spectrum = torch.fft.rfft2(x, norm="ortho") * half
        filtered: Tensor = torch.fft.irfft2(spectrum, s=x.shape[-2:], norm="ortho")
        return filtered

    # ---- DiffusionModel --------------------------------------------------------------------------

    def alpha_sigma(self, t: float) -> tuple[float, float]:
        """Between timesteps the log SNR is interpolated linearly."""
        if not 0 <= t <= self.max_timestep:
            raise ConfigError(f"timestep is {t}; it must be from 0 to {self.max_timestep:g}")
        table = _log_snr_table()
        i = min(int(t), TIMESTEPS - 2)
        log_snr = table[i] + (t - i) * (table[i + 1] - table[i])
        kept = 1 / (1 + math.exp(-log_snr))
        return math.sqrt(kept), math.sqrt(1 / (1 + math.exp(log_snr)))

    def timestep_at(self, snr: float) -> float:
        """The (fractional) timestep whose alpha^2 / sigma^2 is `snr`, clamped to the schedule."""
        table = _log_snr_table()
        target = math.log(snr)
        low, high = 0, TIMESTEPS - 1
        if target >= table[low]:
            return 0.0
        if target <= table[high]:
            return self.max_timestep
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if table[middle] >= target else (low, middle)
        return low + (table[low] - target) / (table[low] - table[high])

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        """The image itself."""
        return (self.channels, height, width)

    def encode(self, image: Tensor) -> Tensor:
        """The identity."""
        return image.to(self.device, torch.float32)

    def decode(self, x0: Tensor) -> Tensor:
        """The identity; unlike a network's images these may exceed [-1, 1]."""
        return x0

    def predict(self, x: Tensor, t: float, condition: Any = None) -> tuple[Tensor, Tensor]:
        """The Wiener filter alpha P / (alpha^2 P + sigma^2), exactly E[x0 | x_t]."""
        alpha, sigma = self.alpha_sigma(t)
        size = (x.shape[-2], x.shape[-1])
        if size not in self._gains:
            self._gains[size] = self.power(*size).to(x.device)
        power = self._gains[size]
        gain = alpha * power / (alpha**2 * power + sigma**2)
        x0_hat = self._filter(x, gain.float())
        return x0_hat, eps_from_x0(x, x0_hat, alpha, sigma)

    def fingerprint(self, dtype: torch.dtype | None = None) -> bytes:
        """Of the parameters."""
        text = f"{self.name} {self.exponent!r} {self.variance!r} {self.floor!r} {self.channels}"
        return hashlib.sha256(text.encode()).digest()[:4]

    # ---- closed forms ----------------------------------------------------------------------------

    def snr(self, t: float) -> float:
        """alpha^2 / sigma^2 at a timestep."""
        alpha, sigma = self.alpha_sigma(t)
        return (alpha / sigma) ** 2

    def mmse(self, t: float, height: int, width: int) -> float:
        """Mean squared error of x0_hat per entry, for x_t = alpha x0 + sigma eps: the mean of P / (1 + SNR P)."""
        power = self.power(height, width)
        return float((power / (1 + self.snr(t) * power)).mean())

    def mutual_information(self, t: float, height: int, width: int) -> float:
        """Mutual information of x0 and x_t in bits, of the whole image: sum of log2(1 + SNR P) / 2."""
        power = self.power(height, width)
        return self.channels * float(torch.log2(1 + self.snr(t) * power).sum()) / 2

    def rate(self, distortion: float, height: int, width: int) -> float:
        """The fewest bits a pixel (all channels) at a mean squared error per entry, by reverse water-filling.

        With the water level w of mean(min(w, P)) = distortion, every component above it costs log2(P / w) / 2 bits.
        """
        power = self.power(height, width)
        if not distortion > 0:
            raise ConfigError(f"distortion is {distortion}; it must be above 0, which no finite rate reaches")
        if distortion >= float(power.mean()):
            return 0.0
        top = float(power.max())
        level = _bisect(lambda w: float(power.clamp_max(w).mean()), distortion, min(distortion, top) / 2, top)
        return self._rate_at(power, level)

    def distortion(self, bits_per_pixel: float, height: int, width: int) -> float:
        """The least mean squared error per entry at a rate: the inverse of `rate`."""
        if not bits_per_pixel >= 0:
            raise ConfigError(f"the rate is {bits_per_pixel} bits a pixel; it must be at least 0")
        power = self.power(height, width)
        top = float(power.max())
        bottom = float(power.min()) * 2.0 ** (-2 * bits_per_pixel / self.channels) / 2
        level = _bisect(lambda w: -self._rate_at(power, w), -bits_per_pixel, bottom, top)
        return float(power.clamp_max(level).mean())

    def _rate_at(self, power: Tensor, level: float) -> float:
        return self.channels * float(torch.log2(power / level).clamp_min(0).mean()) / 2
