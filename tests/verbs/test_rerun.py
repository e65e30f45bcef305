"""`rerun`: with which config a run is trained again, and what it says of the code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from stores import RESULT, Store

from lora_exp.runs import provenance
from lora_exp.runs.config import Config
from lora_exp.train import job

Capture = pytest.CaptureFixture[str]
NOW = {"commit": "b" * 40, "dirty": True}
PATCH = "diff --git a/lora_exp/x.py b/lora_exp/x.py\n+1\n"


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Config, list[str]]]:
    """What was to be trained."""
    given: list[tuple[Config, list[str]]] = []

    def execute(config: Config, overrides: list[str]) -> dict[str, Any]:
        given.append((config, overrides))
        return RESULT

    monkeypatch.setattr(job, "execute", execute)
    monkeypatch.setattr(provenance, "git_state", lambda file: (NOW, PATCH))
    monkeypatch.setattr(provenance, "_versions", lambda: {"torch": "2.13", "numpy": "2"})
    return given


Executed = list[tuple[Config, list[str]]]


def test_the_same_run(store: Store, capsys: Capture, executed: Executed) -> None:
    run = store.run("done", lora__r=4, outputs="/elsewhere")
    origin = {"overrides": ["lora.r=4"]}
    (run.path / "run.json").write_text(json.dumps(origin))
    status, text = store.say(capsys, "rerun", run.name)
    ((config, overrides),) = executed
    assert status == 0
    assert config.rerun
    assert config.lora.r == 4
    assert overrides == ["lora.r=4"]
    assert Path(config.outputs) == store.outputs, "where it is now"
    assert "accuracy" in text


def test_another_run_with_all_else_the_same(
    store: Store, capsys: Capture, executed: Executed
) -> None:
    run = store.run("done", lora__r=4, seed=7)
    overrides = ["lora.r=16", "lora.placement.targets=[query]", "train.max_steps=null"]
    assert store.say(capsys, "rerun", run.name, *overrides)[0] == 0
    config = executed[0][0]
    assert (config.lora.r, config.seed, config.lora.placement.targets) == (16, 7, ["query"])
    assert not config.rerun, "it is new, or done"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lora.rr=4", "lora.rr: there is no such key. Did you mean lora.r"),
        ("lora.r=0", "lora.r=0: must be greater than 0."),
        ("lora.r=x", "lora.r: Value 'x'"),
        ("lora.r=1,2", "lora.r=1,2: rerun takes one value for each key."),
        ("+lora.new=1", "+lora.new=1: rerun takes KEY=VALUE."),
        ("task=mrpc", "task=mrpc: rerun changes single values, and this chooses a file."),
        ("lora/placement=all_linear", "rerun changes single values"),
        ("hydra/launcher=local", "rerun"),
    ],
)
def test_what_is_refused(
    override: str, message: str, store: Store, capsys: Capture, executed: Executed
) -> None:
    run = store.run("done")
    status, text = store.say(capsys, "rerun", run.name, override)
    assert (status, executed) == (2, [])
    assert message in text


def test_what_is_not_as_it_was(store: Store, capsys: Capture, executed: Executed) -> None:
    run = store.run("done")
    origin: dict[str, Any] = {
        "git": {"commit": "a" * 40, "dirty": False},
        "packages": {"torch": "2.11", "numpy": "2"},
        "host": "there",
    }
    (run.path / "run.json").write_text(json.dumps(origin))
    text = store.say(capsys, "rerun", run.name)[1]
    assert "code: commit aaaaaaaaaaaa then, commit bbbbbbbbbbbb now" in text
    assert "uncommitted changes: none then, lora_exp/x.py now" in text
    assert "torch: 2.11 then, 2.13 now" in text
    assert "numpy" not in text
    assert "host: there then" in text


@pytest.mark.parametrize("old", [True, False])
def test_the_same_code(old: bool, store: Store, capsys: Capture, executed: Executed) -> None:
    run = store.run("done")
    git: dict[str, Any] = dict(NOW)
    if old:  # the patch stood in run.json
        git["patch"] = PATCH
    else:
        (run.path / "code.patch").write_text(PATCH)
    (run.path / "run.json").write_text(json.dumps({"git": git}))
    assert "code: as it was then" in store.say(capsys, "rerun", run.name)[1]
