"""Writes noise-law-1.json: golden vectors of the noise law, version 1, made by the reference backend.

    python tests/golden/make.py > tests/golden/noise-law-1.json

The file is frozen with the law: a change of it is a new version of the law. Vectors are float32 in
little-endian hexadecimal where they are short, else the SHA-256 of the same bytes; negative zeros are
written as zeros.
"""

from __future__ import annotations

import hashlib
import json

import torch
from torch import Tensor

from ddcm_fast.codebook import reference
from ddcm_fast.codebook.law import NOISE_LAW_VERSION, CodebookSpec, gaussian_table

_SHORT = 200

# Salmon et al., Random123's kat_vectors: philox4x32, 10 rounds.
PHILOX = (
    ("00000000 00000000", "00000000 00000000 00000000 00000000"),
    ("ffffffff ffffffff", "ffffffff ffffffff ffffffff ffffffff"),
    ("a4093822 299f31d0", "243f6a88 85a308d3 13198a2e 03707344"),
)

# kind, D, K, G, seed, step, atoms (one index for every group)
ATOMS = [
    (kind, *numbers)
    for kind in ("gaussian", "sign", "hadamard")
    for numbers in (
        (1, 1, 1, 0, 0, (0,)),
        (5, 17, 1, 1, 1, (0, 16)),
        (64, 64, 4, 2, 3, (0, 63)),
        (127, 1000, 2, 2**64 - 1, 2**32 - 1, (0, 511, 999)),
        (1000, 4096, 3, 0x123456789ABCDEF0, 19, (1, 4095)),
        (5000, 2**20, 1, 42, 7, (0, 16384, 2**20 - 1)),
        (12289, 2**32, 5, 2**63, 1, (0, 2**31, 2**32 - 1)),
    )
]
ROTATIONS = [(kind, dim, 0xFEDCBA9876543210) for kind in ("gaussian", "sign") for dim in (3, 100, 4097)]
INITIAL = [(1, 0), (100, 2**64 - 1), (12289, 42)]


def encode(x: Tensor) -> str:
    """A float32 vector as hexadecimal bytes, or the hash of a long one."""
    data = (x.flatten().float() + 0.0).numpy().astype("<f4").tobytes()
    return data.hex() if x.numel() <= _SHORT else "sha256:" + hashlib.sha256(data).hexdigest()


def fixed_vector(dim: int) -> Tensor:
    """Numbers from -1/2 to 1/2 that float32 holds exactly: (1, dim)."""
    return ((torch.arange(dim) * 40503 % 65536 - 32768) / 65536).float().unsqueeze(0)


def main() -> None:
    """Print the file."""
    out: dict[str, object] = {"noise_law_version": NOISE_LAW_VERSION}
    table = gaussian_table().numpy().astype("<i2").tobytes()
    out["gaussian_table_sha256"] = hashlib.sha256(table).hexdigest()
    out["philox"] = []
    for key, counter in PHILOX:
        k, c = ([int(word, 16) for word in words.split()] for words in (key, counter))
        block, atom = (torch.tensor(c[i]) for i in (0, 1))
        words = reference.philox(k[0] | k[1] << 32, block, atom, c[2], c[3])
        text = " ".join(f"{int(w):08x}" for w in words)
        out["philox"].append({"key": key, "counter": counter, "words": text})
    out["atoms"] = []
    for kind, dim, size, groups, seed, step, picks in ATOMS:
        spec = CodebookSpec(kind, dim, size, groups, seed)
        for pick in picks:
            # Groups take neighbouring atoms, so that a swap of groups shows.
            index = [(pick + g) % size for g in range(groups)]
            one = torch.ones(1, groups, 1)
            y = reference.combine(spec, torch.tensor(index).view(1, -1, 1), one, step)
            z = reference.to_image_order(spec, y)
            case = dict(kind=kind, dim=dim, size=size, groups=groups, seed=seed, step=step, index=index)
            out["atoms"].append({**case, "z": encode(z)})
    out["combinations"] = []
    for kind in ("gaussian", "sign", "hadamard"):
        spec = CodebookSpec(kind, 130, 300, 2, 5)
        index = torch.tensor([[3, 299, 3], [0, 150, 7]]).unsqueeze(0)
        coefficient = torch.tensor([[0.1, -1.7, 3.0], [1e-3, 0.333, -2.5]]).unsqueeze(0)
        z = reference.to_image_order(spec, reference.combine(spec, index, coefficient, 9))
        case = dict(kind=kind, dim=130, size=300, groups=2, seed=5, step=9)
        lists = dict(index=index[0].tolist(), coefficient=coefficient[0].tolist())
        out["combinations"].append({**case, **lists, "z": encode(z)})
    out["rotations"] = []
    for kind, dim, seed in ROTATIONS:
        spec, x = CodebookSpec(kind, dim, 1, 1, seed), fixed_vector(dim)
        there, back = reference.to_image_order(spec, x), reference.to_codebook_order(spec, x)
        case = dict(kind=kind, dim=dim, seed=seed)
        out["rotations"].append({**case, "to_image_order": encode(there), "to_codebook_order": encode(back)})
    out["initial_noise"] = [
        dict(dim=dim, seed=seed, x=encode(reference.initial_noise(dim, seed))) for dim, seed in INITIAL
    ]
    print(json.dumps(out, indent=1))


if __name__ == "__main__":
    main()
