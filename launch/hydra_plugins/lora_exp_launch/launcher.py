"""`hydra/launcher=local`: a thin launcher that hands the points of a grid to `lora_exp.grid`."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn, JobRuntime, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from hydra_plugins.lora_exp_launch.compose import Composer

if TYPE_CHECKING:
    from lora_exp.grid.plan import Point
    from lora_exp.grid.table import Outcome
    from lora_exp.runs.config import Config


class LocalLauncher(Launcher):
    """Trains the points with warm workers on this machine."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Called by the sweeper, before it makes the points, and a folder for them.

        Raises:
            UserError: if outputs cannot be written to.
        """
        from lora_exp.runs.folder import check_writable

        check_writable(Path(str(config.outputs)))
        self.config = config
        self.study: str | None = config.hydra.runtime.choices.get("study")
        self.compose = Composer(hydra_context.config_loader, config)
        self.advice: set[str] = set()
        # A sweeper composes each point as well, to stop at the first that cannot be. The launcher
        # tells about all of them at once, and before anything is started too.
        lenient = copy.copy(hydra_context.config_loader)
        lenient.load_sweep_config = lambda master_config, sweep_overrides: master_config
        hydra_context.config_loader = lenient

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Train the points; each return value is the run's main metric.

        Raises:
            UserError: for what is wrong with any of them, before anything is started.
            SystemExit: after a signal, with status 128 + its number.
        """
        from hydra.core.hydra_config import HydraConfig

        from lora_exp.grid.plan import Point

        HydraConfig.instance().set_config(self.config)  # for ${hydra:...} in a config
        given = [list(overrides) for overrides in job_overrides]
        outcomes = self.train([Point(point, partial(self._config_of, point)) for point in given])
        return [_returned(*pair) for pair in zip(given, outcomes, strict=True)]

    def train(self, points: Sequence[Point]) -> list[Outcome]:
        """Train them here; see `lora_exp.grid.local.train`."""
        from lora_exp.grid import local

        return local.train(points, self.study)

    def _config_of(self, overrides: list[str]) -> Config:
        from lora_exp import cli, console
        from lora_exp.explain import explained

        with explained():
            composed = self.compose(overrides)
        config = cli.config_of(composed)
        advice = cli.advice(config, overrides)
        if advice is not None and advice not in self.advice:
            self.advice.add(advice)
            console.log.warning(advice)
        return config


class _Returned(JobReturn):
    """What Hydra's sweepers are told; the table has shown it already, and they print no more."""

    @property
    def return_value(self) -> Any:
        """The main metric, None for a run that is left to others; raises RunFailed."""
        if isinstance(self._return_value, Exception):
            raise self._return_value
        return self._return_value

    @return_value.setter
    def return_value(self, value: Any) -> None:
        self._return_value = value


def _returned(overrides: list[str], outcome: Outcome) -> JobReturn:
    from lora_exp.errors import RunFailed
    from lora_exp.runs.folder import main_metric

    returned = _Returned(overrides, working_dir=str(Path.cwd()))
    returned.task_name = JobRuntime.instance().get("name")
    if outcome.result is not None:
        returned.status = JobStatus.COMPLETED
        returned.return_value = main_metric(outcome.result)
    elif outcome.state in ("new", "queued", "waiting"):  # only shown, or left to others
        returned.status = JobStatus.COMPLETED
        returned.return_value = None
    else:
        returned.status = JobStatus.FAILED
        where = outcome.folder.path if outcome.folder else " ".join(overrides)
        returned.return_value = RunFailed(f"{where}: {outcome.reason}")
    return returned
