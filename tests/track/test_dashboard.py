"""The specification of a dashboard, as W&B would get it; nothing here reaches W&B."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import stores

from lora_exp.runs.records import Records
from lora_exp.track.dashboard import Dashboard


@pytest.fixture
def dashboard(tmp_path: Path) -> Dashboard:
    """Two ranks with two seeds each on one task, one rank on another."""
    store = stores.Store(tmp_path / "outputs")
    runs = [
        store.run("done", metrics={"accuracy": 0.5 + rank / 100}, lora__r=rank, seed=seed)
        for rank in (1, 8)
        for seed in (1, 2)
    ]
    runs.append(store.run("done", metrics={"pearson": 0.5}, task__name="stsb"))
    store.run("failed", lora__r=64)
    store.grid("mine", runs)
    return Dashboard("lora_exp mine", "me", "p", Records(store.outputs).runs, "mine")


def spec(made: Any) -> Any:
    return json.loads(made._to_model().model_dump_json(by_alias=True, exclude_none=True))


def panels(node: Any) -> Iterator[dict[str, Any]]:
    """Every panel in a specification."""
    if isinstance(node, dict):
        if "viewType" in node:
            yield node
        for value in node.values():
            yield from panels(value)
    elif isinstance(node, list):
        for value in node:
            yield from panels(value)


def check_panels(found: list[dict[str, Any]]) -> None:
    """Those of the task with two ranks."""
    curves = [panel["config"] for panel in found if panel["viewType"] == "Run History Line Plot"]
    assert [curve["metrics"] for curve in curves] == [["validation/accuracy"], ["train/loss"]]
    for curve in curves:
        shape = (curve["xAxis"], curve["groupBy"], curve["groupAgg"], curve["groupArea"])
        assert shape == ("_step", "group", "mean", "stddev")

    scatter = [panel["config"] for panel in found if panel["viewType"] == "Scatter Plot"]
    assert [(plot["xAxis"], plot["yAxis"]) for plot in scatter] == [
        ("config:lora.value.r", "summary:accuracy"),
        ("summary:trainable_parameters", "summary:accuracy"),
    ]
    assert all(plot["xAxisLogScale"] for plot in scatter)

    (parallel,) = (p["config"] for p in found if p["viewType"] == "Parallel Coordinates Plot")
    assert [column["accessor"] for column in parallel["columns"]] == [
        "config:lora.value.r",
        "summary:trainable_parameters",
        "summary:accuracy",
    ]


def test_the_workspace_has_a_section_for_each_task(dashboard: Dashboard) -> None:
    made = spec(dashboard.workspace())
    assert (made["entity"], made["project"], made["displayName"]) == ("me", "p", "lora_exp mine")
    section = made["spec"]["section"]
    sections = section["panelBankConfig"]["sections"]
    assert [one["name"] for one in sections] == ["rte", "stsb"]
    check_panels(sections[0]["panels"])
    assert any("validation/pearson" in str(panel) for panel in sections[1]["panels"])
    (runs,) = section["runSets"]
    assert runs["grouping"] == [{"section": "run", "name": "group"}]
    (only,) = runs["filters"]["filters"]
    assert (only["key"]["name"], only["op"], only["value"]) == ("tags", "IN", ["mine"])
    columns = runs["runFeed"]["columnOrder"]
    assert columns[:3] == ["run:displayName", "summary:accuracy", "summary:pearson"]
    assert {"config:task.value.name", "config:lora.value.r", "config:seed.value"} < {*columns}


def test_the_report_begins_with_our_table_and_has_the_runs_of_each_task(
    dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wandb_workspaces.reports.v2 import interface

    project = {"project": {"internalId": "1"}}
    monkeypatch.setattr(interface, "_get_api", lambda: None)
    monkeypatch.setattr(interface, "execute_graphql", lambda *arguments: project)
    made = spec(dashboard.report())
    assert (made["displayName"], made["project"]["entityName"]) == ("lora_exp mine", "me")
    table = next(block for block in made["spec"]["blocks"] if block["type"] == "markdown-block")
    assert "| minilm |" in table["content"] or "| tiny |" in table["content"]
    assert "51.00" in table["content"]
    first, second = (b for b in made["spec"]["blocks"] if b["type"] == "panel-grid")
    check_panels(list(panels(first)))
    ids = {
        run.signature
        for run in dashboard.runs
        if run.config["task"]["name"] == "rte" and run.result
    }
    for grid, wanted in ((first, ids), (second, {"000000000005"})):
        (runs,) = grid["metadata"]["runSets"]
        (only,) = runs["filters"]["filters"]
        assert (only["key"]["name"], only["op"], {*only["value"]}) == ("name", "IN", wanted)


def test_runs_that_no_tag_picks_are_named(dashboard: Dashboard) -> None:
    untagged = Dashboard("t", "me", "p", dashboard.runs[:2])
    (runs,) = spec(untagged.workspace())["spec"]["section"]["runSets"]
    (only,) = runs["filters"]["filters"]
    assert only["value"] == [run.signature for run in dashboard.runs[:2]]
