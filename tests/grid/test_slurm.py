"""Settings of a cluster, and what sbatch is asked for; a stand-in answers for SLURM."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from lora_exp.errors import UserError
from lora_exp.grid import close, slurm, task
from lora_exp.grid.close import Close
from lora_exp.grid.queue import Queue, Ticket
from lora_exp.grid.slurm import SlurmSettings
from lora_exp.grid.submission import Shape, Submission, progress, shapes
from lora_exp.grid.task import Task
from lora_exp.runs.config import Config
from lora_exp.runs.folder import RunFolder
from lora_exp.runs.grid import Grid
from lora_exp.runs.values import from_mapping
from lora_exp.train import checkpoint

SBATCH = """#!/bin/sh
cat "$1" >> "$SAID/scripts"
env | grep -E '^(SLURM|SRUN|SUBMITIT|CUDA)' >> "$SAID/environment"
[ -e "$SAID/refusal" ] && { cat "$SAID/refusal" >&2; exit 1; }
number=$(($(cat "$SAID/number" 2>/dev/null || echo 100) + 1))
echo $number > "$SAID/number"
echo Submitted batch job $number
"""
SCONTROL = """#!/bin/sh
echo "$@" >> "$SAID/asked"
[ "$1 $2" = "show config" ] && echo "MaxArraySize            = 4"
[ "$1 $2" = "show job" ] && cat "$SAID/job"
exit 0
"""
SQUEUE = """#!/bin/sh
cat "$SAID/queue"
"""


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a stand-in for SLURM was told, and what it answers."""
    commands, said = tmp_path / "bin", tmp_path / "said"
    commands.mkdir()
    said.mkdir()
    for name, text in (("sbatch", SBATCH), ("scontrol", SCONTROL), ("squeue", SQUEUE)):
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:/usr/bin:/bin")
    monkeypatch.setenv("SAID", str(said))
    return said


def config(outputs: Path, seed: int, **train: int) -> Config:
    values = {
        "model": {"name_or_path": "tiny"},
        "task": {"name": "agreement", "kind": "agreement"},
        "train": {"lr": 1e-3, **train},
        "pack": {"size": 1},
        "seed": seed,
        "outputs": str(outputs),
    }
    return from_mapping(values)


def grid(outputs: Path, number: int, **train: int) -> tuple[Grid, list[RunFolder]]:
    """A grid of runs that are queued."""
    runs = []
    for seed in range(number):
        run = RunFolder(outputs / "runs" / f"run-{seed:012x}")
        run.create(config(outputs, seed, **train), {"overrides": []})
        run.set_status("queued", attempt=0)
        runs.append(run)
    return Grid.create(outputs, "mine", runs, {"name": "slurm"}, snapshot="code"), runs


def submitted(outputs: Path, number: int, **settings: Any) -> tuple[Submission, list[RunFolder]]:
    made, runs = grid(outputs, number)
    slurm.submit(made, runs, SlurmSettings(**settings))
    return Submission(made.path / "jobs" / "1"), runs


def test_settings_are_checked_and_misspelt_ones_answered_with_the_nearest():
    settings = SlurmSettings.of({"partition": "gpu", "time": 30, "additional": {"nice": 5}})
    assert (settings.partition, settings.time, settings.additional) == ("gpu", "30", {"nice": 5})
    with pytest.raises(UserError, match=r"hydra\.launcher\.memroy: .* Did you mean memory\?"):
        SlurmSettings.of({"memroy": 4})
    with pytest.raises(UserError, match=r"hydra\.launcher\.gpus: .*'many'"):
        SlurmSettings.of({"gpus": "many"})
    with pytest.raises(UserError, match=r"hydra\.launcher\.cpus=0: must be at least 1\."):
        SlurmSettings.of({"cpus": 0})


def test_mistakes_on_the_command_line():
    def refused(*overrides: str) -> str:
        command = [sys.executable, "-m", "lora_exp", *overrides]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 2
        return done.stderr

    assert "Did you mean partition or closing_partition?" in refused(
        "-m", "hydra/launcher=slurm", "hydra.launcher.partitoin=x"
    )
    assert "only hydra/launcher=slurm has it" in refused("-m", "hydra.launcher.partition=x")
    assert "give -m as well" in refused("hydra/launcher=slurm")


def test_runs_are_sorted_by_the_processes_they_want(tmp_path: Path):
    configs = [config(tmp_path, 1), config(tmp_path, 2, nodes=2), config(tmp_path, 3)]
    paths = [tmp_path / name for name in "abc"]
    alone, together = shapes(dict(zip(paths, configs, strict=True)))
    assert [ticket.path.name for ticket in alone.tickets] == ["a", "c"]
    assert (alone.together, alone.packs) == (False, 2)
    assert [ticket.path.name for ticket in together.tickets] == ["b"]
    assert (together.together, together.nodes) == (True, 2)


def test_packs_are_counted_by_what_can_train_together(tmp_path: Path):
    def tickets(number: int, key: str | None, most: int | None) -> list[Ticket]:
        return [Ticket(tmp_path / f"{key}-{n}", key, most) for n in range(number)]

    runs = [*tickets(7, "a", 3), *tickets(9, "b", None), *tickets(2, None, 1)]
    assert Shape(1, 1, runs).packs == 3 + 2 + 2


def test_the_script_asks_for_what_the_settings_say(tmp_path: Path):
    settings = SlurmSettings(
        partition="gpu",
        gpus=2,
        cpus=3,
        memory=1.5,
        time="01:30:00",
        warning=60,
        setup=["module load cuda"],
        packs_per_job=2,
        array_parallelism=3,
        additional={"nice": 5},
    )
    script = slurm.script(Shape(1, 1, [Ticket(tmp_path / str(n)) for n in range(9)]), settings)
    for line in (
        "#SBATCH --partition=gpu",
        "#SBATCH --gpus-per-node=2",
        "#SBATCH --cpus-per-task=3",
        "#SBATCH --mem=1536M",
        "#SBATCH --time=01:30:00",
        "#SBATCH --signal=USR2@60",
        "#SBATCH --array=0-2%3",
        "#SBATCH --nice=5",
        "#SBATCH --requeue",
        "module load cuda",
    ):
        assert line in script.splitlines(), line
    assert "--cpus-per-task=3" in script.splitlines()[-1]
    assert "account" not in script


def test_several_processes_of_a_run_get_a_task_each(tmp_path: Path):
    script = slurm.script(Shape(2, 4, [Ticket(tmp_path / "a")]), SlurmSettings())
    for line in ("--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4"):
        assert f"#SBATCH {line}" in script.splitlines()
    assert "--array" not in script


def test_arrays_are_no_larger_than_the_cluster_allows(said: Path, tmp_path: Path):
    made, runs = grid(tmp_path / "outputs", 9)
    jobs = slurm.submit(made, runs, SlurmSettings())
    assert jobs == ["101", "102", "103", "104"]
    assert [(job["tasks"], job["closing"]) for job in made.jobs] == [
        (4, False),
        (4, False),
        (1, False),
        (1, True),
    ]
    scripts = (said / "scripts").read_text()
    assert scripts.count("#SBATCH --array=0-3%4") == 2
    assert "#SBATCH --dependency=afterany:101:102:103" in scripts
    assert len([*made.path.glob("jobs/1/10*_submitted.pkl")]) == 10


def test_a_refusal_is_told_and_the_runs_stay_queued(said: Path, tmp_path: Path):
    (said / "refusal").write_text("sbatch: error: invalid account\nsbatch: error: not today\n")
    made, runs = grid(tmp_path / "outputs", 2)
    with pytest.raises(UserError, match=r"refuses the jobs: invalid account not today"):
        slurm.submit(made, runs, SlurmSettings())
    assert [run.status["state"] for run in runs] == ["queued"] * 2
    assert made.jobs == []


def test_a_job_that_submits_does_not_hand_on_its_own(
    said: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SRUN_DEBUG", "SLURM_CONF"):
        monkeypatch.setenv(name, "7")
    submitted(tmp_path / "outputs", 1)
    assert {*(said / "environment").read_text().split()} == {"SLURM_CONF=7"}
    assert os.environ["SLURM_JOB_ID"] == "7"


@pytest.fixture
def in_a_job(said: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, value in {
        "SLURM_JOB_ID": "8",
        "SLURM_ARRAY_JOB_ID": "7",
        "SLURM_ARRAY_TASK_ID": "0",
        "SLURM_PROCID": "0",
    }.items():
        monkeypatch.setenv(name, value)
    return said


@pytest.mark.parametrize(
    ("told", "fate"),
    [
        ("JobState=RUNNING Reason=None Restarts=0", "running"),
        ("JobState=COMPLETING Reason=None Restarts=0", "cancelled"),
        ("JobState=CANCELLED Reason=None Restarts=0", "cancelled"),
        ("JobState=COMPLETING Reason=None Restarts=1", "ended"),
        ("JobState=COMPLETING Reason=TimeLimit Restarts=0", "ended"),
        ("JobState=PREEMPTED Reason=None Restarts=0", "ended"),
        ("", "ended"),
    ],
)
def test_what_a_signal_means_is_asked(in_a_job: Path, told: str, fate: str):
    (in_a_job / "job").write_text(f"JobId=8 {told} ExitCode=0:15")
    assert task._fate() == fate
    assert (in_a_job / "asked").read_text() == "show job -o 7_0\n"  # 7 would be all elements


def save(run: RunFolder, step: int) -> None:
    """Write a checkpoint, as training does."""
    run.set_status("preempted", step=step)
    checkpoint.save(run.checkpoint, step, {}, {})


class Stopped:
    """A coordinator that is asked to leave at once, after a run has come `steps` further."""

    steps = 0

    def __init__(self, queue: Queue, found: object) -> None:
        self.queue, self.stopped = queue, signal.SIGUSR2

    def run(self) -> None:
        save(RunFolder(self.queue.tickets[0].path), 5 + self.steps)


@pytest.mark.parametrize(
    ("restarts", "steps", "again"), [(0, 0, True), (3, 1, True), (3, 0, False)]
)
def test_a_job_that_comes_no_further_is_not_requeued_for_ever(
    in_a_job: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    restarts: int,
    steps: int,
    again: bool,
):
    monkeypatch.setattr(task, "Coordinator", Stopped)
    monkeypatch.setattr(Stopped, "steps", steps)
    submission, [run] = submitted(tmp_path / "outputs", 1)
    save(run, 5)
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarts))
    (in_a_job / "job").write_text(f"JobId=8 JobState=RUNNING Reason=None Restarts={restarts}")
    with pytest.raises(SystemExit) as left:
        Task(submission.path, 0, 1)()
    assert left.value.code == 128 + signal.SIGUSR2
    assert ("requeue 7_0" in (in_a_job / "asked").read_text().splitlines()) is again


def test_the_runs_of_a_cancelled_job_are_cancelled(
    in_a_job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(task, "Coordinator", Stopped)
    submission, runs = submitted(tmp_path / "outputs", 2)
    (in_a_job / "job").write_text("JobId=8 JobState=COMPLETING Reason=None Restarts=0")

    def leave(self: Stopped) -> None:
        self.queue.tickets[0].state = "preempted"

    monkeypatch.setattr(Stopped, "run", leave)
    with pytest.raises(SystemExit):
        Task(submission.path, 0, 1)()
    assert [run.status["state"] for run in runs] == ["cancelled", "queued"]  # not its own


def test_a_job_with_nothing_left_ends_at_once(in_a_job: Path, tmp_path: Path):
    submission, runs = submitted(tmp_path / "outputs", 2)
    for run in runs:
        run.set_status("cancelled")
    Task(submission.path, 0, 2)()


class TestClosing:
    """What the last job of a submission does, by the states of the others and of the runs."""

    def close(self, said: Path, submission: Submission, queue: str) -> list[str]:
        """The jobs that it submits."""
        known = len(submission.grid.jobs)
        (said / "queue").write_text(queue)
        Close(submission.path)()
        return [job["job"] for job in submission.grid.jobs[known:]]

    def test_nothing_is_left(self, said: Path, tmp_path: Path):
        submission, runs = submitted(tmp_path / "outputs", 2)
        for run in runs:
            run.set_status("failed")
        assert self.close(said, submission, "101_[0-1] COMPLETED None") == []

    def test_what_is_left_is_submitted_again_with_its_code(self, said: Path, tmp_path: Path):
        submission, runs = submitted(tmp_path / "outputs", 3)
        save(runs[0], 5)
        runs[1].set_status("failed")
        assert len(self.close(said, submission, "101_[0-2] NODE_FAIL None")) == 2
        again = Submission(submission.path.parent / "2")
        assert [run.name for run in again.runs] == [runs[0].name, runs[2].name]
        assert (again.record["code"], again.record["stalled"]) == (submission.record["code"], 0)

    def test_what_was_cancelled_stays_so(self, said: Path, tmp_path: Path):
        submission, runs = submitted(tmp_path / "outputs", 3)
        runs[0].set_status("running", step=5, job="101_0")
        assert self.close(said, submission, "101_[0-2] CANCELLED None") == []
        assert [run.status["state"] for run in runs] == ["cancelled"] * 3

    def test_one_element_cancelled_takes_only_its_own_run_along(self, said: Path, tmp_path: Path):
        submission, runs = submitted(tmp_path / "outputs", 2)
        runs[0].set_status("running", step=5, job="101_0")
        queue = "101_0 CANCELLED None\n101_1 FAILED NonZeroExitCode"
        assert len(self.close(said, submission, queue)) == 2
        assert [run.status["state"] for run in runs] == ["cancelled", "queued"]

    def test_jobs_that_get_nowhere_are_given_up(self, said: Path, tmp_path: Path):
        submission, [run] = submitted(tmp_path / "outputs", 1)
        for number in (2, 3):
            assert len(self.close(said, submission, "101 NODE_FAIL None")) == 2
            submission = Submission(submission.path.parent / str(number))
        with pytest.raises(SystemExit):
            self.close(said, submission, "105 NODE_FAIL None")
        assert run.status["state"] == "failed"
        assert "ended 3 times without progress, at last NODE_FAIL" in run.status["reason"]

    def test_what_is_lost_with_a_killed_process_is_no_progress(self, said: Path, tmp_path: Path):
        submission, [run] = submitted(tmp_path / "outputs", 1)
        for number in (2, 3):
            run.set_status("running", step=100 * number, job="101")
            assert len(self.close(said, submission, "101 FAILED None")) == 2
            submission = Submission(submission.path.parent / str(number))
        with pytest.raises(SystemExit):
            self.close(said, submission, "105 FAILED None")

    def test_texts_are_progress(self, tmp_path: Path):
        _, [run] = grid(tmp_path / "outputs", 1)
        save(run, 5)
        before = progress([run])
        run.texts_file.parent.mkdir()
        run.texts_file.write_text("{}")
        assert progress([run]) > before

    def test_what_was_to_be_cancelled_when_its_process_died_is(self, said: Path, tmp_path: Path):
        submission, runs = submitted(tmp_path / "outputs", 2)
        runs[0].set_status("running", step=5, job="101_0")
        runs[0].request_cancel()
        assert len(self.close(said, submission, "101_[0-1] FAILED None")) == 2
        assert [run.status["state"] for run in runs] == ["cancelled", "queued"]

    def test_slurm_may_be_away_for_minutes(
        self, said: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        submission, [run] = submitted(tmp_path / "outputs", 1)
        waited: list[float] = []

        def wait(seconds: float) -> None:
            waited.append(seconds)
            if len(waited) == 2:
                (said / "queue").write_text("101 NODE_FAIL None")
                (said / "refusal").write_text("sbatch: error: Unable to contact slurm controller")
            if len(waited) == 4:
                (said / "refusal").unlink()

        monkeypatch.setattr(close, "sleep", wait)
        Close(submission.path)()
        assert waited == [5, 10, 5, 10]
        assert [job["job"] for job in submission.grid.jobs] == ["101", "102", "103", "104"]
        assert run.status["state"] == "queued"

    def test_a_slurm_that_stays_away_leaves_the_runs_as_they_are(
        self,
        said: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ):
        submission, [run] = submitted(tmp_path / "outputs", 1)
        monkeypatch.setattr(close, "sleep", lambda seconds: None)
        with pytest.raises(SystemExit):
            Close(submission.path)()
        assert run.status["state"] == "queued"
        assert "python -m lora_exp retry grid=mine state=lost" in caplog.text

    def test_that_nobody_knows_of_a_cancellation_is_told(
        self, said: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ):
        submission, _ = submitted(tmp_path / "outputs", 1)
        assert len(self.close(said, submission, "")) == 2
        assert "python -m lora_exp cancel grid=mine" in caplog.text


def test_settings_survive_the_submission(said: Path, tmp_path: Path):
    submission, _ = submitted(tmp_path / "outputs", 1, gpus=0, cpus=2)
    assert SlurmSettings.of(submission.record["settings"]) == SlurmSettings(gpus=0, cpus=2)
    assert asdict(SlurmSettings()) == asdict(SlurmSettings.of({}))
