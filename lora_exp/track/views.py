"""Dashboards at W&B, made once and renewed in their place."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

from lora_exp.runs import files
from lora_exp.track.dashboard import Dashboard


def save(dashboard: Dashboard, folder: Path) -> tuple[str, str]:
    """Save workspace and report at W&B; those that were saved before are replaced.

    Args:
        dashboard: with their content.
        folder: where it is kept which ones they are.

    Returns:
        Their addresses.

    Raises:
        Exception: of any kind that W&B likes, if it does not take them.
    """
    import wandb_workspaces.reports.v2.interface as wr
    import wandb_workspaces.workspaces as ws

    name = f"{dashboard.entity}-{dashboard.project}-{dashboard.title}"
    file = folder / f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', name)}.json"
    before = files.read_json(file) or {}
    workspace, report = dashboard.workspace(), dashboard.report()
    with suppress(Exception):  # it was deleted there; a new one is made
        known = ws.Workspace.from_url(before["workspace"])
        workspace._internal_name, workspace._internal_id = known._internal_name, known._internal_id
    with suppress(Exception):
        report.id = wr.Report.from_url(before["report"]).id
    workspace.save()
    report.save()
    folder.mkdir(parents=True, exist_ok=True)
    addresses = {"workspace": workspace.url, "report": report.url}
    files.write_json(file, addresses)
    return workspace.url, report.url
