"""Letters chosen by an objective of your own: pictures that look alike from left and right.

    python examples/own_objective.py [MODEL]    # Stable Diffusion's folder or hub id
"""

import sys
from pathlib import Path

from diffusers import StableDiffusionPipeline

from ddcm_fast import DDCMScheduler
from ddcm_fast.sampling import Match

model = sys.argv[1] if len(sys.argv) > 1 else "stabilityai/stable-diffusion-2-1-base"
pipe = StableDiffusionPipeline.from_pretrained(model)
pipe.scheduler = DDCMScheduler.from_config(pipe.scheduler.config, K=4096, kind="hadamard", seed=0)

side = pipe.unet.config.sample_size
start = pipe.scheduler.initial_latents((1, pipe.unet.config.in_channels, side, side))
symmetric = Match(lambda step: step.x0_hat.flip(-1) - step.x0_hat)  # the direction that the noise should take
with pipe.scheduler.using(symmetric):
    pipe("a butterfly", latents=start).images[0].save("butterfly.png")
Path("butterfly.ddcm").write_bytes(pipe.scheduler.to_bytes())
