"""Dashboards at W&B, made once and renewed in their place."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
    if (known := _saved(ws.Workspace.from_url, before.get("workspace"))) is not None:
        workspace._internal_name, workspace._internal_id = known._internal_name, known._internal_id
    if (known := _saved(wr.Report.from_url, before.get("report"))) is not None:
        report.id = known.id
    workspace.save()
    report.save()
    folder.mkdir(parents=True, exist_ok=True)
    addresses = {"workspace": workspace.url, "report": report.url}
    files.write_json(file, addresses)
    return workspace.url, report.url


def _saved(load: Callable[[str], Any], address: str | None) -> Any | None:
    """What W&B has at an address; None if it was never saved, or was deleted there.

    Raises:
        Exception: of any kind, if W&B does not say: a second one would be made in its place.
    """
    if address is None:
        return None
    try:
        return load(address)
    except TypeError:  # the package reads on in an answer that says of a report: null
        return None
    except Exception as error:
        if re.search(r"^Workspace .* not found|\b404\b", str(error)):
            return None
        raise
