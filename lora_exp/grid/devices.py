"""What this machine trains on, found without importing torch: one worker for each."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from lora_exp.errors import UserError

log = logging.getLogger("lora_exp")
POOLS = ("OMP", "MKL", "OPENBLAS", "NUMEXPR", "RAYON")
ONE_THREAD = {f"{pool}_NUM_THREADS": "1" for pool in POOLS}
DRIVER = Path("/proc/driver/nvidia/gpus")


@dataclass(frozen=True)
class Device:
    """Where one worker trains."""

    kind: str
    """`cpu` or `cuda`."""
    name: str | None = None
    """Of the GPU; None for a CPU."""
    environment: dict[str, str] = field(default_factory=dict)
    """What the worker sets before it imports torch."""
    identity: str | None = None
    """Of the GPU, the same for every process of the machine."""


def choose(wanted: str) -> list[Device]:
    """The devices for a grid: every GPU, or every core where there is none.

    Args:
        wanted: `auto`, `cpu` or `cuda`.

    Raises:
        UserError: for `cuda` where there is no GPU.
    """
    found = [] if wanted == "cpu" else gpus()
    if wanted == "cuda" and not found:
        raise UserError(
            "device=cuda: there is no GPU here that torch can use. Use device=cpu, or install a "
            "CUDA build of torch and check that `nvidia-smi` lists the GPU."
        )
    return found or cores()


def cores() -> list[Device]:
    """One for each core that this process may use, with one thread."""
    number = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return [Device("cpu", environment={"CUDA_VISIBLE_DEVICES": "", **ONE_THREAD})] * (number or 1)


def gpus() -> list[Device]:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves; none if torch is a build without CUDA."""
    known = _known() if "+cpu" not in metadata.version("torch") else []
    if not known:
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    wanted = map(str, range(len(known))) if visible is None else visible.split(",")
    found = []
    for gpu in (entry.strip() for entry in wanted):
        by_number = gpu.isdecimal() and int(gpu) < len(known)
        if not by_number and not gpu.startswith(("GPU-", "MIG-")):
            break  # as CUDA reads it: what follows an entry that names no GPU does not count
        name, identity = known[int(gpu)] if by_number else (known[0][0], gpu)
        found.append(Device("cuda", name, {"CUDA_VISIBLE_DEVICES": gpu}, identity))
    return found


@contextmanager
def held(device: Device) -> Iterator[None]:
    """Have a GPU for this process: grids on one machine do not pile on one, but wait for it.

    CPUs are shared out by the system.
    """
    if device.identity is None:
        yield
        return
    folder = Path(tempfile.gettempdir()) / "lora_exp-gpus"
    folder.mkdir(exist_ok=True)
    with suppress(PermissionError):  # it is another user's, who has done so
        folder.chmod(0o777)
    path = folder / re.sub(r"\W", "-", device.identity)
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.warning("%s is in use by another grid; waiting for it.", device.name)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _known() -> list[tuple[str, str]]:
    """Name and identity of the GPUs that the driver knows."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout
        return re.findall(r"^GPU \d+: (.+?)(?: \(UUID: (.*)\))?$", listed, re.MULTILINE)
    except OSError:
        pages = [path.read_text() for path in sorted(DRIVER.glob("*/information"))]
        return [(_entry(page, "Model"), _entry(page, "GPU UUID")) for page in pages]


def _entry(page: str, key: str) -> str:
    return re.findall(rf"^{key}:\s*(.*)$", page, re.MULTILINE)[0]
