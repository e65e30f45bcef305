"""A W&B workspace and a report of some runs, through the package `wandb-workspaces`.

Both have, for each task: learning curves by group, with the standard deviation over seeds; the
metric against every number that differs between the runs (rank, learning rate) and against trained
parameters; parallel coordinates; the table of runs. The report begins with ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lora_exp.report.groups import Group, grouped
from lora_exp.report.pivot import Pivot
from lora_exp.report.table import markdown
from lora_exp.report.units import lower_is_better
from lora_exp.runs.records import RunRecord
from lora_exp.runs.selector import kinds, value_of
from lora_exp.track import TAG_LENGTH

if TYPE_CHECKING:
    import wandb_workspaces.reports.v2.interface as wr
    import wandb_workspaces.workspaces as ws

PARAMETERS = "trainable_parameters"
FIRST = ("method", "lora.placement.preset", "lora.r", "lora.alpha", "train.lr")
"""The keys that people look for first."""
LOGARITHMIC = ("lora.r", "lora.alpha", "train.lr")
MOST_KEYS = 8
"""That have room in parallel coordinates."""
WIDTH, HEIGHT = 12, 8
"""Of a panel; a report is 24 wide."""
CURVES_SHOWN = 100


@dataclass(frozen=True)
class Dashboard:
    """
    Args:
        title: of workspace and report.
        entity: of W&B, a user or team.
        project: of W&B.
        runs: at least one with a result.
        tag: that all of them have at W&B, and nothing else there; None: they are named one by one.
    """

    title: str
    entity: str
    project: str
    runs: Sequence[RunRecord]
    tag: str | None = None

    @cached_property
    def tasks(self) -> dict[str, list[Group]]:
        """The groups with results, by task."""
        found: dict[str, list[Group]] = {}
        for group in grouped(self.runs):
            if group.main_metric is not None:
                found.setdefault(group.value_of("task"), []).append(group)
        return found

    @cached_property
    def keys(self) -> list[str]:
        """The keys of the config by which groups differ, the task's own left out."""
        groups = [group for members in self.tasks.values() for group in members]
        every = [key for key in kinds() if not key.startswith("task.")]
        order = [*FIRST, *(key for key in every if key not in FIRST)]
        values = {key: {str(group.deciding.get(key)) for group in groups} for key in order}
        return [key for key in order if len(values[key]) > 1][:MOST_KEYS]

    def workspace(self) -> ws.Workspace:
        """The saved view of the project: a section for each task."""
        import wandb_workspaces.workspaces as ws

        sections = [
            ws.Section(task, panels=self._panels(groups), is_open=True)
            for task, groups in self.tasks.items()
        ]
        metrics = {name: None for groups in self.tasks.values() for name in _metrics(groups)}
        columns = [f"summary:{name}" for name in (*metrics, PARAMETERS)]
        columns += [f"config:{_stored(key)}" for key in ("task.name", *self.keys, "seed")]
        chosen = self.runs if self.tag is None else ()
        return ws.Workspace(
            entity=self.entity,
            project=self.project,
            name=self.title,
            sections=sections,
            settings=ws.WorkspaceSettings(max_runs=CURVES_SHOWN),
            runset_settings=ws.RunsetSettings(
                filters=[self._among(chosen)],
                groupby=[ws.Metric("Group")],
                pinned_columns=["run:displayName", *columns],
            ),
        )

    def report(self) -> wr.Report:
        """The report: our table, then the panels and the runs of each task."""
        import wandb_workspaces.reports.v2.interface as wr

        blocks: list[Any] = [wr.TableOfContents(), wr.H1("Results"), wr.MarkdownBlock(self._table)]
        for task, groups in self.tasks.items():
            runs = [run for group in groups for run in group.runs]
            alone = self.tag is not None and len(self.tasks) == 1
            columns = [f"summary:{name}" for name in (*_metrics(groups), PARAMETERS)]
            columns += [f"config:{_stored(key)}" for key in (*self.keys, "seed")]
            runset = wr.Runset(
                entity=self.entity,
                project=self.project,
                name=task,
                filters=[self._among(() if alone else runs)],
                groupby=["group"],
                pinned_columns=["run:displayName", *columns],
            )
            panels = self._panels(groups)
            for number, panel in enumerate(panels):
                x, y = WIDTH * (number % 2), HEIGHT * (number // 2)
                panel.layout = wr.Layout(x=x, y=y, w=WIDTH, h=HEIGHT)
            blocks += [wr.H1(task), wr.PanelGrid(runsets=[runset], panels=panels)]
        return wr.Report(
            entity=self.entity,
            project=self.project,
            title=self.title,
            description="Made by lora_exp from runs that it has sent.",
            blocks=blocks,
            width="fluid",
        )

    @property
    def _table(self) -> str:
        groups = [group for members in self.tasks.values() for group in members]
        return markdown([Pivot(groups).table()])

    def _among(self, runs: Sequence[RunRecord]) -> Any:
        """What picks the runs at W&B: the tag, or their ids."""
        import wandb_workspaces.workspaces as ws

        if runs or self.tag is None:
            return ws.Metric("ID").isin([run.folder.watched_as for run in runs])
        return ws.Tags().isin([self.tag[:TAG_LENGTH]])

    def _panels(self, groups: Sequence[Group]) -> list[Any]:
        """Those of a task."""
        import wandb_workspaces.reports.v2.interface as wr

        run, metric = groups[0].runs[0], groups[0].main_metric or ""
        split, selecting = value_of(run, "task.validation")[0], groups[0].selecting
        panels: list[Any] = [
            wr.LinePlot(
                title=f"{name}: mean and standard deviation over seeds",
                x="Step",
                y=[name],
                groupby="Group",
                groupby_aggfunc="mean",
                groupby_rangefunc="stddev",
                max_runs_to_show=CURVES_SHOWN,
            )
            for name in (f"{split}/{selecting}", "train/loss")
        ]
        of_metric = wr.SummaryMetric(metric)
        numbers = [key for key in self.keys if kinds()[key] is float]
        panels += [
            wr.ScatterPlot(
                title=f"{metric} against {key}",
                x=wr.Config(key),
                y=of_metric,
                log_x=key in LOGARITHMIC,
            )
            for key in numbers
        ]
        panels.append(
            wr.ScatterPlot(
                title=f"{metric} against trained parameters",
                x=wr.SummaryMetric(PARAMETERS),
                y=of_metric,
                log_x=True,
            )
        )
        column = wr.ParallelCoordinatesPlotColumn
        columns = [column(wr.Config(key), log=key in LOGARITHMIC) for key in self.keys]
        columns.append(column(wr.SummaryMetric(PARAMETERS), log=True))
        columns.append(column(of_metric, inverted=lower_is_better(metric)))
        panels.append(wr.ParallelCoordinatesPlot(title="All runs", columns=columns))
        return panels


def _metrics(groups: Sequence[Group]) -> list[str]:
    return list(dict.fromkeys(group.main_metric for group in groups if group.main_metric))


def _stored(key: str) -> str:
    """A key of the config as W&B stores it: `lora.value.r`."""
    first, _, rest = key.partition(".")
    return f"{first}.value.{rest}" if rest else f"{first}.value"
