"""Real grids, from the command line: workers that load a model and train it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_exp.runs.folder import RunFolder
from lora_exp.runs.store import all_runs

POINTS = ("lora.r=1,2", "seed=1,2")
NAMES = [f"lora.r={r} seed={seed}" for r in (1, 2) for seed in (1, 2)]


def command(tiny: Path, outputs: Path, *more: str) -> list[str]:
    """Four short runs that write a line and a checkpoint after each update."""
    values = ["train.max_steps=40", "train.batch_size=8", "train.eval_every=20", "device=cpu"]
    values += ["train.log_every=1", "train.checkpoint_seconds=0", *POINTS, *more]
    given = [f"model.name_or_path={tiny}", f"outputs={outputs}", *values]
    return [sys.executable, "-m", "lora_exp", "-m", *given]


def start(*command: str) -> subprocess.Popen[str]:
    """In a process group of its own, as a shell does."""
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True)


def wait_until(holds: Callable[[], Any]) -> Any:
    """The first answer that is true."""
    deadline = time.monotonic() + 120
    while not (answer := holds()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return answer


def in_the_middle(outputs: Path) -> RunFolder | None:
    """A run that has made a few updates, and is not done."""
    for folder in all_runs(outputs):
        lines = sum(line["split"] == "train" for line in folder.metrics())
        if lines >= 3 and folder.status["state"] == "running":
            return folder
    return None


def is_alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (OSError, IndexError):
        return False
    return state != "Z"


def check_equal(outputs: Path, others: Path) -> None:
    """The runs have the results, and stood at the same losses on the way."""
    for folder in all_runs(others):
        twin = RunFolder(outputs / "runs" / folder.name)
        assert twin.status["state"] == "done"
        assert not twin.checkpoint.exists()
        expected = [line for line in folder.metrics() if line["split"] != "train"]
        found = [line for line in twin.metrics() if line["split"] != "train"]
        assert [line["step"] for line in found] == [20, 40]
        for one, other in zip(found, expected, strict=True):
            assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)
        steps = [line["step"] for line in twin.metrics() if line["split"] == "train"]
        assert steps == list(range(1, 41)), "each step stands once"


@pytest.fixture(scope="module")
def undisturbed(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A grid that was left alone: its outputs, stdout and stderr."""
    outputs = tmp_path_factory.mktemp("undisturbed")
    # Twice the same seed is one run.
    ended = run(*command(tiny, outputs), "seed=1,2,1")
    assert ended.returncode == 0, ended.stderr
    return outputs, ended.stdout, ended.stderr


def test_every_run_is_trained_once(undisturbed: tuple[Path, str, str]) -> None:
    outputs, _, _ = undisturbed
    folders = all_runs(outputs)
    assert len(folders) == 4
    for folder in folders:
        assert folder.status["state"] == "done"
        assert folder.status["attempt"] == 1
        assert (folder.adapter / "adapter_model.safetensors").exists()
        assert not folder.checkpoint.exists()
        origin = folder.provenance
        assert "-m lora_exp -m" in origin["command"]
        assert f"seed={folder.config.seed}" in origin["overrides"]


def test_a_table_shows_the_runs_in_the_order_of_the_grid(
    undisturbed: tuple[Path, str, str],
) -> None:
    _, table, _ = undisturbed
    rows = [re.split(r" {2,}", line.strip()) for line in table.splitlines()]
    assert rows[0] == ["run", "state", "metrics"]
    assert [row[:2] for row in rows[1:5]] == [[name, "done"] for name in NAMES]
    assert all(row[2].startswith("matthews_correlation ") for row in rows[1:5])
    assert rows[5] == ["4 runs: 4 done"]


def test_lines_of_workers_say_whose_they_are(undisturbed: tuple[Path, str, str]) -> None:
    _, _, lines = undisturbed
    first, *others = lines.splitlines()
    assert re.match(r"Grid [\d-]+: 4 of 4 runs to train; workers: \d+ \(", first)
    assert len({line.split()[0] for line in others if "(best so far)" in line}) == 4
    assert "Traceback" not in lines


def test_the_same_command_shows_what_is_done(
    tiny: Path, undisturbed: tuple[Path, str, str]
) -> None:
    outputs, _, _ = undisturbed
    before = {path: path.stat().st_mtime_ns for path in outputs.rglob("*") if path.is_file()}
    ended = run(*command(tiny, outputs))
    assert ended.returncode == 0, ended.stderr
    assert "4 runs: 4 done before" in ended.stdout
    assert ended.stderr == "", "no worker is started, which would say so"
    after = {path: path.stat().st_mtime_ns for path in outputs.rglob("*") if path.is_file()}
    assert {path: after[path] for path in before} == before
    new = {path.relative_to(outputs).parts[0] for path in after if path not in before}
    assert new <= {"sweeps"}


def test_a_killed_worker_costs_nothing_but_time(
    tiny: Path, tmp_path: Path, undisturbed: tuple[Path, str, str]
) -> None:
    grid = start(*command(tiny, tmp_path))
    victim = wait_until(lambda: in_the_middle(tmp_path))
    os.kill(victim.status["pid"], signal.SIGKILL)
    _, errors = grid.communicate(timeout=200)
    assert grid.returncode == 0, errors
    assert f"{victim.name}: its worker died (SIGKILL, out of memory?). It is given again" in errors
    assert victim.status["attempt"] == 2
    check_equal(tmp_path, undisturbed[0])


def test_stopped_grids_go_on(
    tiny: Path, tmp_path: Path, undisturbed: tuple[Path, str, str]
) -> None:
    """Ctrl-C first; then the whole coordinator is killed; the third one comes to the end."""
    grid = start(*command(tiny, tmp_path))
    wait_until(lambda: in_the_middle(tmp_path))
    os.killpg(grid.pid, signal.SIGINT)  # a terminal sends it to every process of the group
    table, errors = grid.communicate(timeout=100)
    assert grid.returncode == 130, errors
    assert "SIGINT: every run is saved." in errors
    assert "preempted" in table
    assert "Traceback" not in errors
    states = [folder.status["state"] for folder in all_runs(tmp_path)]
    assert "preempted" in states
    assert set(states) <= {"preempted", "queued", "done"}

    grid = start(*command(tiny, tmp_path))
    wait_until(
        lambda: any(
            folder.status["state"] == "running" and folder.status.get("attempt") == 2
            for folder in all_runs(tmp_path)
        )
    )
    workers = [folder.status["pid"] for folder in all_runs(tmp_path) if "pid" in folder.status]
    grid.kill()
    grid.wait()
    wait_until(lambda: not any(map(is_alive, workers)))
    assert "running" not in [folder.status["state"] for folder in all_runs(tmp_path)]

    ended = run(*command(tiny, tmp_path))
    assert ended.returncode == 0, ended.stderr
    check_equal(tmp_path, undisturbed[0])


def test_a_failed_run_does_not_stop_the_others_and_waits_until_it_is_asked_for(
    tiny: Path, tmp_path: Path
) -> None:
    given = [f"model.name_or_path={tiny}", f"outputs={tmp_path}", "train.max_steps=4"]
    grid = [sys.executable, "-m", "lora_exp", "-m", *given, "train.lr=1e-3,1e30", "pack.size=1"]
    ended = run(*grid)
    assert ended.returncode == 1
    assert re.search(r"train\.lr=0\.001 +done ", ended.stdout)
    assert re.search(r"train\.lr=1e\+30 +failed +the loss is nan", ended.stdout)
    assert "2 runs: 1 done, 1 failed" in ended.stdout
    assert "Traceback" not in ended.stderr
    again = run(*grid)
    assert again.returncode == 1
    assert re.search(r"train\.lr=1e\+30 +failed before +the loss is nan", again.stdout)
    assert "2 runs: 1 done before, 1 failed before" in again.stdout
    assert "python -m lora_exp retry state=failed" in again.stdout
    (failed,) = [run for run in all_runs(tmp_path) if run.status["state"] == "failed"]
    assert failed.status["attempt"] == 1


def test_a_run_of_another_process_is_left_to_it(
    tiny: Path, tmp_path: Path, undisturbed: tuple[Path, str, str]
) -> None:
    shutil.copytree(undisturbed[0], tmp_path, dirs_exist_ok=True)
    folder = all_runs(tmp_path)[0]
    (folder.path / "result.json").unlink()
    with folder.lock():
        ended = run(*command(tiny, tmp_path))
    assert ended.returncode == 1
    assert "4 runs: 3 done before, 1 running elsewhere" in ended.stdout
    assert f"lora_exp: {folder.path}: running elsewhere\n" in ended.stderr


def test_hydras_own_launcher_and_batches_of_its_sweeper_work(
    tiny: Path, undisturbed: tuple[Path, str, str]
) -> None:
    outputs, _, _ = undisturbed
    basic = run(*command(tiny, outputs, "hydra/launcher=basic"))
    assert basic.returncode == 0, basic.stderr
    assert basic.stdout.count("best epoch") == 4
    batches = run(*command(tiny, outputs, "hydra.sweeper.max_batch_size=3"))
    assert batches.returncode == 0, batches.stderr
    assert "3 runs: 3 done before" in batches.stdout
    assert "1 run: 1 done before" in batches.stdout


def test_a_second_stage_starts_from_the_best_of_the_first(tiny: Path, tmp_path: Path) -> None:
    given = [f"model.name_or_path={tiny}", f"outputs={tmp_path}", "train.max_steps=4", "device=cpu"]
    start = "\"model.init_from=null,'best:model.init_from=null'\"".strip('"')
    grid = [sys.executable, "-m", "lora_exp", "-m", *given, "seed=1,2", start]
    shown = run(*grid, "dry_run=true")
    assert shown.returncode == 0, shown.stderr
    assert "4 runs: 2 new, 2 waits for others" in shown.stdout
    assert not list(tmp_path.iterdir()) or not all_runs(tmp_path)
    ended = run(*grid, "grid=two")
    assert ended.returncode == 0, ended.stderr
    starts = {folder.config.model.init_from for folder in all_runs(tmp_path)}
    assert len(starts) == 2
    (start_folder,) = starts - {None}
    assert Path(str(start_folder)).parent in [folder.path for folder in all_runs(tmp_path)]
    again = run(*grid, "grid=two")
    assert again.returncode == 0, again.stderr
    assert "4 runs: 4 done before" in again.stdout


def test_a_detached_grid_goes_on_by_itself(tiny: Path, tmp_path: Path) -> None:
    ended = run(*command(tiny, tmp_path, "detach=true", "grid=apart"))
    assert ended.returncode == 0, ended.stderr
    assert "4 runs: 4 queued" in ended.stdout
    assert "python -m lora_exp cancel grid=apart" in ended.stderr
    wait_until(lambda: all(folder.result is not None for folder in all_runs(tmp_path)))
    assert "(best so far)" in (tmp_path / "grids" / "apart" / "log.txt").read_text()


def test_a_cancelled_run_leaves_and_the_others_go_on(tiny: Path, tmp_path: Path) -> None:
    grid = start(*command(tiny, tmp_path, "train.max_steps=100000", "train.eval_every=100000"))
    victim = wait_until(lambda: in_the_middle(tmp_path))
    for folder in all_runs(tmp_path):
        folder.request_cancel()
    table, errors = grid.communicate(timeout=100)
    assert grid.returncode == 1, errors
    assert "4 runs: 4 cancelled" in table
    assert victim.status["state"] == "cancelled"
    assert victim.status["step"] > 0
    assert victim.checkpoint.exists(), "it can go on when it is asked to"
