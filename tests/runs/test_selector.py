"""The language of filters: what matches, and what is refused with the nearest right thing."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest
import stores

from lora_exp.errors import UserError
from lora_exp.runs.records import Records, RunRecord
from lora_exp.runs.selector import Selector


def select(outputs: Path, tokens: Iterable[str]) -> list[RunRecord]:
    return Selector.parse(tokens).among(Records(outputs).runs)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs 1 to 5."""
    store = stores.Store(tmp_path_factory.mktemp("outputs"))
    runs = [
        store.run("done", seed=1, lora__r=2),
        store.run("failed", seed=2, lora__r=4, train__lr=5e-4),
        store.run("queued", seed=3, lora__r=8, task__name="mrpc", rerun=True),
        store.run("cancelled", method="full", model__name_or_path="y/roberta-base/model"),
        store.run("done", lora__placement__targets=["query", "key"], train__max_steps=7),
    ]
    store.grid("first", runs[:2], study="glue")
    store.grid("second", runs[1:3])
    return store.outputs


@pytest.mark.parametrize(
    ("tokens", "meant"),
    [
        ("", "12345"),
        ("task=rte", "1245"),
        ("task=mrpc,cola", "3"),
        ("task.name!=rte", "3"),
        ("task=m*", "3"),
        ("model=tiny", "1235"),
        ("model=roberta*", "4"),
        ("placement=custom", "5"),
        ("lora/placement=qv", "1234"),
        ("lora.placement.targets=key", "5"),
        ("lora.placement.targets=null", "1234"),
        ("lora.r>4", "345"),
        ("lora.r>=4 lora.r<8", "2"),
        ("lora.r > 4", "345"),
        ("lora.r=2,4", "12"),
        ("lora.r!=2,4", "345"),
        ("train.lr=0.0005", "2"),
        ("train.lr=5e-4", "2"),
        ("train.lr<1e-3", "2"),
        ("train.max_steps<100", "5"),
        ("train.max_steps=null", "1234"),
        ("seed=1", "145"),
        ("seed==1", "145"),
        ("rerun=true", "3"),
        ("method='full'", "4"),
        ("state=done", "15"),
        ("state=failed,cancelled", "24"),
        ("state!=done lora.r=8", "34"),
        ("grid=first", "12"),
        ("grid=*", "123"),
        ("grid!=first", "345"),
        ("study=glue", "12"),
        ("group=group-of-rte-2", "1"),
        ("signature=*1", "1"),
        ("name=*mrpc*", "3"),
        ("grid=second state=failed", "2"),
    ],
)
def test_filters(tokens: str, meant: str, outputs: Path) -> None:
    in_one = select(outputs, [tokens])
    assert "".join(sorted(run.signature[-1] for run in in_one)) == meant
    if " > " not in tokens:
        assert [run.name for run in select(outputs, tokens.split())] == [r.name for r in in_one]


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ("tsk=rte", "tsk=rte: there is no such key. Did you mean task?"),
        ("r=4", "r=4: there is no such key. Did you mean lora.r?"),
        ("rte", "rte: a filter is KEY=VALUE"),
        ("task=", "task=: a filter is KEY=VALUE"),
        ("task=rte mrpc", "mrpc: a filter is KEY=VALUE"),
        ("lora.r>x", "lora.r>x: x is no number."),
        ("lora.r=four", "lora.r=four: four is no number"),
        ("task>rte", "task>rte: task is no number; compare it with = or !=."),
        ("task.name<3", "task.name<3: task.name is no number"),
        ("state=faild", "state=faild: Did you mean failed?"),
        ("rerun=yes", "rerun=yes: rerun is true or false."),
        ("task=mrpcc", "task=mrpcc: there is no such run. Did you mean mrpc?"),
        ("grid=frist", "grid=frist: there is no such run. Did you mean first?"),
        ("seed=9", "seed=9: there is no such run. There are 1, 2, 3."),
    ],
)
def test_what_is_refused(tokens: str, message: str, outputs: Path) -> None:
    with pytest.raises(UserError) as caught:
        select(outputs, [tokens])
    assert message in str(caught.value)


def test_values_that_some_run_has_may_match_none_together(outputs: Path) -> None:
    assert select(outputs, ["task=mrpc", "lora.r=2"]) == []
    assert select(outputs, ["state=preempted"]) == []
    assert select(outputs / "nowhere", ["task=rte"]) == []


def test_older_runs(tmp_path: Path) -> None:
    """Their config stands in config.yaml alone, without the fields of today."""
    store = stores.Store(tmp_path)
    folder = store.run(lora__r=4)
    (folder.path / "run.json").write_text(json.dumps({"group": "g"}))
    kept = (folder.path / "config.yaml").read_text().splitlines()
    (folder.path / "config.yaml").write_text(
        "\n".join(line for line in kept if "rslora" not in line)
    )
    assert len(select(tmp_path, ["lora.r=4 lora.rslora=false train.lr<1"])) == 1


def test_a_filter_says_what_it_is() -> None:
    selector = Selector.parse(["state=failed", "lora.r>4"])
    assert selector
    assert not Selector.parse([])
    assert selector.names("state")
    assert not selector.names("grid")
    assert {*str(selector).split()} == {"state=failed", "lora.r>4"}
