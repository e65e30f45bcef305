"""`sync` and `dashboard`: what reaches a tracker from run folders, and that it does so once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import stores
import wandb_server
from wandb_files import history, stored, summary

from lora_exp.runs.folder import RunFolder

LINES: list[dict[str, Any]] = [
    {"step": 1, "epoch": 0.5, "split": "train", "loss": 0.75},
    {"step": 2, "epoch": 1.0, "split": "train", "loss": 0.5},
    {"step": 2, "epoch": 1.0, "split": "validation", "loss": 0.625, "accuracy": 0.875},
]
MERGED = {
    1: {"epoch": 0.5, "train/loss": 0.75},
    2: {"epoch": 1.0, "train/loss": 0.5, "validation/loss": 0.625, "validation/accuracy": 0.875},
}


def trained(
    store: stores.Store, state: str = "done", lines: list[dict[str, Any]] = LINES, **values: Any
) -> RunFolder:
    """A run with metrics, which nobody watched."""
    folder = store.run(state, **values)
    folder.metrics_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def called(store: stores.Store, *arguments: str, **variables: str) -> tuple[int, str]:
    """A process of its own, with W&B's variables and no others of its: status, and all it wrote."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    ended = subprocess.run(
        [sys.executable, "-m", "lora_exp", *arguments, "--outputs", str(store.outputs)],
        env=env | {"HOME": str(store.outputs.parent)} | variables,
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )
    assert "Traceback" not in ended.stderr
    return ended.returncode, ended.stdout + ended.stderr


@pytest.fixture
def server() -> Iterator[wandb_server.Server]:
    with wandb_server.serving() as server:
        yield server


def at(server: wandb_server.Server) -> dict[str, str]:
    return {"WANDB_BASE_URL": server.address, "WANDB_API_KEY": "c0ffee" * 7}


def test_runs_that_nobody_watched_are_sent_once(
    store: stores.Store, server: wandb_server.Server
) -> None:
    done = trained(store, tracker__project="p", tracker__tags=["mine"])
    failed = trained(store, "failed", lines=LINES[:1])
    store.grid("of-both", [done, failed], study="a-study")
    store.run("running")
    store.run("queued")

    status, said = called(store, "sync", "state!=running,lost", **at(server))
    assert status == 0, said
    assert f"{done.name}  3 of 3 lines of metrics were new" in said
    assert f"{failed.name}  1 of 1 lines" in said
    assert said.endswith("3 runs: 2 sent, 1 left alone.\n")

    assert {*server.runs} == {done.signature, failed.signature}
    first = server.runs[done.signature]
    assert (first.history, first.lines) == (MERGED, 2)
    assert first.summary["accuracy"] == 0.8
    assert first.summary["trainable_parameters"] == 1000
    assert (first.stream["complete"], first.stream["exitcode"]) == (True, 0)
    assert server.runs[failed.signature].stream["exitcode"] == 1
    upsert = first.upserts[0]
    assert (upsert["groupName"], upsert["project"]) == (done.provenance["group"], "p")
    assert (upsert["jobType"], upsert["tags"]) == ("lora", ["mine", "of-both", "a-study"])
    assert json.loads(upsert["config"])["lora"]["value"]["r"] == done.config.lora.r

    upserts = len(first.upserts)
    status, said = called(store, "sync", "state=done,failed", **at(server))
    assert (status, said.splitlines()[-1]) == (0, "2 runs: 2 there already.")
    assert (first.lines, len(first.upserts)) == (2, upserts)


def test_what_the_server_has_is_not_sent_again_and_what_is_new_is(
    store: stores.Store, server: wandb_server.Server
) -> None:
    run = trained(store, "preempted")
    assert called(store, "sync", "name=*", **at(server))[0] == 0
    assert server.runs[run.signature].stream["preempting"] is True
    with run.metrics_file.open("a") as file:
        file.write('{"step": 3, "epoch": 1.5, "split": "train", "loss": 0.25}\n')
    status, said = called(store, "sync", "name=*", **at(server))
    assert status == 0, said
    assert "1 of 4 lines of metrics were new" in said
    kept = server.runs[run.signature]
    assert kept.history == {**MERGED, 3: {"epoch": 1.5, "train/loss": 0.25}}
    assert kept.lines == 3


def test_offline_it_is_a_file_and_made_once(store: stores.Store) -> None:
    run = trained(store)
    status, said = called(store, "sync", "--mode", "offline")
    assert status == 0, said
    assert "was sent before" in called(store, "sync", "--mode", "offline")[1]
    (file,) = (store.outputs / "wandb").glob("offline-*/*.wandb")
    assert file.name == f"run-{run.signature}.wandb"
    assert history(stored(file)) == MERGED
    assert summary(stored(file))["accuracy"] == 0.8


def test_a_store_in_outputs_is_filled_once(store: stores.Store) -> None:
    trained(store)
    trained(store, "failed")
    for outcome in ("2 sent", "2 there already"):
        status, said = called(store, "sync", "--to", "trackio")
        assert (status, said.splitlines()[-1]) == (0, f"2 runs: {outcome}.")


@pytest.mark.parametrize("verb", ["sync", "dashboard"])
def test_without_a_key_one_message_says_so(store: stores.Store, verb: str) -> None:
    run = trained(store)
    store.grid("mine", [run])
    status, said = called(store, *([verb] if verb == "sync" else [verb, "mine"]))
    assert status == 2
    assert said.startswith("lora_exp: W&B: No API key configured.")
    assert said.count("\n") == 1


MISTAKES = {
    "--to wandbb": "--to wandbb: Did you mean wandb?",
    "--mode disabled": "--mode disabled: must be one of online, offline.",
    "lora.r=7": "lora.r=7: there is no such run.",
}


@pytest.mark.parametrize("given", MISTAKES)
def test_mistakes(given: str, store: stores.Store, capsys: pytest.CaptureFixture[str]) -> None:
    trained(store)
    status, said = store.say(capsys, "sync", *given.split())
    assert (status, MISTAKES[given] in said) == (2, True), said


def test_a_package_that_is_missing_is_told(
    store: stores.Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lora_exp.runs import checks

    trained(store)
    monkeypatch.setitem(checks.TRACKERS, "trackio", ("no_such_package",))
    checks.is_installed.cache_clear()
    status, said = store.say(capsys, "sync", "--to", "trackio")
    checks.is_installed.cache_clear()
    assert status == 2
    assert "pip install 'lora-exp[trackio]'" in said


def test_a_dashboard_is_saved_and_renewed_in_its_place(
    store: stores.Store, server: wandb_server.Server
) -> None:
    runs = [trained(store, lora__r=rank, tracker__project="p") for rank in (1, 8)]
    store.grid("mine", runs)
    status, said = called(store, "dashboard", "mine", **at(server))
    assert status == 0, said
    assert called(store, "dashboard", "mine", **at(server))[:2] == (0, said)
    workspace, report = said.splitlines()[:2]
    assert workspace.startswith(f"workspace  {server.address}/me/p?nw=")
    assert report.startswith(f"report     {server.address}/me/p/reports/lora_exp-mine--")
    assert [view["type"] for view in server.views.values()] == ["project-view", "runs"]
    assert all("lora.value.r" in view["spec"] for view in server.views.values())


@pytest.mark.parametrize("query", ["allViews", "query SpecificReport"])
def test_a_dashboard_that_cannot_be_looked_up_is_left_as_it_is(
    query: str, store: stores.Store, server: wandb_server.Server
) -> None:
    """Only of one that was deleted at W&B a new one is made."""
    run = trained(store, tracker__project="p")
    store.grid("mine", [run])
    assert called(store, "dashboard", "mine", **at(server))[0] == 0
    before, addresses = dict(server.views), saved(store)
    server.refused = query
    status, said = called(store, "dashboard", "mine", **at(server))
    assert status == 1
    assert said.startswith("lora_exp: dashboard: W&B does not take it (")
    assert "permission denied" in said
    assert (server.views, saved(store)) == (before, addresses)
    server.refused = ""
    server.views.clear()
    status, said = called(store, "dashboard", "mine", **at(server))
    assert status == 0, said
    assert len(server.views) == 2


def saved(store: stores.Store) -> dict[str, str]:
    """Where the dashboard is, as it was kept."""
    (file,) = (store.outputs / "wandb" / "dashboards").iterdir()
    return json.loads(file.read_text())


def test_a_dashboard_of_nothing_is_refused(
    store: stores.Store, capsys: pytest.CaptureFixture[str]
) -> None:
    store.grid("mine", [store.run("queued")])
    status, said = store.say(capsys, "dashboard", "mine")
    assert (status, said) == (2, "lora_exp: dashboard mine: none of these runs is done yet.\n")
    status, said = store.say(capsys, "dashboard", "mien")
    assert status == 2
    assert "there is no such study or grid here. Did you mean mine?" in said
