"""Triton kernels of ddcm-fast (installed as ddcm_fast.kernels)."""

import torch


def unavailable(device: torch.device) -> str | None:
    """Why the triton backend cannot serve a device."""
    return "not built yet"
