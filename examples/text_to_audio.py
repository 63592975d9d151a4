"""A sound and its file: Stable Audio with codebook noise, played again from the letters.

    python examples/text_to_audio.py [MODEL]    # Stable Audio's folder or hub id; needs torchsde
"""

import sys
from pathlib import Path

import torch
from diffusers import StableAudioPipeline

from ddcm_fast import DDCMScheduler

model = sys.argv[1] if len(sys.argv) > 1 else "stabilityai/stable-audio-open-1.0"
pipe = StableAudioPipeline.from_pretrained(model)
pipe.scheduler = DDCMScheduler.from_config(pipe.scheduler.config, K=4096, kind="hadamard", seed=0)

network = pipe.transformer.config
start = pipe.scheduler.initial_latents((1, network.in_channels, network.sample_size))
audio = pipe("rain on a roof", latents=start, audio_end_in_s=1.0).audios[0]
data = pipe.scheduler.to_bytes()
Path("rain.ddcm").write_bytes(data)

with pipe.scheduler.replay(data):
    again = pipe("rain on a roof", latents=start, audio_end_in_s=1.0).audios[0]
print(f"rain.ddcm has {len(data)} bytes; the sound it replays is the same: {torch.equal(audio, again)}")
