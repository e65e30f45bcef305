"""The device a run is trained on: which one, what it promises, how much memory was in use."""

from __future__ import annotations

import os
import resource
from contextlib import suppress
from pathlib import Path

import torch
from torch.utils import deterministic

from lora_exp.errors import UserError


def choose_device(name: str, local: int = 0) -> torch.device:
    """The device that `auto`, `cpu` or `cuda` names.

    Args:
        name: as in a config.
        local: of several GPUs, the number; where a process sees fewer, they are counted anew.

    Raises:
        UserError: for `cuda` where there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"device=cuda: torch {torch.__version__} sees no GPU here. Use device=cpu, or install "
            "a CUDA build of torch and check that `nvidia-smi` lists the GPU."
        )
    use_gpu = name != "cpu" and torch.cuda.is_available()
    if not use_gpu:
        return torch.device("cpu")
    number = local % torch.cuda.device_count()
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def moved(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """A tensor of the CPU on a device, without waiting for what a GPU is doing."""
    if torch.device(device).type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def make_deterministic(device: torch.device, *, strict: bool) -> None:
    """Have the same run twice give the same bits; on a CPU that is so by itself.

    Args:
        device: that the run uses.
        strict: refuse what has no deterministic form, instead of warning. With warnings alone
            attention's backward pass is not deterministic either.
    """
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=not strict)
        # Filling memory before it is written only costs time here.
        deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]


def is_out_of_memory(error: Exception) -> bool:
    """On a GPU, or on a CPU whose memory is limited."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def device_name(device: torch.device) -> str | None:
    """The GPU's name; None for a CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else None


def reset_peak_memory(device: torch.device) -> None:
    """Count from here, so that a run is not charged with those before it in this process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):  # Linux only
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> int:
    """Most bytes in use since `reset_peak_memory`: of the GPU, or of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
