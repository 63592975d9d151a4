"""The cuda backend."""

import torch


def unavailable(device: torch.device) -> str | None:
    """Why the cuda backend cannot serve a device."""
    return "not built yet"
