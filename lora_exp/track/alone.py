"""A store on this machine that one process writes at a time."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Wait for all other processes to leave a store; those that come later wait for this one.

    The stores of trackers wait by themselves, but not for long: where many runs share a store, some
    give up.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lora_exp.lock").open("a") as lock:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
