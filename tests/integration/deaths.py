"""How a process dies, or what else befalls it, at one of its file operations."""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

KILLED = "killed before "


def note_operations(below: Path, then: Callable[[int, str], None]) -> None:
    """From now on, call a function before each file operation of this process in a folder.

    Args:
        below: the folder.
        then: gets the number of the operation, from 1, and a description. What it raises, the
            operation raises.
    """
    start, count = f"{below}/", 0

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if arguments and event.split(".")[0] in ("open", "os", "shutil"):
            path = str(arguments[0])
            if path.startswith(start):
                count += 1
                then(count, f"{event} {path.removeprefix(start)}")

    synchronise = os.fsync

    def fsync(descriptor: int) -> None:  # which Python does not tell of
        sys.audit("os.fsync", str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        synchronise(descriptor)

    os.fsync = fsync
    sys.addaudithook(note)


def before_operation(below: Path, number: int) -> None:
    """Let this process, or one that it forks, kill itself before its n-th operation in a folder."""
    told = below.with_suffix(".killed")
    told.unlink(missing_ok=True)

    def kill(count: int, what: str) -> None:
        if count == number and not told.exists():  # one process, not each
            told.touch()
            os.write(2, f"\n{KILLED}{what}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)

    note_operations(below, kill)


def in_a_write(size: int) -> None:
    """Let this process die in the middle of the write that makes a file larger than `size` bytes:
    SIGXFSZ, unless Python ignores it, ends it as SIGKILL would."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
