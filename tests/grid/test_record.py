"""What is written down of a grid, of its code, and what a dry run and a terminal show of it."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from lora_exp import console
from lora_exp.errors import UserError
from lora_exp.grid import detached, devices, snapshot
from lora_exp.grid.devices import Device
from lora_exp.grid.estimate import seconds
from lora_exp.grid.plan import Point, freeze, make
from lora_exp.grid.queue import Ticket
from lora_exp.grid.table import Live, Outcome, show
from lora_exp.runs import provenance
from lora_exp.runs.config import Config, ModelConfig, TaskConfig, TrainConfig
from lora_exp.runs.folder import RunFolder
from lora_exp.runs.grid import Grid, all_grids
from lora_exp.runs.provenance import git_state

LOCAL = {"name": "local"}


def runs(outputs: Path, *names: str) -> list[RunFolder]:
    folders = [RunFolder(outputs / "runs" / name) for name in names]
    for folder in folders:
        folder.path.mkdir(parents=True, exist_ok=True)
    return folders


# -- the record ------------------------------------------------------------------------------------


def test_a_grid_keeps_its_runs_in_order_and_one_with_its_name_joins_it(tmp_path: Path) -> None:
    Grid.create(tmp_path, "mine", runs(tmp_path, "b", "a"), LOCAL, command="first")
    grid = Grid.create(tmp_path, "mine", runs(tmp_path, "c", "a"), {"name": "slurm"}, command="two")
    assert [run.name for run in grid.runs] == ["b", "a", "c"]
    assert grid.launcher == {"name": "slurm"}
    assert grid.record["command"] == "two"
    (tmp_path / "runs" / "a").rmdir()
    assert [run.name for run in grid.runs] == ["b", "c"], "what was cleaned away is left out"


def test_grids_without_a_name_get_one_each(tmp_path: Path) -> None:
    names = {Grid.create(tmp_path, None, [], LOCAL).name for _ in range(3)}
    assert len(names) == 3
    assert {grid.name for grid in all_grids(tmp_path)} == names


def test_jobs_are_added_and_a_line_that_a_crash_cut_short_is_left_out(tmp_path: Path) -> None:
    grid = Grid.create(tmp_path, "mine", [], LOCAL)
    assert grid.jobs == []
    grid.add_job(job="12", tasks=3)
    grid.add_job(job="13", tasks=1)
    with (grid.path / "jobs.jsonl").open("a") as file:
        file.write('{"job": "1')
    assert [(job["job"], job["tasks"]) for job in grid.jobs] == [("12", 3), ("13", 1)]
    grid.add_job(job="14", tasks=1)
    assert [job["job"] for job in grid.jobs] == ["12", "13", "14"]


def test_nothing_stays_of_a_grid_that_was_half_written_down(tmp_path: Path) -> None:
    grid = Grid.create(tmp_path, "whole", [], LOCAL)
    for folder in ("whole", "half", "empty"):
        (tmp_path / "grids" / folder).mkdir(exist_ok=True)
    for folder in ("whole", "half"):
        (tmp_path / "grids" / folder / "grid.json.tmp").write_text('{"na')
    Grid.create(tmp_path, "next", [], LOCAL)
    assert grid.record["name"] == "whole"
    left = {str(path.relative_to(tmp_path / "grids")) for path in tmp_path.rglob("grids/*/**")}
    assert left == {"whole", "next"}
    assert not [*tmp_path.rglob("*.tmp")]


def test_a_record_that_is_damaged_is_none(tmp_path: Path) -> None:
    grid = Grid.create(tmp_path, "mine", runs(tmp_path, "a"), LOCAL)
    (grid.path / "grid.json").write_text('{"name": "mi')
    assert all_grids(tmp_path) == []
    assert [run.name for run in Grid.create(tmp_path, "mine", runs(tmp_path, "b"), LOCAL).runs] == [
        "b"
    ]


@pytest.mark.parametrize("name", ["a/b", "..", "", "a b", "../a"])
def test_a_name_that_no_folder_can_have_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a name is made of letters"):
        Grid.create(tmp_path, name, [], LOCAL)
    assert not (tmp_path / "grids").exists()


# -- the code --------------------------------------------------------------------------------------


def test_a_snapshot_runs_by_itself_and_is_taken_once(tmp_path: Path) -> None:
    taken = snapshot.take(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in taken.rglob("*")}
    assert snapshot.take(tmp_path) == taken
    assert {path: path.stat().st_mtime_ns for path in taken.rglob("*")} == before
    code = "import lora_exp.cli as c, hydra_plugins.lora_exp_launch as p, json; "
    code += "from lora_exp.runs import provenance; from pathlib import Path; "
    code += "print(c.__file__, c.CONF, p.__file__); "
    code += "print(json.dumps(provenance.git_state(Path(provenance.__file__))))"
    printed = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": snapshot.python_path(taken)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    places, git = printed.stdout.splitlines()
    package, conf, plugin = map(Path, places.split())
    assert package == taken / "lora_exp" / "cli.py"
    assert conf == taken / "conf"
    assert plugin.is_relative_to(taken / "launch")
    now = git_state(Path(provenance.__file__))
    assert json.loads(git) == (None if now is None else list(now)), "as when it was taken"


def test_what_is_left_to_the_background_runs_the_snapshot_wherever_it_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = Grid.create(tmp_path, "mine", [], LOCAL, snapshot="kept")
    code, checkout = tmp_path / "snapshots" / "kept", tmp_path / "checkout"
    for folder in (code, checkout):
        package = folder / "lora_exp" / "grid"
        package.mkdir(parents=True)
        (package.parent / "__init__.py").touch()
        (package / "__init__.py").touch()
        source = "import os; print(__file__, os.environ['PYTHONPATH'])"
        (package / "detached.py").write_text(source)
    monkeypatch.chdir(checkout)
    monkeypatch.setenv("PYTHONPATH", "/mine")
    detached.start(grid)
    while not (said := grid.log.read_text()).endswith("\n"):
        time.sleep(0.01)
    assert said == f"{code}/lora_exp/grid/detached.py {code}:{code}/launch:/mine\n"


# -- what people see -------------------------------------------------------------------------------


def test_lists_among_the_overrides_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    for_each = [["lora.placement.targets=[query,value]"], ["lora.placement.targets=[key]"]]
    show([Outcome(overrides, None, "waiting", None, "") for overrides in for_each])
    rows = capsys.readouterr().out.splitlines()[1:3]
    assert [row.split()[0] for row in rows] == [" ".join(one) for one in for_each]


def test_of_a_failure_the_first_line_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    reasons = ("no such layer. There are:\n  query\n  key", "")
    show([Outcome([f"seed={len(why)}"], None, "failed", None, why) for why in reasons])
    rows = capsys.readouterr().out.splitlines()
    assert rows[1].split("failed")[1].strip() == "no such layer. There are:"
    assert rows[3] == "2 runs: 2 failed"


def test_a_dry_run_estimates_from_comparable_runs(tiny: Path, tmp_path: Path) -> None:
    def points(*seeds: int, steps: int = 5) -> list[Point]:
        found = []
        for seed in seeds:
            config = Config(
                task=TaskConfig("agreement", kind="agreement"),
                model=ModelConfig(str(tiny)),
                train=TrainConfig(lr=1e-3, max_steps=steps),
                seed=seed,
                outputs=str(tmp_path),
            )
            found.append(Point([f"seed={seed}"], lambda config=config: config))
        return found

    planned = make(points(1, 2, 3))
    assert seconds(planned.runs, tmp_path) == []
    freeze(planned, LOCAL, None)
    for run, wall in zip(planned.runs, (10.0, 30.0, 20.0), strict=True):
        run.folder.finish({"metrics": {"accuracy": 1.0}, "wall_seconds": wall})
    assert seconds(make(points(4, 5)).to_train, tmp_path) == [20.0, 20.0]
    assert seconds(make(points(4, steps=6)).to_train, tmp_path) == []


def test_a_terminal_shows_the_grid_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=100)
    monkeypatch.setattr(console, "console", terminal)
    one, two, three = runs(tmp_path, "one", "two", "three")
    one.set_status("running", step=30, total_steps=120)
    tickets = [Ticket(run.path) for run in (one, two, three)]
    tickets[0].state, tickets[0].worker, tickets[1].state = "given", 1, "done"
    with Live.of("mine", tickets) as look:
        assert look is not None
        look()
    shown = screen.getvalue()
    assert "1 waiting, 1 running, 1 done" in shown
    assert "25%" in shown
    assert "two" not in shown, "only those that are being trained"


def test_without_a_terminal_nothing_is_redrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "console", Console(file=io.StringIO()))
    with Live.of("mine", []) as look:
        assert look is None


# -- GPUs ------------------------------------------------------------------------------------------


def test_a_gpu_is_held_by_one_worker_and_others_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices.tempfile, "gettempdir", lambda: str(tmp_path))
    gpu, other = (Device("cuda", "A GPU", identity=f"GPU-{number}") for number in (1, 2))
    has_it = threading.Event()

    def wait_for_it() -> None:
        with devices.held(gpu):
            has_it.set()

    waiting = threading.Thread(target=wait_for_it, daemon=True)
    with devices.held(gpu), devices.held(other), devices.held(Device("cpu")):
        waiting.start()
        assert not has_it.wait(0.1)
    assert has_it.wait(20)
