"""What makes two runs the same run."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pytest

from lora_exp.runs import signature as module
from lora_exp.runs.config import Config, ModelConfig, TaskConfig, TrainConfig
from lora_exp.runs.signature import group, signature, slug
from lora_exp.runs.values import from_mapping

PRINTS = {"data": "files:1", "backbone": "files:2"}


def config(**changes: Any) -> Config:
    made = Config(
        task=TaskConfig(name="rte", text=["a", "b"]),
        model=ModelConfig("roberta-base"),
        train=TrainConfig(lr=5e-4),
    )
    for key, value in changes.items():
        *path, last = key.split("__")
        node = made
        for name in path:
            node = getattr(node, name)
        setattr(node, last, value)
    return made


DECIDING: dict[str, Any] = {
    "seed": 2,
    "method": "full",
    "lora__r": 4,
    "lora__alpha": 8.0,
    "lora__rslora": True,
    "lora__dora": True,
    "lora__lr_ratio": 16.0,
    "lora__bias": "all",
    "lora__train_head": False,
    "lora__placement__preset": "mlp",
    "lora__placement__targets": ["query"],
    "lora__placement__layers": "0-5",
    "lora__placement__rank_pattern": {"query": 4},
    "lora__placement__alpha_pattern": {"query": 4.0},
    "train__lr": 1e-4,
    "train__epochs": 4,
    "train__max_steps": 9,
    "train__batch_size": 16,
    "train__precision": "bf16",
    "train__max_length": 64,
    "train__micro_batch_size": 4,
    "model__dropout": 0.0,
    "task__text": ["a"],
    "task__validation": ["test"],
}
UNDECIDING: dict[str, Any] = {
    "device": "cpu",
    "outputs": "elsewhere",
    "pack__size": 1,
    "rerun": True,
    "tracker__name": "wandb",
    "tracker__tags": ["x"],
    "task__data_dir": "elsewhere",
    "model__name_or_path": "elsewhere/roberta-base",
    "model__init_from": "elsewhere",
    "train__log_every": 1,
    "train__checkpoint_seconds": 1.0,
}


@pytest.mark.parametrize("key", DECIDING)
def test_what_decides_the_result_changes_the_signature(key: str) -> None:
    assert signature(config(**{key: DECIDING[key]}), **PRINTS) != signature(config(), **PRINTS)


@pytest.mark.parametrize("key", UNDECIDING)
def test_where_it_runs_and_who_watches_does_not(key: str) -> None:
    assert signature(config(**{key: UNDECIDING[key]}), **PRINTS) == signature(config(), **PRINTS)


def test_data_and_backbone_count_by_content() -> None:
    other = {"data": "files:3", "backbone": "files:2"}
    assert signature(config(), **other) != signature(config(), **PRINTS)
    other = {"data": "files:1", "backbone": "files:3"}
    assert signature(config(), **other) != signature(config(), **PRINTS)
    assert signature(config(), start="files:4", **PRINTS) != signature(config(), **PRINTS)


def test_what_a_run_does_not_use_does_not_count() -> None:
    full = {"method": "full"}
    assert signature(config(**full, lora__r=4), **PRINTS) == signature(config(**full), **PRINTS)
    steps = {"train__max_steps": 9}
    assert signature(config(**steps, train__epochs=9), **PRINTS) == signature(
        config(**steps), **PRINTS
    )


@pytest.mark.parametrize(
    ("method", "key", "value"),
    [
        ("full_top", "layers", 3),
        ("adapter", "kind", "lin"),
        ("adapter", "size", 8),
        ("prefix", "hidden", None),
        ("prompt", "length", 3),
    ],
)
def test_a_method_is_decided_by_its_own_section(method: str, key: str, value: object) -> None:
    changed = {f"{method}__{key}": value}

    def differs(method: str, **both: object) -> bool:
        plain = signature(config(method=method, **both), **PRINTS)
        return signature(config(method=method, **both, **changed), **PRINTS) != plain

    assert differs(method)
    assert not differs("lora")
    assert differs("adapter", adapter__parameters=9999) == (key == "kind")


def test_a_group_is_runs_that_differ_in_their_seed() -> None:
    assert group(config(seed=1), **PRINTS) == group(config(seed=7), **PRINTS)
    assert group(config(lora__r=4), **PRINTS) != group(config(), **PRINTS)
    assert group(config(), **PRINTS) != signature(config(), **PRINTS)


def test_a_field_added_later_leaves_signatures_as_they_were() -> None:
    @dataclass
    class Later(Config):
        added: int = 3
        many: list[str] = field(default_factory=list)

    old = config()
    new = Later(**{spec.name: getattr(old, spec.name) for spec in fields(old)})
    assert signature(new, **PRINTS) == signature(old, **PRINTS)
    new.added = 4
    assert signature(new, **PRINTS) != signature(old, **PRINTS)


def test_every_key_that_does_not_count_exists() -> None:
    from lora_exp.explain import keys

    known = set(keys()) | {"tracker", "lora", "pack"}
    assert known >= module.UNDECIDING


def test_slugs_are_readable_and_safe_in_paths() -> None:
    assert slug(config()) == "rte-roberta-base-lora-r8-qv-seed1"
    assert slug(config(method="full", seed=3)) == "rte-roberta-base-full-seed3"
    assert slug(config(method="full_top")) == "rte-roberta-base-full-top2-seed1"
    assert slug(config(method="adapter")) == "rte-roberta-base-adapter-houlsby-64-seed1"
    assert slug(config(method="prefix")) == "rte-roberta-base-prefix5-seed1"
    assert slug(config(lora__placement__targets=["query"])).startswith("rte-roberta-base-lora-r8-c")
    odd = config(model__name_or_path="../a b/é;$(x)/", task__name="../x y")
    assert not set(slug(odd)) - set("abcdefghijklmnopqrstuvwxyz0123456789-.")
    assert "package" not in slug(config(model__name_or_path="package:gt_minilm/model"))


def test_the_written_config_is_the_run(tmp_path: Path) -> None:
    from omegaconf import OmegaConf

    from lora_exp.runs.values import to_yaml

    made = config(lora__r=4, tracker__tags=["a: b", "c#"])
    made.lora.placement.rank_pattern = {"layer.[0-3].**.{query,value}": 2, "c_attn:query": 0}
    (tmp_path / "config.yaml").write_text(to_yaml(made))
    assert from_mapping(OmegaConf.load(tmp_path / "config.yaml")) == made
