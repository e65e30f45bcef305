"""Disks that are full, slow, read-only, shared, moved, or that lose what was written.

`storage.py` has each fault at each place; here are a few of them, and what is tried once.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import logging
import os
import random
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import forked
import pytest
from forked import Ended
from integration.crashes import differences, leftovers, outcome, pack, solo
from integration.storage import (
    PAGE,
    Storage,
    can_mount,
    file_system,
    flipped,
    remount,
    truncated,
)
from packs import Listed

from lora_exp.runs import files
from lora_exp.runs.folder import RunFolder
from lora_exp.runs.lease import STALE_SECONDS
from lora_exp.runs.store import all_runs
from lora_exp.train.work import work

GOING_ON = {"queued", "running", "preempted"}
needs_mount = pytest.mark.skipif(not can_mount(), reason="needs the right to mount")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be other users")


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    return Storage(tmp_path_factory.mktemp("storage"))


@pytest.fixture
def stopped(storage: Storage, tmp_path: Path) -> Path:
    """Outputs of a run that was killed in its middle."""
    return shutil.copytree(storage.stopped, tmp_path / "outputs")


def message(ended: Ended) -> str:
    """The only one, of a command that the user can mend."""
    assert ended.status == 2, ended.output
    told = [line for line in ended.output.splitlines() if not line.endswith("goes on without.")]
    assert len(told) == 1, ended.output
    return told[0]


# -- faults ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("for_good", [False, True])
@pytest.mark.parametrize("place", [0.12, 0.3, 0.6, 0.98])
def test_a_disk_that_fails(place: float, for_good: bool, storage: Storage) -> None:
    number = int(place * storage.whole.operations)
    code = errno.EROFS if for_good else errno.EIO
    assert storage.operation_fails(number, code, for_good=for_good) == []


def on_heartbeats(happens: Callable[[int, Path], None]) -> Callable[[], None]:
    """What lets a run have one at each step, before which something happens: it is told the
    number, from 0 (of the start), and the file."""

    def before() -> None:
        from lora_exp.train import run

        run.HEARTBEAT_SECONDS = 0.0
        write, numbers = files.write, itertools.count()

        def disturbed(path: Path, content: bytes | str, *, durable: bool = True) -> None:
            if path.name == "status.json":
                happens(next(numbers), path)
            write(path, content, durable=durable)

        files.write = disturbed

    return before


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_a_heartbeat_that_cannot_be_written(code: int, storage: Storage, tmp_path: Path) -> None:
    """It is not worth a run, but on a disk that is full, which waits for room."""

    def fails(number: int, path: Path) -> None:
        if number in (5, 6, 7, 10):
            raise OSError(code, os.strerror(code), str(path))

    ended = solo(storage.model, tmp_path / "outputs", 0.0, on_heartbeats(fails))
    told = ended.output.count("The status cannot be written for now")
    assert (ended.status, told) == ((0, 2) if code == errno.EIO else (1, 0)), ended.output
    assert "Traceback" not in ended.output
    assert [*storage.goes_on(tmp_path / "outputs")] == []


def test_a_heartbeat_of_a_run_that_was_taken_over(storage: Storage, tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"

    def taken(number: int, path: Path) -> None:
        if number == 5:
            (lease,) = (one for one in outputs.glob("leases/*/*") if one.name.isdecimal())
            lease.rename(lease.with_name(str(int(lease.name) + 1)))

    ended = solo(storage.model, outputs, 0.0, on_heartbeats(taken))
    assert ended.status == 1, ended.output
    assert "another process has taken it over" in ended.output
    (run,) = all_runs(outputs)
    assert run.status["step"] < 10


@needs_mount
@pytest.mark.parametrize("place", [0.0, 0.5, 0.8, 0.95])
def test_a_disk_that_is_full(place: float, storage: Storage) -> None:
    assert storage.disk_is_full(1 + int(place * storage.pages)) == []


@needs_mount
def test_a_pack_on_a_disk_that_is_full(storage: Storage, tmp_path: Path) -> None:
    """What there is no room for waits until there is some."""
    outputs, whole = tmp_path / "outputs", storage.campaign.undisturbed("pack")
    with file_system(outputs, 90 * PAGE):
        ended = pack(storage.model, outputs, 0.0)
        assert ended.status == 0, ended.output
        assert "Traceback" not in ended.output
        states = {run.status["state"] for run in all_runs(outputs)}
        assert states <= GOING_ON | {"done"}
        assert states & GOING_ON
        remount(outputs, "size=64m")
        assert pack(storage.model, outputs, 0.0).status == 0
        assert [*differences(outcome(outputs), whole.outcome, exact=True)] == []
        assert [*leftovers(outputs)] == []


def test_a_disk_that_is_slow(storage: Storage, tmp_path: Path) -> None:
    def slow() -> None:
        synchronise = os.fsync

        def fsync(descriptor: int) -> None:
            time.sleep(0.05)
            synchronise(descriptor)

        os.fsync = fsync

    assert solo(storage.model, tmp_path / "outputs", 0.0, slow).status == 0
    assert [*storage.goes_on(tmp_path / "outputs")] == []


@needs_mount
def test_a_disk_that_can_only_be_read(storage: Storage, tmp_path: Path) -> None:
    with file_system(tmp_path, 8_000 * PAGE):
        shutil.copytree(storage.stopped, tmp_path / "stopped")
        assert solo(storage.model, tmp_path / "done", 0.0).status == 0
        remount(tmp_path, "ro")
        for name in ("stopped", "new"):
            told = message(solo(storage.model, tmp_path / name, 0.0))
            assert str(tmp_path) in told
        assert solo(storage.model, tmp_path / "done", 0.0).status == 0, "the result is there"
        for name, state in (("stopped", "lost"), ("done", "done")):
            ended = forked.run("status", "--outputs", str(tmp_path / name))
            assert f"1 run: 1 {state}" in ended.output
        assert forked.run("report", "--outputs", str(tmp_path / "done")).status == 0
        remount(tmp_path, "rw")
        assert [*storage.goes_on(tmp_path / "stopped")] == []


# -- checkpoints -----------------------------------------------------------------------------------


def test_no_damage_to_a_checkpoint_goes_unnoticed(
    storage: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, "lora_exp")
    dice = random.Random(0)
    some = itertools.islice(truncated(storage.newest, 50, dice), 0, None, 9)
    assert storage.unnoticed(some)[0] == 0
    assert storage.unnoticed(flipped(storage.newest, 200, dice))[0] == 0


def cut_off(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def flip_a_bit(file: Path) -> None:
    file.write_bytes(next(flipped(file.read_bytes(), 1, random.Random(1))))


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("damage", [cut_off, flip_a_bit, Path.unlink])
def test_a_run_goes_on_from_the_checkpoint_that_is_whole(
    damage: Callable[[Path], object], both: bool, storage: Storage
) -> None:
    assert storage.checkpoint_is(damage, both=both) == []


# -- configs ---------------------------------------------------------------------------------------


def test_a_config_that_was_changed_is_not_trained(storage: Storage, stopped: Path) -> None:
    """By a worker, `retry` or the same command, until it is as it was; then nothing is lost."""
    (run,) = (stopped / "runs").iterdir()
    file, metrics = run / "config.yaml", run / "metrics.jsonl"
    content, lines = file.read_text(), metrics.read_text()
    file.write_text(content.replace("seed: 1", "seed: 3"))
    ended = forked.call(lambda: work(Listed([run]), "cpu"))
    assert ended.status == 0, ended.output
    status = RunFolder(run).status
    assert status["state"] == "failed"
    assert f"{file}: it was changed" in status["reason"]
    retried = forked.run("retry", "state=failed", "--outputs", str(stopped))
    assert f"{file}: it was changed" in retried.output
    assert "There is nothing to retry" in retried.output
    assert f"{file}: it was changed" in message(solo(storage.model, stopped, 0.0))
    assert metrics.read_text() == lines
    file.write_text(content.replace("checkpoint_seconds: ", "checkpoint_seconds: 1"))
    assert RunFolder(run).config_to_train, "what does not decide the result is the user's"
    file.unlink()  # as the message says
    assert [*storage.goes_on(stopped)] == []
    assert RunFolder(run).config_to_train.seed == 1


# -- other places and times ------------------------------------------------------------------------


def on_another_machine() -> None:
    socket.gethostname = lambda: "another"


def test_a_folder_that_was_copied_to_another_machine(
    storage: Storage, tmp_path: Path, stopped: Path
) -> None:
    """With its leases, whose holder nobody can ask there."""
    moved = tmp_path / "elsewhere" / "outputs"
    shutil.copytree(stopped, moved)
    shutil.rmtree(stopped)
    age(moved, 0)
    ended = solo(storage.model, moved, 0.0, on_another_machine)
    assert "is being trained by process" in message(ended)
    age(moved, STALE_SECONDS + 10)
    ended = solo(storage.model, moved, 0.0, on_another_machine)
    assert ended.status == 0, ended.output
    assert [*differences(outcome(moved), storage.whole.outcome, exact=True)] == []
    assert [*leftovers(moved)] == []
    assert not stopped.exists()


def test_a_worker_trains_what_was_moved_where_it_is(
    storage: Storage, tmp_path: Path, stopped: Path
) -> None:
    moved = stopped.rename(tmp_path / "moved")
    (run,) = (moved / "runs").iterdir()
    shutil.rmtree(moved / "cache")
    ended = forked.call(lambda: work(Listed([run]), "cpu"))
    assert ended.status == 0, ended.output
    assert [*differences(outcome(moved), storage.whole.outcome, exact=True)] == []
    assert not stopped.exists(), "nothing is written where it was"


def test_what_was_moved_is_opened_and_reported(storage: Storage, tmp_path: Path) -> None:
    import peft
    from transformers import AutoModelForSequenceClassification

    moved = shutil.copytree(storage.place / "solo", tmp_path / "moved")
    (run,) = (moved / "runs").iterdir()
    base = AutoModelForSequenceClassification.from_pretrained(storage.model)
    assert peft.PeftModel.from_pretrained(base, str(run / "adapter"))
    ended = forked.run("report", "--json", "-", "--outputs", str(moved))
    assert ended.status == 0, ended.output
    assert forked.run("show", run.name, "--outputs", str(moved)).status == 0


def test_a_clock_that_is_set_back(storage: Storage, stopped: Path) -> None:
    age(stopped, -3600)

    def before() -> None:
        now = time.time
        time.time = lambda: now() - 3600

    ended = forked.run("status", "--outputs", str(stopped), before=before)
    assert "1 run: 1 lost" in ended.output
    ended = solo(storage.model, stopped, 0.0, before)
    assert ended.status == 0, ended.output
    assert [*storage.goes_on(stopped)] == []


def age(outputs: Path, seconds: float) -> None:
    """Let all files of a folder be so old."""
    moment = time.time() - seconds
    for path in outputs.rglob("*"):
        os.utime(path, (moment, moment))


# -- others ----------------------------------------------------------------------------------------


def without_locks() -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    fcntl.flock = flock


def test_a_file_system_without_locks(storage: Storage, stopped: Path) -> None:
    age(stopped, 0)
    ended = forked.run("status", "--outputs", str(stopped), before=without_locks)
    assert "1 run: 1 running" in ended.output, "nobody can know yet"
    assert "is being trained by process" in message(
        solo(storage.model, stopped, 0.0, without_locks)
    )
    age(stopped, STALE_SECONDS + 10)
    ended = forked.run("status", "--outputs", str(stopped), before=without_locks)
    assert "1 run: 1 lost" in ended.output
    ended = solo(storage.model, stopped, 0.0, without_locks)
    assert ended.status == 0, ended.output
    assert [*storage.goes_on(stopped)] == []


@pytest.fixture
def shared(storage: Storage) -> Iterator[Path]:
    """A folder that everybody may read, with a model."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)  # noqa: PTH101
        shutil.copytree(storage.model, Path(folder) / "tiny")
        for path in (Path(folder) / "tiny").iterdir():
            path.chmod(0o644)
        yield Path(folder)


def user(number: int, umask: int, group: int | None = None) -> Callable[[], None]:
    """What makes a process that of a user."""

    def become() -> None:
        os.setgroups([] if group is None else [group])
        os.setgid(number)
        os.setuid(number)
        os.umask(umask)

    return become


def loaded_before(command: list[str], become: Callable[[], None]) -> Callable[[], None]:
    """A user may not be allowed to read what a verb imports where Python is that of root."""

    def before() -> None:
        from lora_exp.verbs import app

        with contextlib.redirect_stdout(None):
            app(command, standalone_mode=False)
        become()

    return before


def killed_in_the_middle(become: Callable[[], None]) -> Callable[[], None]:
    def before() -> None:
        from lora_exp.train.optimiser import Optimiser

        become()
        forked.kill_on_call(Optimiser, "update", 20)

    return before


@needs_root
def test_another_user_takes_a_run_up_where_the_group_may_write(shared: Path) -> None:
    outputs, undisturbed, model = shared / "outputs", shared / "undisturbed", shared / "tiny"
    for folder in (outputs, undisturbed):
        folder.mkdir()
        os.chown(folder, 1000, 2000)
        folder.chmod(0o2775)
    one, other = user(1000, 0o002, 2000), user(1001, 0o002, 2000)
    assert solo(model, outputs, 0.0, killed_in_the_middle(one)).status < 0
    ended = solo(model, outputs, 0.0, other)
    assert ended.status == 0, ended.output
    assert solo(model, undisturbed, 0.0, one).status == 0
    assert [*differences(outcome(outputs), outcome(undisturbed), exact=True)] == []
    assert [*leftovers(outputs)] == []
    assert "is done" in solo(model, outputs, 0.0, one).output


@needs_root
def test_another_user_is_told_what_cannot_be_written_and_may_look(shared: Path) -> None:
    outputs, model = shared / "outputs", shared / "tiny"
    outputs.mkdir()
    os.chown(outputs, 1000, 1000)
    one, other = user(1000, 0o022), user(1001, 0o022)
    assert solo(model, outputs, 0.0, killed_in_the_middle(one)).status < 0
    before = written(outputs / "runs")
    assert str(outputs) in message(solo(model, outputs, 0.0, other))
    outputs.chmod(0o777)  # what is in it still belongs to the first
    assert str(outputs / "leases") in message(solo(model, outputs, 0.0, other))
    name = next(outputs.glob("runs/*")).name
    for words, said in (("status", "1 run: 1 lost"), (f"logs {name}", "step 16/24")):
        command = [*words.split(), "--outputs", str(outputs)]
        looked = forked.run(*command, before=loaded_before(command, other))
        assert looked.status == 0, looked.output
        assert said in looked.output
    assert written(outputs / "runs") == before
    assert solo(model, outputs, 0.0, one).status == 0


def written(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
