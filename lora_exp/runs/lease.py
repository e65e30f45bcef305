"""The lease of a run: who may write its folder, on this machine and on others."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO
from uuid import uuid4

from lora_exp.errors import UserError
from lora_exp.runs import files

LOCK = "lock"
RENEW_SECONDS = 10.0
STALE_SECONDS = 60.0
"""A lease that was not renewed for so long belongs to nobody; nor does one from so far in the
future, which was not renewed since the clock was set back."""
YIELD_SECONDS = 3 * RENEW_SECONDS
"""How long an incarnation of the same job may take to notice that it has been replaced."""
LOOK_SECONDS = 0.1
"""How long a look whether a run is held may itself hold it."""


class RunBusy(UserError):
    """Another process trains this run at the moment."""


class Fenced(Exception):
    """Another process has taken this run over: nothing may be written to it any more."""


@dataclass(frozen=True)
class Owner:
    """Who holds a lease."""

    host: str
    pid: int
    job: str | None
    """Of SLURM: `123`, or `123_4` in an array."""
    restarts: int
    """How often SLURM has started that job again."""

    def __str__(self) -> str:
        job = f", job {self.job}" if self.job else ""
        return f"process {self.pid} on {self.host}{job}"

    @classmethod
    def here(cls) -> Owner:
        """This process."""
        asked = os.environ.get
        job = asked("SLURM_JOB_ID")
        if job and "SLURM_ARRAY_TASK_ID" in os.environ:
            job = f"{asked('SLURM_ARRAY_JOB_ID')}_{asked('SLURM_ARRAY_TASK_ID')}"
        host = asked("SLURMD_NODENAME") or socket.gethostname()
        return cls(host, os.getpid(), job, int(asked("SLURM_RESTART_COUNT") or 0))

    def replaces(self, former: Owner) -> bool:
        """It is a later incarnation of the same job: SLURM has given up the former one."""
        return self.job is not None and self.job == former.job and self.restarts > former.restarts


class Lease:
    """`outputs/leases/SIGNATURE/lock` and `outputs/leases/SIGNATURE/EPOCH`.

    The first file is locked (`flock`): processes of one machine see at once that the run is held,
    and that a holder has died. Between machines such locks cannot be relied on. There the second
    file decides: only one process can create that of the next epoch, whoever holds an older one
    has lost the run, and it is renewed as long as its process lives. It says whose the run is; an
    empty one, that it is free.
    """

    def __init__(self, folder: Path, epoch: int) -> None:
        self.file = folder / str(epoch)
        self._next = folder / str(epoch + 1)

    def check(self) -> None:
        """See that it still holds.

        Raises:
            Fenced: if another process has taken it over.
        """
        try:
            self.file.open().close()  # network file systems ask the server when a file is opened
            if not self._next.exists():
                return
        except FileNotFoundError:
            pass
        raise Fenced(f"{self.file}: another process has taken this run over.")

    def renew(self) -> None:
        """Say that the process lives."""
        with suppress(OSError):
            os.utime(self.file)

    def give_back(self) -> None:
        """The run is free. The file stays, so that epochs only grow."""
        with suppress(OSError, Fenced):
            self.check()
            os.truncate(self.file, 0)  # at once, and also where the disk is full


@contextmanager
def hold(folder: Path) -> Iterator[Lease]:
    """Hold a run.

    Args:
        folder: `outputs/leases/SIGNATURE`.

    Raises:
        RunBusy: if another process does.
        UserError: if nothing can be written there.
    """
    here = Owner.here()
    with files.told(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("a")
    with file:
        epoch, former = _newest(folder)
        if former is not None and here.replaces(former):
            lease = _claim(folder, epoch + 1)
            _lock(file.fileno(), former, YIELD_SECONDS)
            lease.check()
        else:
            locked = _lock(file.fileno(), former, LOOK_SECONDS)
            epoch, former = _newest(folder)
            free = former is None or (locked and former.host == here.host)
            if not free and not _is_stale(folder, epoch):
                raise RunBusy(str(former))
            lease = _claim(folder, epoch + 1)
        renewed_by = _renewal()
        renewed_by.leases.add(lease)
        try:
            yield lease
        finally:
            renewed_by.leases.discard(lease)
            lease.give_back()


def is_held(folder: Path) -> bool:
    """Whether a process, here or elsewhere, holds the run."""
    epoch, former = _newest(folder)
    if former is None or _is_stale(folder, epoch):
        return False
    if former.host != Owner.here().host:
        return True
    with _opened(folder / LOCK) as file:
        try:
            return not _lock(file.fileno(), former)
        except RunBusy:
            return True


def _opened(lock: Path) -> IO[str]:
    """A file to lock; to read where it belongs to somebody else, which network file systems may
    not lock."""
    try:
        return lock.open("a")
    except OSError:
        return lock.open()


class _Renewal(threading.Thread):
    """Renews the leases of this process as long as it lives, whatever its other threads do."""

    def __init__(self) -> None:
        super().__init__(name="leases", daemon=True)
        self.leases: set[Lease] = set()
        self.process = os.getpid()

    def run(self) -> None:
        while True:
            time.sleep(RENEW_SECONDS)
            for lease in list(self.leases):
                lease.renew()


def _renewal() -> _Renewal:
    global _renewing
    if _renewing is None or _renewing.process != os.getpid():  # a forked process has no threads
        _renewing = _Renewal()
        _renewing.start()
    return _renewing


_renewing: _Renewal | None = None


def _lock(descriptor: int, owner: Owner | None, patience: float = 0.0) -> bool:
    """Lock a file; False where the file system has no locks.

    Args:
        descriptor: of the file.
        owner: who may have it locked.
        patience: seconds to wait for it.

    Raises:
        RunBusy: if another process has it locked.
    """
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise RunBusy(str(owner or "another process")) from None
            time.sleep(0.1)
        except OSError:
            return False


def _newest(folder: Path) -> tuple[int, Owner | None]:
    """The last epoch, 0 if there was none, and who holds it, if anybody does."""
    try:
        names = [path.name for path in folder.iterdir()]
        epoch = max((int(name) for name in names if name.isdecimal()), default=0)
        return epoch, _owner(folder / str(epoch)) if epoch else None
    except FileNotFoundError:  # never held
        return 0, None


def _owner(file: Path) -> Owner | None:
    try:
        content = file.read_bytes()
        return Owner(**json.loads(content)) if content else None
    except (ValueError, TypeError):  # it is being written: the file system has no links
        return Owner("a host that did not say so", 0, None, 0)


def _claim(folder: Path, epoch: int) -> Lease:
    """Create the file of an epoch, which one process alone can do.

    Raises:
        RunBusy: if another one was quicker.
        UserError: if nothing can be written there.
    """
    file, owner = folder / str(epoch), json.dumps(asdict(Owner.here()))
    whole = folder / f"{uuid4().hex}{files.TEMPORARY}"
    try:
        with files.told(folder):
            try:
                whole.write_text(owner)
                _name(whole, file)
                for path in folder.iterdir():  # also what is left of those who died before this
                    old = path.name.isdecimal() and int(path.name) < epoch
                    if old or path.suffix == files.TEMPORARY:
                        path.unlink(missing_ok=True)
            except (FileExistsError, FileNotFoundError):
                raise RunBusy("another process, which was quicker") from None
    finally:
        with suppress(OSError):
            whole.unlink()
    return Lease(folder, epoch)


def _name(whole: Path, file: Path) -> None:
    """Give a file another name, unless there is one: who dies meanwhile leaves no half of it."""
    try:
        os.link(whole, file)
    except (FileExistsError, FileNotFoundError):
        raise
    except OSError:  # a file system without links
        with file.open("x") as new:
            new.write(whole.read_text())


def _is_stale(folder: Path, epoch: int) -> bool:
    """Whether the lease was not renewed for long."""
    try:
        return abs(_now(folder) - (folder / str(epoch)).stat().st_mtime) > STALE_SECONDS
    except FileNotFoundError:  # taken over or given back meanwhile
        return False


def _now(folder: Path) -> float:
    """By the clock of the file system, or of this machine where nothing can be written."""
    try:
        os.utime(folder / LOCK)
        return (folder / LOCK).stat().st_mtime
    except OSError:
        return time.time()
