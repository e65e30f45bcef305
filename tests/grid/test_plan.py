"""From points to runs: nothing twice, nothing started while anything is wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lora_exp.errors import UserError
from lora_exp.grid import plan
from lora_exp.grid.packs import pack_key
from lora_exp.grid.plan import Plan, Point, distinguishing, freeze, make
from lora_exp.grid.stages import take
from lora_exp.runs.config import (
    AdapterConfig,
    Config,
    LoraConfig,
    ModelConfig,
    PackConfig,
    PlacementConfig,
    PrefixConfig,
    PromptConfig,
    TaskConfig,
    TrainConfig,
)
from lora_exp.runs.records import Records
from lora_exp.runs.selector import Selector

LOCAL = {"name": "local"}


@pytest.fixture
def base(tiny: Path, tmp_path: Path) -> Config:
    """A run that could be trained."""
    return Config(
        task=TaskConfig("agreement", kind="agreement"),
        model=ModelConfig(str(tiny)),
        train=TrainConfig(lr=1e-3),
        outputs=str(tmp_path / "outputs"),
    )


def point(config: Config, **changes: Any) -> Point:
    """A point with these overrides of the config itself, or of `lora` (`r`)."""
    overrides = [f"{key}={value}" for key, value in changes.items()]
    lora = replace(config.lora, r=changes.pop("r", config.lora.r))
    return Point(overrides, lambda: replace(config, lora=lora, **changes))


def shown(planned: Plan) -> list[tuple[int, int]]:
    return [(run.config.lora.r, run.config.seed) for run in planned.runs]


# -- make ----------------------------------------------------------------------------------------


def test_each_run_stands_once_in_the_order_of_the_points(base: Config, tmp_path: Path) -> None:
    points = [point(base, r=r, seed=seed) for r, seed in [(4, 1), (2, 1), (4, 1), (2, 2), (2, 1)]]
    planned = make(points)
    assert shown(planned) == [(4, 1), (2, 1), (2, 2)]
    assert planned.of_point == [0, 1, 0, 2, 1]
    assert planned.runs[0].overrides == ["r=4", "seed=1"]
    assert len(planned.to_train) == 3
    assert not (tmp_path / "outputs").exists()


def test_points_that_differ_in_nothing_that_decides_are_one_run(base: Config) -> None:
    planned = make([point(base), point(base, pack=PackConfig(2))])
    assert len(planned.runs) == 1
    assert planned.of_point == [0, 0]


def test_a_grid_is_for_one_kind_of_device(base: Config) -> None:
    assert make([point(base, device="cpu", seed=seed) for seed in (1, 2)]).device == "cpu"
    with pytest.raises(UserError, match="device=auto,cpu: one grid has one kind of device"):
        make([point(base, device="cpu"), point(base, device="auto")])


def test_runs_with_a_result_are_not_trained_unless_asked_for(base: Config) -> None:
    points = [point(base, seed=1), point(base, seed=2)]
    first = make(points)
    freeze(first, LOCAL, None)
    first.runs[0].folder.finish({"metrics": {"accuracy": 1.0}})
    again = make(points)
    assert [run.done for run in again.runs] == [True, False]
    assert [run.config.seed for run in again.to_train] == [2]
    rerun = make([point(base, seed=1, rerun=True)])
    assert not rerun.runs[0].done


def test_everything_wrong_with_any_point_is_told_at_once(base: Config, tmp_path: Path) -> None:
    def unknown() -> Config:
        raise UserError("lora.rr: there is no such key.\n  Did you mean lora.r?")

    points = [
        point(base, r=0, seed=1),
        point(base, r=0, seed=-1),
        point(base, r=2, seed=1),
        Point(["lora.rr=3", "seed=1"], unknown),
    ]
    with pytest.raises(UserError) as error:
        make(points)
    assert str(error.value).splitlines() == [
        "lora.r=0: must be greater than 0.",
        "  at r=0 seed=1; r=0 seed=-1",
        "seed=-1: must lie between 0 and 2^32 - 1.",
        "  at r=0 seed=-1",
        "lora.rr: there is no such key.",
        "  Did you mean lora.r?",
        "  at lora.rr=3 seed=1",
    ]
    assert not (tmp_path / "outputs").exists()


def test_what_is_wrong_with_all_points_is_told_without_naming_them(base: Config) -> None:
    with pytest.raises(UserError) as error:
        make([point(base, r=-1, seed=seed) for seed in range(1, 9)])
    assert str(error.value) == "lora.r=-1: must be greater than 0."
    with pytest.raises(UserError, match=r"at seed=1 r=-1; seed=2 r=-1; seed=3 r=-1; and 5 more$"):
        make([point(base, seed=s, r=r) for r in (-1, 1) for s in range(1, 9)])


def test_runs_that_want_several_devices_are_not_for_a_grid(base: Config) -> None:
    with pytest.raises(UserError, match=r"train\.devices=2 train\.nodes=1: a grid trains"):
        make([point(base, seed=seed, train=TrainConfig(lr=1e-3, devices=2)) for seed in (1, 2)])


def test_a_name_that_the_grid_cannot_have_is_told_at_once(base: Config) -> None:
    with pytest.raises(UserError, match="grid=a/b: a name is made of letters"):
        make([point(base, grid="a/b", dry_run=True)])


def test_a_model_that_is_not_there_is_looked_for_once(
    base: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []

    def identify(config: Config) -> None:
        looked.append(config.model.name_or_path)
        raise UserError(f"{config.model.name_or_path}: cannot be found.")

    monkeypatch.setattr(plan, "identify", identify)
    with pytest.raises(UserError, match=r"^nowhere: cannot be found\.$"):
        make([point(base, seed=s, model=ModelConfig("nowhere")) for s in range(20)])
    assert looked == ["nowhere"]


def test_an_outputs_folder_that_cannot_be_written_is_told(base: Config, tmp_path: Path) -> None:
    (tmp_path / "outputs").write_text("a file")
    with pytest.raises(UserError, match="is not a folder that can be written to"):
        make([point(base, seed=1), point(base, seed=2)])


# -- freeze --------------------------------------------------------------------------------------


def test_runs_are_written_down_before_they_are_trained(
    base: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    original = plan.provenance

    def provenance(**about: Any) -> tuple[dict[str, Any], str]:
        asked.append("git")
        return original(**about)

    monkeypatch.setattr(plan, "provenance", provenance)
    planned = make([point(base, seed=seed) for seed in (1, 2, 3)])
    freeze(planned, LOCAL, "A GPU")
    assert asked == ["git"], "once a grid"
    for run in planned.runs:
        assert run.folder.config == run.config
        origin = run.folder.provenance
        assert origin["signature"] == run.folder.signature == run.identity.signature
        assert origin["group"] == run.identity.group
        assert origin["content"] == run.identity.content
        assert origin["overrides"] == [f"seed={run.config.seed}"]
        assert origin["gpu"] == "A GPU"
        assert (run.folder.path / "status.json").exists()
        assert run.folder.status["state"] == "queued"


def test_what_is_there_already_stays(base: Config) -> None:
    points = [point(base, seed=1), point(base, seed=2)]
    freeze(make(points), LOCAL, None)
    folder = make(points).runs[0].folder
    folder.set_status("preempted", attempt=3, pack="P")
    freeze(make(points), LOCAL, "another")
    assert folder.provenance["gpu"] is None
    assert folder.status["state"] == "queued"
    assert folder.status["attempt"] == 3
    assert folder.status["pack"] == "P"


def test_a_grid_keeps_its_study_and_gets_runs_that_are_done(base: Config, tmp_path: Path) -> None:
    first = make([point(base, grid="g", seed=1)])
    assert first.joins
    grid = freeze(first, LOCAL, None, "glue")
    assert not first.joins
    more = make([point(base, grid="g", seed=1), point(base, grid="g", seed=2)])
    assert more.joins
    freeze(more, LOCAL, None)
    assert grid.record["study"] == "glue"
    assert not make([point(base, seed=3)]).joins, "it has no name"
    found = Selector.parse(["study=glue"]).among(Records(tmp_path / "outputs").runs)
    assert len(found) == 2


def test_a_run_that_another_process_trains_is_not_touched(base: Config) -> None:
    planned = make([point(base, seed=1), point(base, seed=2)])
    folder = planned.runs[0].folder
    with folder.lock():
        freeze(planned, LOCAL, None)
    assert not folder.path.exists()
    assert planned.runs[1].folder.path.exists()


def test_a_run_that_is_trained_again_keeps_its_former_result(base: Config, tmp_path: Path) -> None:
    freeze(make([point(base)]), LOCAL, None)
    make([point(base)]).runs[0].folder.finish({"metrics": {"accuracy": 0.25}})
    again = make([point(base, rerun=True)])
    freeze(again, LOCAL, None)
    (kept,) = (tmp_path / "outputs" / "superseded").iterdir()
    assert "0.25" in (kept / "result.json").read_text()
    folder = again.runs[0].folder
    assert folder.status["state"] == "queued"
    assert not folder.config.rerun, "a worker that goes on with it must not start again"


# -- packs ---------------------------------------------------------------------------------------

TOGETHER: list[dict[str, Any]] = [
    {"seed": 7},
    {"lora": LoraConfig(r=2, alpha=3.0, dropout=0.1, lr_ratio=16.0, rslora=True)},
    {"lora": LoraConfig(placement=PlacementConfig(rank_pattern={"query": 2}))},
    {"train": TrainConfig(lr=3e-4, batch_size=7, epochs=9)},
    {"task": TaskConfig("rte", text=["a", "b"])},
]
APART: list[dict[str, Any]] = [
    {"model": ModelConfig("another")},
    {"model": ModelConfig("m", dropout=0.2)},
    {"train": TrainConfig(lr=1e-3, precision="bf16")},
    {"train": TrainConfig(lr=1e-3, gradient_checkpointing=True)},
    {"lora": LoraConfig(placement=PlacementConfig("mlp"))},
    {"lora": LoraConfig(placement=PlacementConfig(layers="0-1"))},
    {"lora": LoraConfig(placement=PlacementConfig(targets=["query"]))},
    {"lora": LoraConfig(placement=PlacementConfig(rank_pattern={"query": 0}))},
    {"pack": PackConfig(4)},
]
OTHERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # what may differ, and what not
    "adapter": (
        {"adapter": AdapterConfig(size=3)},
        {"adapter": AdapterConfig(kind="lin")},
    ),
    "bitfit": ({"seed": 7}, {"model": ModelConfig("another")}),
    "prefix": (
        {"prefix": PrefixConfig(length=3, hidden=None)},
        {"train": TrainConfig(lr=1e-3, precision="bf16")},
    ),
    "prompt": ({"prompt": PromptConfig(length=3)}, {"method": "prefix"}),
}
ALONE: list[dict[str, Any]] = [
    {"method": "full"},
    {"method": "full_top"},
    {"lora": LoraConfig(dora=True)},
    {"lora": LoraConfig(init="pissa")},
    {"lora": LoraConfig(bias="all")},
    {"pack": PackConfig(1)},
]
PACKED = Config(task=TaskConfig("t"), model=ModelConfig("m"), train=TrainConfig(lr=1e-3))


@pytest.mark.parametrize("changes", TOGETHER, ids=str)
def test_what_may_differ_within_a_pack(changes: dict[str, Any]) -> None:
    assert pack_key(replace(PACKED, **changes)) == pack_key(PACKED) is not None


@pytest.mark.parametrize("changes", APART, ids=str)
def test_what_is_shared_by_a_pack(changes: dict[str, Any]) -> None:
    assert pack_key(replace(PACKED, **changes)) not in (None, pack_key(PACKED))


@pytest.mark.parametrize("method", OTHERS)
def test_runs_of_other_methods_make_packs_of_their_own(method: str) -> None:
    base, (alike, apart) = replace(PACKED, method=method), OTHERS[method]
    assert pack_key(base) not in (None, pack_key(PACKED))
    assert pack_key(replace(base, **alike)) == pack_key(base)
    assert pack_key(replace(base, **apart)) not in (None, pack_key(base))
    placed = replace(base, lora=LoraConfig(placement=PlacementConfig("mlp")))
    assert pack_key(placed) == pack_key(base), "what is LoRA's alone does not part them"


@pytest.mark.parametrize("changes", ALONE, ids=str)
def test_what_trains_alone(changes: dict[str, Any]) -> None:
    assert pack_key(replace(PACKED, **changes)) is None


def test_the_start_and_the_order_of_targets_do_not_part_a_pack() -> None:
    started = replace(PACKED, model=ModelConfig("m", init_from="there"))
    assert pack_key(started) == pack_key(PACKED)
    one, other = (
        replace(PACKED, lora=LoraConfig(placement=PlacementConfig(targets=targets)))
        for targets in (["query", "value"], ["value", "query"])
    )
    assert pack_key(one) == pack_key(other)


# -- stages --------------------------------------------------------------------------------------


def from_best(base: Config, choice: str, **changes: Any) -> Point:
    return point(base, model=replace(base.model, init_from=f"best:{choice}"), **changes)


def test_what_starts_from_the_best_of_others_waits_for_them(base: Config) -> None:
    points = [
        from_best(base, "seed=1,2", seed=3),
        point(base, seed=1),
        point(base, seed=2, r=4),
        point(base, seed=2),
    ]
    first = make(points)
    assert [(run.config.seed, run.config.lora.r) for run in first.runs] == [(1, 8), (2, 4), (2, 8)]
    assert [one.settings.seed for one in first.later] == [3]
    assert first.of_point == [3, 0, 1, 2]
    grid = freeze(first, LOCAL, None)
    (waiting,) = take(grid)
    assert waiting.overrides == points[0].overrides
    assert waiting.settings.grid == grid.name
    assert take(grid) == [], "only one process goes on with it"

    for number, score in ((0, 0.5), (1, 0.9), (2, 0.7)):  # the second has another rank
        folder = first.runs[number].folder
        folder.finish({"metrics": {"loss": 9.0, "accuracy": score}})
        folder.adapter.mkdir()
    then = make(points)
    assert not then.later
    (last,) = then.to_train
    assert last.config.seed == 3
    assert last.config.model.init_from == str(first.runs[2].folder.adapter)
    assert take(freeze(then, LOCAL, None)) == []


def test_a_run_that_failed_is_not_waited_for(base: Config) -> None:
    points = [point(base, seed=1), from_best(base, "seed=1", seed=3)]
    freeze(make(points), LOCAL, None)
    make(points).runs[0].folder.set_status("failed", reason="nan")
    with pytest.raises(UserError, match=r"init_from=best:seed=1: no run of this backbone"):
        make(points)


@pytest.mark.parametrize(
    ("choice", "message"),
    [("seed=7", "no run of this backbone, method and placement"), ("sed=1", "no such key")],
)
def test_a_best_that_can_never_be_is_told_at_once(base: Config, choice: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make([point(base, seed=1), from_best(base, choice, seed=3)])


# -- names ---------------------------------------------------------------------------------------


def test_points_are_named_by_what_tells_them_apart() -> None:
    points = [["task=rte", "r=1", "seed=1"], ["task=rte", "r=2", "seed=1"]]
    assert distinguishing(points) == ["r=1", "r=2"]
    assert distinguishing(points[:1]) == [""], "there is nothing to tell it from"
    assert distinguishing([]) == []
