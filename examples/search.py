"""Search a codebook of a million atoms that is never stored.

    python examples/search.py
"""

import time

import torch

from ddcm_fast import Codebook

K, D = 1 << 20, 4096
device = "cuda" if torch.cuda.is_available() else "cpu"
book = Codebook("hadamard", dim=D, size=K, seed=0)

# A residual that is mostly one atom, and noise of the same power.
hidden = 123_456
atom = book.atoms(torch.tensor([[hidden]], device=device), step=7)
residual = atom + torch.randn(1, D, device=device)

index, sign, score = book.search(residual, step=7)  # the first call compiles or loads the kernels
start = time.perf_counter()
index, sign, score = book.search(residual, step=7)
print(f"{book.backend(device)}: atom {index.item()} of {K}, score {score.item():.0f}", end=" ")
print(f"in {1e3 * (time.perf_counter() - start):.2f} ms; the tensor K x D would take {4 * K * D >> 30} GiB")
assert index.item() == hidden

# The decoder's side: the same noise from the index alone, bit for bit, on any backend and device.
noise = book.atoms(index, step=7, sign=sign)
assert torch.equal(noise, atom)
