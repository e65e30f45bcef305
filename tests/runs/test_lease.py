"""Who may write a run: on this machine, between machines, and after a job was started again."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
from pathlib import Path

import pytest

from lora_exp.runs import lease
from lora_exp.runs.folder import RunFolder
from lora_exp.runs.lease import Fenced, Owner, RunBusy, hold, is_held


def elsewhere(folder: Path, epoch: int = 1, *, seconds_ago: float = 0.0, **owner: object) -> Path:
    """The file of a lease that a process of another machine has."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {"host": "other", "pid": 7, "job": None, "restarts": 0} | owner
    file = folder / str(epoch)
    file.write_text(str(values).replace("'", '"').replace("None", "null"))
    moment = time.time() - seconds_ago
    os.utime(file, (moment, moment))
    return file


def on_a_node(patch: pytest.MonkeyPatch, node: str, task: str, restarts: int) -> None:
    patch.setenv("SLURMD_NODENAME", node)
    patch.setenv("SLURM_JOB_ID", "900")
    patch.setenv("SLURM_ARRAY_JOB_ID", "12")
    patch.setenv("SLURM_ARRAY_TASK_ID", task)
    patch.setenv("SLURM_RESTART_COUNT", str(restarts))


def test_a_run_is_held_by_one_process_and_then_free(tmp_path: Path) -> None:
    assert not is_held(tmp_path / "run")
    with hold(tmp_path / "run"):
        assert is_held(tmp_path / "run")
        with pytest.raises(RunBusy, match=f"process {os.getpid()} on "), hold(tmp_path / "run"):
            pass
    assert not is_held(tmp_path / "run")
    with hold(tmp_path / "run"):
        pass


def test_a_dead_process_of_this_machine_is_replaced_at_once(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        with hold(tmp_path):
            os._exit(9)
    os.waitpid(child, 0)
    assert (tmp_path / "1").exists()
    assert not is_held(tmp_path)
    with hold(tmp_path):
        assert not (tmp_path / "1").exists()


def test_a_look_at_a_run_does_not_keep_a_process_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "LOOK_SECONDS", 60.0)  # however slow this machine is
    tmp_path.joinpath(lease.LOCK).touch()
    looking = threading.Event()

    def look() -> None:
        with (tmp_path / lease.LOCK).open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            looking.set()
            time.sleep(0.05)

    thread = threading.Thread(target=look)
    thread.start()
    looking.wait()
    with hold(tmp_path):
        pass
    thread.join()


def test_a_process_of_another_machine_is_respected_until_its_lease_is_stale(
    tmp_path: Path,
) -> None:
    elsewhere(tmp_path, seconds_ago=lease.STALE_SECONDS - 20)
    assert is_held(tmp_path)
    with pytest.raises(RunBusy, match="process 7 on other"), hold(tmp_path):
        pass
    elsewhere(tmp_path, seconds_ago=lease.STALE_SECONDS + 20)
    assert not is_held(tmp_path)
    with hold(tmp_path):
        pass


def test_a_lease_from_the_future_is_one_from_before_the_clock_was_set_back(tmp_path: Path) -> None:
    elsewhere(tmp_path, seconds_ago=-3600)
    assert not is_held(tmp_path)
    with hold(tmp_path):
        pass


def test_without_locks_a_lease_is_held_until_it_is_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with hold(tmp_path) as held:
        assert is_held(tmp_path)
        with pytest.raises(RunBusy), hold(tmp_path):
            pass
        os.utime(held.file, (0, 0))
        assert not is_held(tmp_path)
    assert not is_held(tmp_path)
    with hold(tmp_path):
        pass


@pytest.mark.parametrize("links", [True, False])
def test_nothing_is_left_of_processes_that_died_while_they_took_it(
    links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("2", "3", "abc.tmp"):
        (tmp_path / name).touch()
    if not links:

        def unsupported(source: Path, path: Path) -> None:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

        monkeypatch.setattr(os, "link", unsupported)
    with hold(tmp_path):
        assert is_held(tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["4", lease.LOCK]
    assert (tmp_path / "4").read_text() == ""


def test_a_lease_is_renewed_as_long_as_its_process_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.01)
    monkeypatch.setattr(lease, "_renewing", None)
    with hold(tmp_path) as held:
        os.utime(held.file, (0, 0))
        deadline = time.monotonic() + 20
        while held.file.stat().st_mtime == 0:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_who_has_been_replaced_notices_it_before_it_writes(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "runs" / "run-abc")
    folder.path.mkdir(parents=True)
    with folder.lock():
        folder.append_metrics({"step": 1})
        elsewhere(folder.leases, 2)
        (folder.leases / "1").unlink()
        for write in (
            lambda: folder.append_metrics({"step": 2}),
            lambda: folder.set_status("running"),
            lambda: folder.finish({"metrics": {}}),
        ):
            with pytest.raises(Fenced):
                write()
    assert list(folder.metrics()) == [{"step": 1}]
    assert folder.result is None
    assert "other" in (folder.leases / "2").read_text(), "the new owner keeps it"


def test_two_that_find_a_stale_lease_do_not_both_get_it(tmp_path: Path) -> None:
    elsewhere(tmp_path, seconds_ago=1000)
    elsewhere(tmp_path, epoch=2)  # the other one has just created the next epoch
    with pytest.raises(RunBusy), hold(tmp_path):
        pass


def test_a_job_that_slurm_has_started_again_takes_over_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere(tmp_path, host="n1", job="12_4")
    on_a_node(monkeypatch, "n2", "5", 1)
    with pytest.raises(RunBusy, match="process 7 on n1, job 12_4"), hold(tmp_path):
        pass
    on_a_node(monkeypatch, "n2", "4", 0)
    with pytest.raises(RunBusy), hold(tmp_path):
        pass
    on_a_node(monkeypatch, "n2", "4", 1)
    assert Owner.here().job == "12_4"
    with hold(tmp_path) as held:
        assert held.file.name == "2"
        assert not (tmp_path / "1").exists()


def test_a_former_incarnation_that_still_lives_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds the lock until it notices; here it does when its lease is checked."""
    child = os.fork()
    if child == 0:
        on_a_node(monkeypatch, "n1", "4", 0)
        with hold(tmp_path) as held:
            while True:
                try:
                    held.check()
                except Fenced:
                    break
                time.sleep(0.01)
        os._exit(0)
    deadline = time.monotonic() + 20
    while not is_held(tmp_path):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    on_a_node(monkeypatch, "n2", "4", 1)
    with hold(tmp_path) as held:
        held.check()
        assert os.waitpid(child, 0)[1] == 0
