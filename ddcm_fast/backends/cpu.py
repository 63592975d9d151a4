"""The cpu backend."""

import torch


def unavailable(device: torch.device) -> str | None:
    """Why the cpu backend cannot serve a device."""
    return "not built yet"
