"""Data parallel: several processes, each with its share of every batch, one of which writes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from omegaconf import OmegaConf
from torch import Tensor
from torch import distributed as dist

from lora_exp.errors import RunFailed, UserError
from lora_exp.runs.config import Config
from lora_exp.runs.values import from_mapping, to_yaml
from lora_exp.train.interruption import SIGNALS

PATIENCE_SECONDS = 30.0
"""How long ranks may still take to end once one of them has failed."""


T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among those that train a run."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """The one that writes."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Add up a tensor over all ranks, in place."""
        if self.count > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, value: T) -> list[T]:
        """The value of each rank, by its number."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any of them. Asked over the CPU: a GPU is not waited for."""
        return bool(self.sum(torch.tensor(int(flag))))


def environment() -> dict[str, int] | None:
    """What torchrun, or srun, tells a process of its place: rank, count and local rank.

    None if it was started alone.
    """
    for names in (
        ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
        ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
    ):
        if all(name in os.environ for name in names):
            rank, count, local = (int(os.environ[name]) for name in names)
            if count > 1:
                return {"rank": rank, "count": count, "local": local}
    return None


def join(device: torch.device, wanted: int) -> Ranks:
    """Meet the other ranks of a run, if it is to have any.

    Args:
        device: of this rank; gradients are added up there.
        wanted: number of ranks that the config asks for.

    Raises:
        UserError: if there are not so many.
    """
    if wanted == 1:
        return Ranks()
    place = environment() or {"rank": 0, "count": 1}
    if place["count"] != wanted:
        raise UserError(
            f"train.devices times train.nodes is {wanted}, but {place['count']} processes were "
            "started. Start as many: torchrun --nproc-per-node DEVICES -m lora_exp ..., or srun."
        )
    os.environ.setdefault("MASTER_ADDR", _first_node())
    os.environ.setdefault("MASTER_PORT", "29500")
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, rank=place["rank"], world_size=wanted)
    return Ranks(place["rank"], wanted)


def _first_node() -> str:
    nodes = os.environ.get("SLURM_STEP_NODELIST")
    if nodes is None:
        return "localhost"
    names = subprocess.run(
        ["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True
    )
    return names.stdout.split()[0]


def launch(config: Config, overrides: list[str]) -> int:
    """Train a run with as many processes of this machine as `train.devices` says.

    They get the config as it is now, in a file.

    Returns:
        The exit status: 0 if all ended well, else that of the first one that did not.

    Raises:
        UserError: if there are fewer GPUs, or without any fewer cores.
    """
    number = config.train.devices
    gpus = torch.cuda.device_count() if config.device != "cpu" else 0
    if 0 < gpus < number:
        raise UserError(
            f"train.devices={number}: there are {gpus} GPUs here. Give as many at most, or "
            "device=cpu."
        )
    cores = os.cpu_count() or 1
    if not gpus and number > max(2, cores):
        raise UserError(
            f"train.devices={number}: without a GPU these are processes, and there are {cores} "
            "cores here. Give as many at most."
        )
    threads = max(1, cores // number)
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file, socket.socket() as free:
        file.write(to_yaml(config))
        file.flush()
        free.bind(("localhost", 0))
        meeting = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1])}
        free.close()
        ranks = []
        for rank in range(number):
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": number}
            more = meeting | {name: str(value) for name, value in place.items()}
            environment = {"OMP_NUM_THREADS": str(threads)} | os.environ | more
            environment.pop("HYDRA_FULL_ERROR", None)  # set by the command line, for Hydra alone
            command = [sys.executable, "-m", "lora_exp.train.ranks", file.name, *overrides]
            ranks.append(subprocess.Popen(command, env=environment))
        # Ctrl-C reaches the ranks by itself; a second request of the same kind would stop them.
        former = {n: signal.signal(n, lambda *_: _pass_on(ranks)) for n in SIGNALS}
        try:
            return _wait(ranks)
        finally:
            for one, handler in former.items():
                signal.signal(one, handler)


def _pass_on(ranks: list[subprocess.Popen[bytes]]) -> None:
    for one in ranks:
        if one.poll() is None:
            one.send_signal(signal.SIGTERM)


def _wait(ranks: list[subprocess.Popen[bytes]]) -> int:
    """Until all have ended. Those that wait in vain for one that died are ended as well."""
    failed, since = 0, 0.0
    while any(one.poll() is None for one in ranks):
        time.sleep(0.05)
        if not failed:
            failed = next((code for one in ranks if (code := one.poll())), 0)
            since = time.monotonic()
        elif time.monotonic() - since > PATIENCE_SECONDS:
            for one in ranks:
                one.kill()
    return failed or next((code for one in ranks if (code := one.poll())), 0)


def main() -> None:
    """One rank: `python -m lora_exp.train.ranks CONFIG OVERRIDE ...`."""
    from lora_exp import console
    from lora_exp.train.job import execute

    console.set_up()
    first = os.environ["RANK"] == "0"
    console.console.quiet = not first  # they would all say the same
    config = from_mapping(OmegaConf.load(sys.argv[1]))
    try:
        execute(config, sys.argv[2:])
    except RunFailed:
        raise SystemExit(1) from None  # told by the process that waits for this one
    except UserError as error:
        if first:
            print(f"lora_exp: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    main()
