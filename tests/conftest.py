"""Without a GPU, Triton's kernels are tested in its interpreter, which has to be chosen before the first import."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
