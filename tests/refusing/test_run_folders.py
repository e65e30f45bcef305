"""Runs of which a file is damaged: the others are told of all the same, and nothing gets worse."""

from __future__ import annotations

import json
import os
from pathlib import Path

import commands
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from stores import RESULT, Store

from lora_exp.runs.folder import RunFolder

LONG = commands.LONG in os.environ
JSON = {
    "empty": "",
    "cut": '{"state": "done", "metri',
    "garbage": "\x00\x01\x02",
    "no UTF-8": b'{"state": "\xff"}',
    "a list": "[]",
    "a text": '"done"',
    "a number": "3",
    "null": "null",
    "another state": '{"state": "over", "metrics": {"accuracy": "high"}, "config": {"task": 3}}',
    "wrong types": '{"state": "done", "step": "x", "metrics": [], "group": {}, "config": []}',
    "nested deeply": "[" * 100_000,
}
FILES = ("status.json", "result.json", "run.json")
LOOKING = {
    "status": ["status"],
    "by grid": ["status", "--by", "grid"],
    "by group": ["status", "--by", "group"],
    "filtered": ["status", "task=rte", "lora.r>1"],
    "report": ["report"],
    "report to a file": ["report", "--json", "-"],
    "cancel": ["cancel", "state=done"],
}


def damage(run: RunFolder, file: str, content: str | bytes) -> None:
    data = content if isinstance(content, bytes) else content.encode()
    (run.path / file).write_bytes(data)


@pytest.mark.parametrize("how", JSON)
@pytest.mark.parametrize("file", FILES)
def test_the_other_runs_are_told_of(store: Store, file: str, how: str) -> None:
    runs = [store.run("done", seed=seed) for seed in (1, 2, 3)]
    broken = runs[0]
    damage(broken, file, JSON[how])
    before = {path: path.read_bytes() for path in broken.path.iterdir() if path.is_file()}
    for name, words in LOOKING.items():
        ended = commands.run(*words, "--outputs", str(store.outputs))
        assert (ended.status, ended.errors) == (0, ""), name
        assert "80.00" in ended.output or name != "report"
        if name == "status":
            assert all(run.name in ended.output for run in runs)
            assert file == "run.json" or file in ended.output
    shown = commands.run("show", broken.name, "--outputs", str(store.outputs))
    assert shown.status == 0
    assert f"there: {file}" in shown.output
    for words in (["compare", broken.name, runs[1].name], ["logs", broken.name]):
        assert commands.run(*words, "--outputs", str(store.outputs)).status == 0
    assert {path: path.read_bytes() for path in before} == before, "looking changes nothing"


@pytest.mark.parametrize("how", JSON)
def test_a_damaged_result_is_neither_lost_nor_believed(store: Store, how: str) -> None:
    run = store.run("done")
    damage(run, "result.json", JSON[how])
    kept = (run.path / "result.json").read_bytes()
    for words in (["export", run.name, "--to", "peft", "--out", str(store.outputs / "x")],):
        told = commands.run(*words, "--outputs", str(store.outputs)).message
        assert str(run.path / "result.json") in told
        assert "damaged" in told
    ended = commands.run("retry", "state=failed", "--outputs", str(store.outputs))
    assert "nothing to retry" in ended.output
    assert "result.json: it is damaged" in ended.errors
    assert (run.path / "result.json").read_bytes() == kept


CONFIGS = {
    "an unknown key": "lora: {rr: 4}\n",
    "an unknown section": "loar: {r: 4}\n",
    "another type": "train: {lr: fast}\n",
    "no mapping": "- 1\n",
    "no YAML": "task: [\n",
    "a tag": "seed: !!python/object/apply:os.mkdir [PLACE]\n",
    "no UTF-8": b"seed: \xff\n",
    "aliases of aliases": "a0: &a0 [1]\n"
    + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 16)),
    "nested deeply": "[" * 100_000,
    "nothing": "",
}


@pytest.mark.parametrize("how", CONFIGS)
@pytest.mark.parametrize("verb", ["rerun", "retry"])
def test_a_damaged_config_starts_nothing(store: Store, tmp_path: Path, how: str, verb: str) -> None:
    run = store.run("failed")
    content = CONFIGS[how]
    if isinstance(content, str):
        content = content.replace("PLACE", str(tmp_path / "was-run"))
    damage(run, "config.yaml", content)
    words = [verb, run.name if verb == "rerun" else f"name={run.name}"]
    ended = commands.run(*words, "--outputs", str(store.outputs))
    assert f"{run.path / 'config.yaml'}: it is damaged" in ended.errors
    assert "nobody knows what was to be trained" in ended.errors
    assert ended.status == 2 or "nothing to retry" in ended.output
    assert store.states() == {"1": "failed"}
    assert not (tmp_path / "was-run").exists()


LINES = ["", "{", "[]", "3", '{"step": 1, "split": "validation"', "\x00", '{"a": "\\ud800"}']


def test_damaged_metrics_are_left_out(store: Store) -> None:
    runs = [store.run("running", {"step": 3, "total_steps": 9}, seed=seed) for seed in (1, 2)]
    whole = {"step": 3, "epoch": 1.0, "split": "validation", "loss": 0.1, "accuracy": 0.5}
    for run in runs:
        run.metrics_file.write_text("\n".join([*LINES, json.dumps(whole), "{broken}", ""]))
    assert list(runs[0].metrics()) == [whole]
    for words in (["status"], ["report"], ["compare", runs[0].name, runs[1].name]):
        ended = commands.run(*words, "--outputs", str(store.outputs))
        assert (ended.status, ended.errors) == (0, "")
    assert "accuracy 0.5000" in commands.run("status", "--outputs", str(store.outputs)).output


DAMAGED_GRIDS = ["", "[]", "{", '{"runs": 3}', '{"name": "g", "runs": ["x"], "launcher": 3}']


@pytest.mark.parametrize("content", DAMAGED_GRIDS)
def test_a_damaged_grid_hides_no_run(store: Store, content: str) -> None:
    run = store.run("done")
    grid = store.grid("g", [run])
    (grid / "grid.json").write_text(content)
    (grid / "jobs.jsonl").write_text("{\n[]\n")
    for words in (["status"], ["status", "--by", "grid"], ["show", run.name], ["report"]):
        ended = commands.run(*words, "--outputs", str(store.outputs))
        assert (ended.status, ended.errors) == (0, "")
        assert any(told in ended.output for told in (run.name, "1 run: 1 done", "80.00"))


WORDS = st.text(max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | WORDS,
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(WORDS, inside, max_size=3),
    max_leaves=5,
)
KEYS = ["state", "step", "metrics", "best_epoch", "config", "group", "git", "packages", "missing"]
OBJECTS = st.dictionaries(st.sampled_from([*KEYS, *RESULT]), VALUES, max_size=6)


@settings(
    max_examples=500 if LONG else 25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.sampled_from(FILES), OBJECTS, st.booleans())
@example("result.json", {"missing": None}, True)
@example("result.json", {"missing": {"bleu": ["no Java"]}}, True)
def test_no_json_breaks_a_look(store: Store, file: str, values: dict, on_top: bool) -> None:
    if not store.made:
        store.run("done")
        store.run("failed", {"reason": "x"})
    run = RunFolder(min((store.outputs / "runs").iterdir()))
    kept = (run.path / file).read_text()
    content = json.loads(kept) | values if on_top else values
    (run.path / file).write_text(json.dumps(content))
    try:
        for words in (["status"], ["report"], ["show", run.name]):
            ended = commands.run(*words, "--outputs", str(store.outputs))
            assert (ended.status, ended.errors) == (0, "")
    finally:
        (run.path / file).write_text(kept)
