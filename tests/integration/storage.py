"""The storage campaign: disks that are full, fail, or lose what was written.

    python tests/integration/storage.py

A run on `agreement` meets, at each of its file operations, an error that passes and a disk that is
full from then on; file systems of every size that does not suffice; checkpoints that are cut off
after each byte of their header, and in which bits are flipped. It must end with one message and
without a traceback, and the same command must end it, on a disk that is whole, as if nothing had
happened; damaged checkpoints must be told and left out.
"""

from __future__ import annotations

import argparse
import errno
import itertools
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: children are forked
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    sys.path.insert(0, str(Path(__file__).parents[1]))

import forked
from forked import Ended
from integration.crashes import Campaign, differences, leftovers, outcome, solo
from integration.deaths import note_operations

PAGE = 4096
"""Bytes by which a file system grows."""


def fail(below: Path, number: int, code: int, *, for_good: bool) -> None:
    """Let file operations of this process in a folder fail, from the n-th on.

    Args:
        below: the folder.
        number: of the first that does, from 1.
        code: of the error.
        for_good: all that follow and change something fail as well.
    """

    def raise_it(count: int, what: str) -> None:
        event, path = what.split(" ", 1)
        if count == number or (for_good and count > number and event in WRITING):
            named = [] if event == "os.fsync" else [str(below / path)]
            raise OSError(code, os.strerror(code), *named)

    note_operations(below, raise_it)


WRITING = ("os.fsync", "os.mkdir", "os.link", "os.rename", "os.remove", "os.rmdir", "os.truncate")


@contextmanager
def file_system(folder: Path, size: int) -> Iterator[None]:
    """A small one in memory. Needs the right to mount."""
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    subprocess.run(mount, check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def remount(folder: Path, option: str) -> None:
    """Change a mounted file system: its `size=`, `ro` or `rw`."""
    subprocess.run(["mount", "-o", f"remount,{option}", str(folder)], check=True)


def can_mount() -> bool:
    """Whether this process may."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            with file_system(Path(folder), PAGE):
                return True
        except (OSError, subprocess.CalledProcessError):
            return False


def unclear(ended: Ended, *words: str) -> Iterator[str]:
    """What is wrong with how a command ended that met a fault.

    Args:
        ended: how.
        words: one of which its last line has, unless it got to its end.
    """
    *_, last = ["", *ended.output.strip().splitlines()]
    if "Traceback" in ended.output or ended.status not in (0, 1, 2):
        yield f"exit status {ended.status}\n{ended.output}"
    elif ended.status and not (
        last.startswith("lora_exp: ") and any(word in last for word in words)
    ):
        yield f"it says: {ended.output}"


class Storage:
    """Trials in a folder.

    Attributes:
        model: the tiny one.
        campaign: knows what commands come to that are left alone.
        whole: what a run comes to.
        stopped: outputs of one that was killed in its middle, with two checkpoints.
        pages: which all files of a run fill, each of its own.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        self.campaign = Campaign(place)
        self.model, self.whole = self.campaign.model, self.campaign.undisturbed("solo")
        paths = (place / "solo").rglob("*")
        self.pages = sum(1 + -(-path.stat().st_size // PAGE) for path in paths)
        self.stopped = place / "stopped"
        assert solo(self.model, self.stopped, 0.0, _kill_in_the_middle).status < 0

    def goes_on(self, outputs: Path) -> Iterator[str]:
        """What is wrong with how the same command ends the run now."""
        ended = solo(self.model, outputs, 0.0)
        if ended.status != 0 or "Traceback" in ended.output:
            yield f"at the end: exit status {ended.status}\n{ended.output}"
        yield from differences(outcome(outputs), self.whole.outcome, exact=True)
        yield from leftovers(outputs)

    def operation_fails(self, number: int, code: int, *, for_good: bool) -> list[str]:
        """The n-th file operation fails."""
        outputs = self.place / f"fails-{number}-{code}"

        def before() -> None:
            fail(outputs, number, code, for_good=for_good)

        ended = solo(self.model, outputs, 0.0, before)
        wrong = [*unclear(ended, os.strerror(code)), *self.goes_on(outputs)]
        shutil.rmtree(outputs)
        return wrong

    def disk_is_full(self, pages: int) -> list[str]:
        """The outputs are on a file system of so many pages; later there is room."""
        outputs = self.place / f"full-{pages}"
        with file_system(outputs, pages * PAGE):
            ended = solo(self.model, outputs, 0.0)
            wrong = [*unclear(ended, os.strerror(errno.ENOSPC))]
            remount(outputs, "size=64m")
            wrong += self.goes_on(outputs)
        return wrong

    def checkpoint_is(self, damage: Callable[[Path], object], *, both: bool = False) -> list[str]:
        """The newest checkpoint of a run, or both of them, are damaged before it goes on."""
        outputs = self.place / "damaged"
        shutil.copytree(self.stopped, outputs)
        newest, before, *_ = sorted(outputs.rglob("checkpoint/*.safetensors"), reverse=True)
        damage(newest)
        if both:
            damage(before)
        ended = solo(self.model, outputs, 0.0)
        step = 0 if both else int(before.name.split("-")[2])
        wrong = [*unclear(ended)]
        for file in (newest, before) if both else (newest,):
            if f"{file} is damaged and left out" not in ended.output and file.exists():
                wrong.append(f"nothing is said of it: {ended.output}")
        if not both and f"going on from step {step}\n" not in ended.output:
            wrong.append(f"it does not go on from step {step}: {ended.output}")
        wrong += self.goes_on(outputs)
        shutil.rmtree(outputs)
        return wrong

    def unnoticed(self, contents: Iterator[bytes]) -> tuple[int, int]:
        """Of damaged contents of the newest checkpoint, how many are not left out for the one
        before; and how many there were."""
        from lora_exp.train import checkpoint

        newest, before, *_ = checkpoint.generations(next(self.stopped.glob("runs/*/checkpoint")))
        place = self.place / "checkpoint"
        place.mkdir()
        shutil.copy(before, place)
        expected, tried, lost = checkpoint.load(place), 0, 0
        assert expected is not None
        for content in contents:
            (place / newest.name).write_bytes(content)
            loaded = checkpoint.load(place)
            tried += 1
            lost += loaded is None or loaded[1] != expected[1]
        shutil.rmtree(place)
        return lost, tried

    @property
    def newest(self) -> bytes:
        """The content of the newest checkpoint."""
        return max(self.stopped.rglob("checkpoint/*.safetensors")).read_bytes()


def _kill_in_the_middle() -> None:
    from lora_exp.train.optimiser import Optimiser

    forked.kill_on_call(Optimiser, "update", 20)


def truncated(content: bytes, places: int, dice: random.Random) -> Iterator[bytes]:
    """A safetensors file cut off after each byte of its header, and at random places behind it."""
    header = 8 + int.from_bytes(content[:8], "little")
    for length in range(header + 1):
        yield content[:length]
    for _ in range(places):
        yield content[: dice.randrange(header, len(content))]


def flipped(content: bytes, bits: int, dice: random.Random) -> Iterator[bytes]:
    """A file with one bit changed, at random."""
    for _ in range(bits):
        bit = dice.randrange(8 * len(content))
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        yield bytes(changed)


def main() -> None:
    import logging

    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--every", type=int, default=1, help="only each n-th fault")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="storage-"))
    began, storage, dice = time.monotonic(), Storage(place), random.Random(options.seed)
    rows: list[tuple[str, int, int]] = []

    def campaign(name: str, trials: Iterator[tuple[str, Callable[[], list[str]]]]) -> None:
        tried = lost = 0
        for what, trial in itertools.islice(trials, 0, None, options.every):
            wrong = trial()
            tried, lost = tried + 1, lost + bool(wrong)
            for line in wrong:
                print(f"{name}, {what}: {line}", flush=True)
        rows.append((name, tried, lost))

    operations = range(1, storage.whole.operations + 1)
    campaign(
        "an operation fails once",
        (
            (str(n), lambda n=n: storage.operation_fails(n, errno.EIO, for_good=False))
            for n in operations
        ),
    )
    campaign(
        "all fail from one on",
        (
            (str(n), lambda n=n: storage.operation_fails(n, errno.EROFS, for_good=True))
            for n in operations
        ),
    )
    if can_mount():
        sizes = range(1, storage.pages)
        campaign("the disk is full", ((str(n), lambda n=n: storage.disk_is_full(n)) for n in sizes))
    logging.disable(logging.WARNING)
    for name, contents in (
        ("a checkpoint is cut off", truncated(storage.newest, 200, dice)),
        ("a bit of a checkpoint is flipped", flipped(storage.newest, 2000, dice)),
    ):
        lost, tried = storage.unnoticed(contents)
        rows.append((name, tried, lost))
    print(f"{'':34}{'tried':>8}{'survived':>10}{'lost':>6}")
    for name, tried, lost in rows:
        print(f"{name:34}{tried:8}{tried - lost:10}{lost:6}")
    print(f"{time.monotonic() - began:.0f} s")
    shutil.rmtree(place)
    sys.exit(any(lost for *_, lost in rows))


if __name__ == "__main__":
    main()
