"""A grid on a SLURM cluster: its runs are left to arrays of jobs, and the command returns."""

from __future__ import annotations

import logging
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_exp import console
from lora_exp.errors import UserError, nearest
from lora_exp.grid import plan, snapshot
from lora_exp.grid.plan import Plan, Point
from lora_exp.grid.submission import Shape, Submission, shapes
from lora_exp.grid.table import Outcome, outcomes, output, show, show_plan
from lora_exp.runs.folder import RunFolder
from lora_exp.runs.grid import Grid

if TYPE_CHECKING:
    from submitit import SlurmExecutor

log = logging.getLogger("lora_exp")
LAST_RANK_SECONDS = 600
"""How long processes of a run may still go on after the first of them has ended."""
MAX_ARRAY_SIZE = 1001
"""SLURM's own default, where scontrol does not tell."""


@dataclass
class SlurmSettings:
    """`hydra.launcher.*` of `hydra/launcher=slurm`: what a job asks the cluster for.

    null leaves a value to the cluster.
    """

    partition: str | None = None
    """Partition, or several separated by commas."""
    account: str | None = None
    """Who pays."""
    qos: str | None = None
    """Quality of service."""
    gpus: int = 1
    """GPUs of a job, each with a worker; 0 trains on CPUs. A run with `train.devices` above 1 gets
    as many as it says on each node."""
    cpus: int | None = None
    """CPUs of a job, or of each process of a run with several; without GPUs each has a worker."""
    memory: float | None = None
    """GB of a job on each node."""
    time: str | None = None
    """Time limit of a job: minutes, or "HH:MM:SS" or "D-HH:MM:SS" in quotes. Runs that need more go
    on in the same job, which SLURM starts again."""
    warning: int = 120
    """Seconds before the time limit at which the runs are saved."""
    constraint: str | None = None
    """Features that a node must have."""
    setup: list[str] = field(default_factory=list)
    """Shell commands at the start of each job, such as `module load cuda`."""
    array_parallelism: int = 256
    """Most jobs at the same time. There are no more of them, as jobs take runs until none is left;
    but a run with several processes has a job of its own."""
    packs_per_job: int = 1
    """Packs (or runs that cannot be packed) for each job: more of them mean fewer jobs, which start
    up less often."""
    closing_partition: str | None = None
    """Partition of the small job that comes last and submits again what was lost; null: the same.
    It needs one CPU for a minute."""
    additional: dict[str, Any] = field(default_factory=dict)
    """Any other options of sbatch: `+hydra.launcher.additional.reservation=NAME`."""

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> SlurmSettings:
        """Settings as they stand in YAML.

        Raises:
            UserError: for one that there is not, or that has a value it cannot have.
        """
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException

        known = {spec.name for spec in fields(cls)}
        for name in values:
            if name not in known:
                raise UserError(unknown_setting(name))
        try:
            settings = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(cls), values))
        except OmegaConfBaseException as error:
            problem = str(error.msg or error).splitlines()[0]
            raise UserError(f"hydra.launcher.{error.full_key}: {problem}.") from error
        assert isinstance(settings, SlurmSettings)
        for name, value in asdict(settings).items():
            if name != "setup" and not str(value).isprintable():  # it would be a line of a script
                raise UserError(f"hydra.launcher.{name}={value!r}: must be one line of text.")
        least = {"gpus": 0, "cpus": 1, "warning": 1, "array_parallelism": 1, "packs_per_job": 1}
        for name, bound in least.items():
            value = getattr(settings, name)
            if value is not None and value < bound:
                raise UserError(f"hydra.launcher.{name}={value}: must be at least {bound}.")
        return settings


def unknown_setting(name: str) -> str:
    """What there is instead of a setting that a launcher does not have."""
    known = [spec.name for spec in fields(SlurmSettings)]
    if name in known:
        return f"hydra.launcher.{name}: only hydra/launcher=slurm has it; give that as well."
    return (
        f"hydra.launcher.{name}: there is no such setting. {nearest(name, known, kind='settings')} "
        f"Other options of sbatch: +hydra.launcher.additional.{name}=..."
    )


def start(
    points: Sequence[Point], settings: SlurmSettings, study: str | None = None
) -> list[Outcome]:
    """Leave the runs that the points come to to the cluster, and show where each of them stands.

    Args:
        points: of the grid.
        settings: of its jobs.
        study: that the points are of, if any.

    Returns:
        For each point, where its run stands.

    Raises:
        UserError: for what is wrong with the points, before anything is written; and in the words
            of sbatch, if it refuses the jobs.
    """
    planned = plan.make(points, several_devices=True)
    if planned.dry_run:
        _show(planned, settings)
        return planned.for_points(outcomes(planned, {}))
    if planned.to_train and shutil.which("sbatch") is None:
        raise UserError(
            "hydra/launcher=slurm: there is no sbatch here. Give the command on a machine from "
            "which jobs are submitted; hydra/launcher=local trains on this one."
        )
    planned.settle()
    if planned.to_train or planned.joins:
        grid = plan.freeze(planned, {"name": "slurm", **asdict(settings)}, None, study)
        if planned.to_train:
            submit(grid, [run.folder for run in planned.to_train], settings)
    waiting = [run.folder.name for run in planned.to_train if run.before != "busy"]
    ended = outcomes(planned, dict.fromkeys(waiting, "pending"))
    show(ended)
    return planned.for_points(ended)


def submit(
    grid: Grid,
    runs: Sequence[RunFolder],
    settings: SlurmSettings,
    *,
    code: Path | None = None,
    stalled: int = 0,
) -> list[str]:
    """Submit runs whose folders there are already.

    Args:
        grid: of which they are.
        runs: in order.
        settings: of each job.
        code: the snapshot that the jobs run; None: the newest of the grid.
        stalled: how often they were submitted without progress.

    Returns:
        The ids of the jobs, an array being one.

    Raises:
        UserError: in the words of sbatch, if it refuses; the runs stay queued.
    """
    code = code or grid.outputs / "snapshots" / str(grid.record["snapshot"])
    known = len(grid.jobs)
    most = _max_array_size()
    for shape in shapes({run.path: run.config for run in runs}):
        submission = Submission.create(
            grid, shape, settings=asdict(settings), code=str(code), stalled=stalled
        )
        _submit(submission, shape, settings, code, most)
    jobs = [job["job"] for job in grid.jobs[known:]]
    log.info(
        "Grid %s: %d runs are left to SLURM, jobs %s. The shell may be closed. How they stand: %s",
        grid.name,
        len(runs),
        ", ".join(jobs),
        console.verb(f"status grid={grid.name}", grid.outputs),
    )
    return jobs


def script(shape: Shape, settings: SlurmSettings, grid: str = "GRID", code: str = "CODE") -> str:
    """What sbatch would be given for the first array of some runs."""
    executor = _executor(Path("JOBS"), grid, Path(code), _resources(shape, settings), settings)
    tasks = _tasks(shape, settings)
    if tasks > 1:
        executor.parameters["map_count"] = min(tasks, _max_array_size())
    return executor._make_submission_file_text(executor._submitit_command_str, "")


def _show(planned: Plan, settings: SlurmSettings) -> None:
    """What the cluster would be asked for."""
    of_shapes = shapes({run.folder.path: run.config for run in planned.to_train})
    tasks = sum(_tasks(shape, settings) for shape in of_shapes)
    told = ", ".join(f"{key}={value}" for key, value in asdict(settings).items() if value)
    show_plan(planned, tasks * max(1, settings.gpus), f"jobs: {tasks} ({told})")
    for shape in of_shapes:
        output().print(f"\n{script(shape, settings)}", highlight=False, markup=False)


def _tasks(shape: Shape, settings: SlurmSettings) -> int:
    """The number of jobs for some runs."""
    if shape.together:
        return len(shape.tickets)
    return min(-(-shape.packs // settings.packs_per_job), settings.array_parallelism)


def _submit(
    submission: Submission, shape: Shape, settings: SlurmSettings, code: Path, most: int
) -> None:
    """The arrays for some runs, and the job that closes them."""
    from lora_exp.grid.close import Close
    from lora_exp.grid.task import Task

    grid, number = submission.grid, _tasks(shape, settings)
    tasks = [Task(submission.path, index, number) for index in range(number)]
    wanted = _resources(shape, settings)
    arrays: list[str] = []
    for first in range(0, number, most):
        chunk = tasks[first : first + most]
        try:
            job = _sbatch(_executor(submission.path, grid.name, code, wanted, settings), chunk)
        except UserError as error:
            if not arrays:
                raise
            log.warning("%s\nThe jobs %s do their work too.", error, ", ".join(arrays))
            break
        arrays.append(job)
        grid.add_job(job=job, tasks=len(chunk), closing=False, submission=submission.name)
    # srun would need slurmctld, which may be away when it starts.
    wanted = {"time": 20, "cpus_per_task": 1, "mem": "1G", "use_srun": False}
    wanted |= {"dependency": "afterany:" + ":".join(arrays)}
    if settings.closing_partition is not None:
        wanted["partition"] = settings.closing_partition
    closing = _executor(submission.path, f"{grid.name}-closing", code, wanted, settings)
    try:
        job = _sbatch(closing, [Close(submission.path)])
    except UserError as error:
        log.warning("%s\nWhat jobs lose is not submitted again by itself.", error)
    else:
        grid.add_job(job=job, tasks=1, closing=True, submission=submission.name)


def _resources(shape: Shape, settings: SlurmSettings) -> dict[str, Any]:
    """What the jobs for some runs ask for, as submitit calls it."""
    gpus = shape.devices if shape.together and settings.gpus else settings.gpus
    ranks = [f"--wait={LAST_RANK_SECONDS}"] if shape.together else []
    cpus = [] if settings.cpus is None else [f"--cpus-per-task={settings.cpus}"]
    return {
        "time": settings.time,
        "nodes": shape.nodes,
        "ntasks_per_node": shape.devices,
        "gpus_per_node": gpus or None,
        "cpus_per_task": settings.cpus,
        "mem": None if settings.memory is None else f"{settings.memory * 1024:.0f}M",
        "array_parallelism": settings.array_parallelism,
        "signal_delay_s": settings.warning,
        "srun_args": cpus + ranks,  # since SLURM 22.05 srun does not take it from sbatch
    }


def _executor(
    folder: Path, name: str, code: Path, wanted: dict[str, Any], settings: SlurmSettings
) -> SlurmExecutor:
    """Submitit's, with everything that a job is told.

    Args:
        folder: for its files, and what the jobs print.
        name: of the jobs.
        code: the snapshot that they run, whatever lies in the working directory.
        wanted: resources.
        settings: for the rest.
    """
    import submitit

    class Executor(submitit.SlurmExecutor):
        @classmethod
        def affinity(cls) -> int:
            return 1  # also where there is no SLURM, to show what would be submitted

    executor = Executor(folder)
    path = snapshot.python_path(code)
    setup = [
        *settings.setup,
        f'export PYTHONPATH={shlex.quote(path)}"${{PYTHONPATH:+:$PYTHONPATH}}" PYTHONSAFEPATH=1',
    ]
    shared = {
        "job_name": f"lora_exp-{name}",
        "partition": settings.partition,
        "account": settings.account,
        "qos": settings.qos,
        "constraint": settings.constraint,
        "setup": setup,
        "stderr_to_stdout": True,
        "wckey": None,
        "additional_parameters": {"requeue": True, **settings.additional},
    }
    executor.update_parameters(**(shared | wanted))
    return executor


def _sbatch(executor: SlurmExecutor, tasks: Sequence[Any]) -> str:
    """Submit tasks as one array.

    Returns:
        Its id.

    Raises:
        UserError: with what sbatch says, if it refuses.
    """
    from submitit.core.utils import FailedJobError

    try:
        with _outside_of_jobs():
            jobs = executor.submit_array(tasks)
    except (FailedJobError, OSError) as error:
        said = " ".join(re.sub(r"^sbatch: (error: )?", "", line) for line in str(error).split("\n"))
        raise UserError(
            f"hydra/launcher=slurm: sbatch refuses the jobs: {said} The runs are queued; the same "
            "command, mended, submits them."
        ) from error
    return jobs[0].job_id.partition("_")[0]


@contextmanager
def _outside_of_jobs() -> Iterator[None]:
    """Meanwhile, what SLURM has told this process of a job of its own does not reach new ones."""
    kept = dict(os.environ)
    if "SLURM_JOB_ID" in kept:
        for name in kept:
            of_the_job = name.startswith(("SLURM_", "SLURMD_", "SRUN_", "SUBMITIT_"))
            if name != "SLURM_CONF" and (of_the_job or name == "CUDA_VISIBLE_DEVICES"):
                del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(kept)


def _max_array_size() -> int:
    """Most elements of an array on this cluster."""
    try:
        told = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True).stdout
    except OSError:
        told = ""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", told, re.MULTILINE)
    return max(1, int(found[1])) if found else MAX_ARRAY_SIZE
