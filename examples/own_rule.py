"""A rule of one's own: the signed atom of largest score, one bit a step more than DDCM's rule.

    python examples/own_rule.py
"""

import torch

from ddcm_fast import Codebook, Codec, CodecConfig, load_model
from ddcm_fast.sampling.rules import Rule, register


@register
class Signed(Rule):
    name = "signed"  # stands in its files

    @classmethod
    def make(cls, settings, steps, dim, backend):
        return cls(Codebook(settings.kind, dim, settings.K, seed=settings.seed, signed=True, backend=backend))

    def radices(self, step):
        return [2 * self.codebook(step).spec.size]

    def choose(self, direction, step):
        index, sign, _ = self.codebook(step).search(direction, step.at)
        return 2 * index + (sign < 0)

    def noise(self, letters, step):
        return self.codebook(step).atoms(letters >> 1, step.at, 1 - 2 * (letters & 1))


model = load_model("gaussian-field")
codec = Codec(model, CodecConfig(rule="signed", K=2048, T=100))
coded = codec.encode(model.draw(1, 32, 32).clamp(-1, 1))[0]
assert torch.equal(codec.decode(coded.data), coded.reconstruction)
print(f"{len(coded.data)} bytes, 99 steps of 12 bits")
