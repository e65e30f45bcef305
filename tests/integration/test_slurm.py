"""Grids on a real cluster, and everything that can happen to their jobs.

The scenarios run at the same time, each in a folder of outputs of its own; the tests wait for them.
Node n2 is for the one in which a node dies, n3 for the preemption, n1 for the others.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from getpass import getuser
from pathlib import Path
from typing import Any

import pytest
from slurm_jobs import (
    STEPS,
    Launched,
    ask,
    evaluations,
    fact,
    job_of,
    kill,
    printed,
    processes_of,
    stop,
    table,
    wait_until,
)

from lora_exp.runs.folder import RunFolder
from lora_exp.runs.grid import Grid

CHECKOUT = Path(__file__).parents[2]
ON_N1 = ("+hydra.launcher.additional.nodelist=n1", "hydra.launcher.gpus=0")
pytestmark = [pytest.mark.timeout(400), pytest.mark.usefixtures("cluster")]


@dataclass
class Story:
    """What came of a scenario."""

    launched: Launched
    grids: list[Grid]
    facts: Mapping[Any, object] = field(default_factory=dict)

    @property
    def jobs(self) -> list[str]:
        return [line["job"] for grid in self.grids for line in grid.jobs]


def undisturbed(launched: Launched) -> Story:
    """The grid on this machine."""
    done = launched.start("lora.r=1,2,4,8", "seed=1,2,3,4,5", launcher="local")
    assert done.returncode == 0, done.stderr
    return Story(launched, [])


def edited(launched: Launched) -> Story:
    """Twenty runs in an array; all code and every config is broken before its jobs start."""
    copy = launched.outputs.parent / "checkout"
    for name in ("lora_exp", "launch", "conf"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(CHECKOUT / name, copy / name, ignore=ignored)
    grid = launched.submit(
        "lora.r=1,2,4,8",
        "seed=1,2,3,4,5",
        "hydra.launcher.packs_per_job=5",
        "+hydra.launcher.additional.hold=true",
        *ON_N1,
        PYTHONPATH=f"{copy}:{copy / 'launch'}",
        PYTHONSAFEPATH="1",
    )
    facts = {"at first": launched.states}
    for file in [*copy.rglob("*.py"), *copy.rglob("*.yaml")]:
        file.write_text("raise SystemExit('edited')")
    for line in grid.jobs:
        ask("scontrol", "release", line["job"])
    return Story(launched.finished(), [grid], facts)


def overlapping(launched: Launched) -> Story:
    """Two commands at the same time, with four runs in common."""
    points = (("lora.r=1,2", "seed=1,2,3"), ("lora.r=1,2", "seed=2,3,4"))
    names, few = ("one", "other"), ("hydra.launcher.packs_per_job=3",)
    with ThreadPoolExecutor() as pool:
        started = [
            pool.submit(launched.start, f"grid={name}", *point, *few, *ON_N1)
            for name, point in zip(names, points, strict=True)
        ]
    for command in started:
        assert command.result().returncode == 0, command.result().stderr
    grids = [Grid(launched.outputs / "grids" / name) for name in names]
    return Story(launched.finished(), grids)


def warned(launched: Launched) -> Story:
    """The time limit comes near."""
    limits = ("hydra.launcher.time=1", "hydra.launcher.warning=5")
    grid = launched.submit("lora.r=1", "seed=1", *limits, *ON_N1)
    job = job_of(launched.caught())
    return Story(launched.finished(), [grid], {"restarts": fact(job, "Restarts")})


def warned_often(launched: Launched) -> Story:
    """The time limit comes near again and again, each time in the middle of the first epoch, for
    the last of two jobs, whose number is that of their array. The other one has ended by then."""
    grid = launched.submit("lora.r=1", "seed=1,2", *ON_N1)
    first = launched.caught()
    other, run = sorted([first, launched.caught(but=first)], key=job_of)
    kill([other.status["pid"]], signal.SIGCONT)
    wait_until(lambda: fact(job_of(other), "JobState") == "COMPLETED")
    for warning in range(4):
        launched.caught(but=other, lines=3 + 10 * warning)
        ask("scancel", "--signal=USR2", job_of(run))  # as SLURM does before the limit
        kill([run.status["pid"]], signal.SIGCONT)
        wait_until(lambda: run.status["state"] != "running")
    launched.finished()
    array = grid.jobs[0]["job"]
    restarts = {element: fact(f"{array}_{element}", "Restarts") for element in (0, 1)}
    return Story(launched, [grid], restarts)


def preempted(launched: Launched) -> Story:
    """A job of a partition with higher priority wants the node."""
    grid = launched.submit("lora.r=1", "seed=1", "+hydra.launcher.additional.nodelist=n3")
    job = job_of(launched.caught())
    more = ("--gres=gpu:2", "--output=/dev/null", "--wrap=true")
    ask("sbatch", "--partition=high", "--nodelist=n3", *more)
    return Story(launched.finished(), [grid], {"restarts": fact(job, "Restarts")})


def on_a_dead_node(launched: Launched) -> Story:
    """A node dies with the processes of one job. Those of another live on, but hang, until the job
    has been started again elsewhere."""
    grid = launched.submit("lora.r=1", "seed=1,2", "+hydra.launcher.additional.nodelist=n2")
    dies = launched.caught()
    hangs = launched.caught(but=dies)
    jobs, hanging = [job_of(dies), job_of(hangs)], hangs.status["pid"]
    epoch = max(int(path.name) for path in hangs.leases.glob("[0-9]*"))
    daemon = ask("scontrol", "show", "config").partition("SlurmdPidFile")[2].split()[1]
    try:
        kill([int(Path(daemon.replace("%n", "n2")).read_text())])
        managers, others = processes_of(jobs[0])
        kill(managers + others)
        wait_until(lambda: {fact(job, "JobState") for job in jobs} == {"PENDING"})
        for job in [*jobs, grid.jobs[-1]["job"]]:
            ask("scontrol", "update", f"JobId={job}", "ReqNodeList=n1")
        wait_until((hangs.leases / str(epoch + 1)).exists)
        kill([hanging], signal.SIGCONT)
        wait_until(lambda: not Path(f"/proc/{hanging}").exists())
    finally:
        subprocess.run(["slurmd", "-N", "n2"], check=True)
    return Story(launched.finished(), [grid])


def cancelled(launched: Launched) -> Story:
    """scancel, and then the same command again."""
    command = ("lora.r=1,2", "seed=1,2", "hydra.launcher.packs_per_job=4", *ON_N1)
    grid = launched.submit(*command)
    ask("scancel", job_of(launched.caught()))
    facts = {"at first": launched.finished().states, "jobs": len(grid.jobs)}
    grids = [grid, launched.submit(*command)]
    return Story(launched.finished(), grids, facts)


def cancelled_at_first(launched: Launched) -> Story:
    """`cancel` while the processes of a run are started, and do not hold it yet."""
    others = "+hydra.launcher.additional.exclude=n2"
    long = ("train.max_steps=2000", "lora.r=1", "seed=1")  # if the processes are quicker
    grid = launched.submit("train.nodes=2", *long, others, "hydra.launcher.gpus=0")
    wait_until(lambda: printed(grid))
    launched.told("cancel", "seed=1")
    return Story(launched.finished(), [grid])


def killed(launched: Launched) -> Story:
    """SIGKILL for all processes of a job."""
    grid = launched.submit("lora.r=1", "seed=1,2", "hydra.launcher.packs_per_job=2", *ON_N1)
    _, others = processes_of(job_of(launched.caught()))
    kill(others)
    return Story(launched.finished(), [grid])


def diverging(launched: Launched) -> Story:
    """A run that fails."""
    grid = launched.submit("lora.r=1", "seed=1", "train.lr=1e30", *ON_N1)
    return Story(launched.finished(), [grid])


def on_two_nodes(launched: Launched) -> Story:
    """A run with a process on each of two nodes."""
    others = "+hydra.launcher.additional.exclude=n2"
    grid = launched.submit("train.nodes=2", "lora.r=1", "seed=1,2", others, "hydra.launcher.gpus=0")
    return Story(launched.finished(), [grid])


def in_stages(launched: Launched) -> Story:
    """Runs that start from the best of others."""
    stages = "model.init_from=null,'best:model.init_from=null'"
    grid = launched.submit("lora.r=1", "seed=1", stages, "grid=two", *ON_N1)
    return Story(launched.finished(), [grid])


def with_another_controller(launched: Launched) -> Story:
    """slurmctld is started again in the middle of a grid."""
    grid = launched.submit("lora.r=1", "seed=1,2", "hydra.launcher.packs_per_job=2", *ON_N1)
    run = launched.caught()
    stop("slurmctld")
    subprocess.run(["slurmctld"], check=True)
    kill([run.status["pid"]], signal.SIGCONT)
    return Story(launched.finished(), [grid])


def closed_without_a_controller(launched: Launched) -> Story:
    """slurmctld is away when the closing job wants to know what became of a killed one."""
    slowly = "hydra.launcher.setup=['sleep 4']"  # so that it is away by then
    grid = launched.submit("lora.r=1", "seed=1", slowly, *ON_N1)
    kill(processes_of(job_of(launched.caught()))[1])
    wait_until(lambda: fact(grid.jobs[-1]["job"], "JobState") == "RUNNING")
    stop("slurmctld")
    try:
        wait_until(lambda: "squeue does not answer" in printed(grid))
    finally:
        subprocess.run(["slurmctld"], check=True)
    return Story(launched.finished(), [grid])


def limited(launched: Launched) -> Story:
    """An account may have one job in the queue; then three, of which none starts; then one does.
    While the grid is submitted there is no accounting."""
    if "accounting_storage/slurmdbd" not in ask("scontrol", "show", "config"):
        return Story(launched, [])
    command = ("lora.r=1", "seed=1,2", "hydra.launcher.account=limited", *ON_N1)

    def limit(queued: int, running: int) -> None:
        limits = (f"maxsubmitjobs={queued}", f"maxjobs={running}")
        ask("sacctmgr", "-i", "modify", "user", user, "where", "account=limited", "set", *limits)

    user = getuser()
    ask("sacctmgr", "-i", "add", "account", "limited")
    ask("sacctmgr", "-i", "add", "user", user, "account=limited")
    limit(queued=1, running=0)
    first = launched.start(*command)
    facts: dict[str, object] = {"status": first.returncode, "said": first.stderr}
    facts["at first"] = launched.states
    limit(queued=3, running=0)
    stop("slurmdbd")
    try:
        grid = launched.submit(*command)
    finally:
        subprocess.run(["slurmdbd"], check=True)
    wait_until(lambda: "AssocMaxJobsLimit" in launched.told("status"))
    wait_until(lambda: ask("sacctmgr", "-n", "list", "cluster"))
    limit(queued=3, running=1)
    return Story(launched.finished(), [grid], facts)


def refused(launched: Launched) -> Story:
    """There is no such partition."""
    done = launched.start("lora.r=1", "seed=1", "hydra.launcher.partition=mian")
    return Story(launched, [], {"status": done.returncode, "said": done.stderr})


SCENARIOS = (
    on_a_dead_node,
    warned,
    warned_often,
    preempted,
    cancelled,
    cancelled_at_first,
    killed,
    undisturbed,
    edited,
    overlapping,
    on_two_nodes,
    in_stages,
    limited,
    diverging,
    refused,
)
Stories = dict[Callable[[Launched], Story], Future[Story]]


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Iterator[Stories]:
    folder = tmp_path_factory.mktemp("scenarios")
    with ThreadPoolExecutor(len(SCENARIOS)) as pool:
        yield {
            scenario: pool.submit(scenario, Launched(folder / scenario.__name__ / "outputs", tiny))
            for scenario in SCENARIOS
        }


def check_like_undisturbed(stories: Stories, runs: list[RunFolder]) -> None:
    """The runs are done, and are those of the grid without faults to the last digit."""
    expected = {run.name: run for run in stories[undisturbed].result().launched.runs}
    for run in runs:
        twin = expected[run.name]
        assert run.status["state"] == "done"
        steps = [line["step"] for line in run.metrics() if line["split"] == "train"]
        assert steps == [*range(1, STEPS + 1)]
        for found, line in zip(evaluations(run), evaluations(twin), strict=True):
            assert found | {"seconds": 0} == line | {"seconds": 0}
    assert table(runs) == {run.name: table([expected[run.name]])[run.name] for run in runs}


def attempts(runs: list[RunFolder]) -> list[int]:
    return [run.status["attempt"] for run in runs]


def test_an_array_trains_each_run_once_with_the_code_of_its_submission(stories: Stories):
    story = stories[edited].result()
    assert story.facts["at first"] == ["queued"] * 20
    assert [line["tasks"] for line in story.grids[0].jobs] == [4, 1]
    assert attempts(story.launched.runs) == [1] * 20
    check_like_undisturbed(stories, story.launched.runs)


def test_overlapping_grids_train_each_run_once(stories: Stories):
    story = stories[overlapping].result()
    assert [len(grid.runs) for grid in story.grids] == [6, 6]
    assert attempts(story.launched.runs) == [1] * 8
    check_like_undisturbed(stories, story.launched.runs)


def test_before_the_time_limit_a_run_is_saved_and_goes_on_in_the_same_job(stories: Stories):
    story = stories[warned].result()
    assert "SIGUSR2: every run is saved" in printed(story.grids[0])
    assert (
        story.facts["restarts"] != "0"
    )  # more than 1 if SLURM warns so early that nothing is done
    assert attempts(story.launched.runs) >= [2]
    assert len(story.jobs) == 2
    check_like_undisturbed(stories, story.launched.runs)


def test_a_run_of_many_time_limits_is_that_of_none(stories: Stories):
    story = stories[warned_often].result()
    assert story.facts == {0: "0", 1: "4"}
    assert sorted(attempts(story.launched.runs)) == [1, 5]
    assert len(story.jobs) == 2
    check_like_undisturbed(stories, story.launched.runs)


def test_a_preempted_run_goes_on_in_the_same_job(stories: Stories):
    story = stories[preempted].result()
    assert story.facts["restarts"] == "1"
    assert len(story.jobs) == 2
    assert attempts(story.launched.runs) == [2]
    check_like_undisturbed(stories, story.launched.runs)


def test_runs_of_a_dead_node_go_on_elsewhere_and_no_two_write_one(stories: Stories):
    story = stories[on_a_dead_node].result()
    assert len(story.jobs) == 2
    check_like_undisturbed(stories, story.launched.runs)


def test_what_scancel_ends_is_cancelled_until_the_command_is_given_again(stories: Stories):
    story = stories[cancelled].result()
    assert story.facts == {"at first": ["cancelled"] * 4, "jobs": 2}
    check_like_undisturbed(stories, story.launched.runs)


def test_a_run_that_is_cancelled_while_it_starts_is_not_trained(stories: Stories):
    assert stories[cancelled_at_first].result().launched.states == ["cancelled"]


def test_what_a_killed_job_leaves_is_submitted_again(stories: Stories):
    story = stories[killed].result()
    assert [line["closing"] for line in story.grids[0].jobs] == [False, True, False, True]
    check_like_undisturbed(stories, story.launched.runs)


def test_a_failed_run_shows_in_its_job_and_is_not_submitted_again(stories: Stories):
    story = stories[diverging].result()
    assert story.launched.states == ["failed"]
    assert len(story.jobs) == 2
    assert ask("squeue", "-h", "-t", "all", "-j", story.jobs[0], "-o", "%T") == "FAILED"


def test_a_run_on_two_nodes_is_that_of_one_process(stories: Stories):
    story = stories[on_two_nodes].result()
    expected = stories[undisturbed].result().launched
    assert story.launched.states == ["done"] * 2
    for run in story.launched.runs:
        [twin] = [
            one
            for one in expected.runs
            if (one.config.lora.r, one.config.seed) == (run.config.lora.r, run.config.seed)
        ]
        for found, line in zip(evaluations(run), evaluations(twin), strict=True):
            assert found["loss"] == pytest.approx(line["loss"], abs=1e-5)


def test_the_closing_job_submits_what_starts_from_the_best_of_others(stories: Stories):
    story = stories[in_stages].result()
    assert [line["closing"] for line in story.grids[0].jobs] == [False, True, False, True]
    assert story.launched.states == ["done"] * 2
    [start] = {run.config.model.init_from for run in story.launched.runs} - {None}
    assert Path(str(start)).parent in [run.path for run in story.launched.runs]


def test_the_controller_may_be_started_again_meanwhile(
    stories: Stories, tiny: Path, tmp_path: Path
):
    wait(stories.values())  # a controller that has just begun forgets to warn their jobs
    story = with_another_controller(Launched(tmp_path / "outputs", tiny))
    assert len(story.jobs) == 2
    assert attempts(story.launched.runs) == [1] * 2
    check_like_undisturbed(stories, story.launched.runs)


def test_the_closing_job_waits_for_the_controller(stories: Stories, tiny: Path, tmp_path: Path):
    wait(stories.values())
    story = closed_without_a_controller(Launched(tmp_path / "outputs", tiny))
    assert [line["closing"] for line in story.grids[0].jobs] == [False, True, False, True]
    assert attempts(story.launched.runs) == [2]
    check_like_undisturbed(stories, story.launched.runs)


def test_what_a_limit_keeps_back_is_told_and_goes_on_later(stories: Stories):
    story = stories[limited].result()
    if not story.grids:
        pytest.skip("needs a SLURM cluster with accounting")
    assert story.facts["status"] == 2
    assert "AssocMaxSubmitJobLimit" in str(story.facts["said"])
    assert "the same command, mended, submits them" in str(story.facts["said"])
    assert story.facts["at first"] == ["queued"] * 2
    check_like_undisturbed(stories, story.launched.runs)


def test_what_sbatch_refuses_is_told_in_its_words(stories: Stories):
    story = stories[refused].result()
    assert story.facts["status"] == 2
    assert "invalid partition specified: mian" in str(story.facts["said"])
    assert story.launched.states == ["queued"]
