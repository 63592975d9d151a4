"""A picture from a prompt, and the file that is the picture for whoever has the model.

    python examples/text_to_image.py [MODEL]    # Stable Diffusion's folder or hub id
"""

import sys
from pathlib import Path

from diffusers import StableDiffusionPipeline

from ddcm_fast import DDCMScheduler

model = sys.argv[1] if len(sys.argv) > 1 else "stabilityai/stable-diffusion-2-1-base"
pipe = StableDiffusionPipeline.from_pretrained(model)
pipe.scheduler = DDCMScheduler.from_config(pipe.scheduler.config, K=4096, kind="hadamard", seed=0)

side = pipe.unet.config.sample_size
start = pipe.scheduler.initial_latents((1, pipe.unet.config.in_channels, side, side))
image = pipe("a red fox in the snow", latents=start).images[0]
data = pipe.scheduler.to_bytes()
image.save("fox.png")
Path("fox.ddcm").write_bytes(data)

with pipe.scheduler.replay(data):
    again = pipe("a red fox in the snow", latents=start).images[0]
print(f"fox.ddcm has {len(data)} bytes; the picture it replays is the same: {again.tobytes() == image.tobytes()}")
