"""`hydra/launcher=slurm`: leaves the points of a grid to the cluster, and returns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hydra_plugins.lora_exp_launch.launcher import LocalLauncher

if TYPE_CHECKING:
    from lora_exp.grid.plan import Point
    from lora_exp.grid.table import Outcome


class SlurmLauncher(LocalLauncher):
    """Submits the points; its settings are those of `lora_exp.grid.slurm.SlurmSettings`."""

    def __init__(self, **settings: Any) -> None:
        self._settings = settings

    def train(self, points: Sequence[Point]) -> list[Outcome]:
        """Submit what is left to train; see `lora_exp.grid.slurm.start`."""
        from lora_exp.grid import slurm

        return slurm.start(points, slurm.SlurmSettings.of(self._settings), self.study)
