"""Codebook noise in a sampling loop of your own: twenty lines of DDPM with a compressed result.

    python examples/own_sampler.py
"""

import math

import torch

from ddcm_fast import Codebook, load_model

model = load_model("gaussian-field")  # any model with alpha_sigma and predict; this one is analytic and instant
shape = model.latent_shape(32, 32)
book = Codebook("hadamard", dim=math.prod(shape), size=4096, seed=1, signed=False)
target = 0.5 * torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))

timesteps = model.training_timesteps()[::20]
x = book.initial_noise(1).view(1, *shape)
letters = []
with torch.inference_mode():
    for step, t in enumerate(timesteps):
        alpha, sigma = model.alpha_sigma(t)
        alpha_s, sigma_s = model.alpha_sigma(timesteps[step + 1]) if step + 1 < len(timesteps) else (1.0, 0.0)
        x0_hat, eps_hat = model.predict(x, t)
        variance = sigma_s**2 * (1 - (alpha * sigma_s) ** 2 / (alpha_s * sigma) ** 2)
        x = alpha_s * x0_hat + math.sqrt(sigma_s**2 - variance) * eps_hat
        if variance > 0:
            index, _, _ = book.search(target - x0_hat, step)  # follow the target; draw at random to generate
            x = x + math.sqrt(variance) * book.atoms(index, step).view_as(x)
            letters.append(index.item())
print(f"{len(letters)} indices of 12 bits are the picture; first ones {letters[:5]}")
