"""A picture made after another one, and compressed in the same model: both by the letters of one scheduler.

    python examples/img2img.py [MODEL [PICTURE]]    # Stable Diffusion's folder or hub id
"""

import sys

from diffusers import StableDiffusionImg2ImgPipeline
from PIL import Image

from ddcm_fast import DDCMScheduler

model = sys.argv[1] if len(sys.argv) > 1 else "stabilityai/stable-diffusion-2-1-base"
photo = Image.open(sys.argv[2] if len(sys.argv) > 2 else "photo.jpg").convert("RGB")
pipe = StableDiffusionImg2ImgPipeline.from_pretrained(model)
pipe.scheduler = DDCMScheduler.from_config(pipe.scheduler.config, K=4096, kind="hadamard", seed=0)

pipe("a red fox in the snow", image=photo, strength=0.7).images[0].save("fox.png")
with pipe.scheduler.toward(photo, vae=pipe.vae):  # the same call, its noise chosen to come near the photo
    near = pipe("a red fox in the snow", image=photo, strength=0.7).images[0]
near.save("near.png")
print(f"{len(pipe.scheduler.to_bytes())} bytes lead from the noisy photo to near.png")
