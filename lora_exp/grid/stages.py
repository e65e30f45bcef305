"""Runs of a grid that start from the best of others of it, and so wait until those have ended."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from lora_exp.init_from import fits, selector_of
from lora_exp.runs.config import Config
from lora_exp.runs.records import Records, RunRecord
from lora_exp.runs.values import from_mapping

if TYPE_CHECKING:
    from lora_exp.grid.plan import PlannedRun
    from lora_exp.runs.grid import Grid


@dataclass(frozen=True)
class Later:
    """A point whose run is known once others have ended."""

    overrides: list[str]
    settings: Config

    def waits_for(self, run: PlannedRun) -> bool:
        """Whether it may start from a run of the grid that is still to be trained."""
        if run.done or run.failed or not fits(self.settings, asdict(run.config)):
            return False
        selector = selector_of(self.settings)
        return selector is not None and selector.matches(_Prospect(run))

    def config(self) -> Config:
        """What to train, on behalf of the grid that is under way."""
        return self.settings

    @property
    def record(self) -> dict[str, Any]:
        """As it is written down."""
        return {"overrides": self.overrides, "config": asdict(self.settings)}


def take(grid: Grid) -> list[Later]:
    """The points of a grid whose turn has not come yet; who takes them sees to them."""
    found = []
    for one in grid.take_later():
        config = replace(from_mapping(one["config"]), grid=grid.name, dry_run=False, detach=False)
        found.append(Later(one["overrides"], config))
    return found


class _Prospect(RunRecord):
    """A run that may not be written down yet, as a filter will see it."""

    def __init__(self, run: PlannedRun) -> None:
        super().__init__(str(run.folder.path), Records(run.folder.path.parent.parent))
        self.config = asdict(run.config)
        self.origin = {"group": run.identity.group}
        self.status = {"state": "done"}
