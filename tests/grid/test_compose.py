"""Points are composed quickly, and as Hydra composes them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from hydra_plugins.lora_exp_launch.compose import Composer
from hydra_plugins.lora_exp_launch.launcher import LocalLauncher
from lora_exp import cli
from lora_exp.errors import UserError
from lora_exp.grid.table import Outcome
from lora_exp.runs.values import schema

POINTS = [
    "lora.r=4 seed=2",
    "seed=2 lora.r=4",
    "task=rte lora.r=4",
    "task=mrpc lora.r=4 train.lr=1e-4",
    "experiment=roberta_base/mnli method=bitfit train.epochs=1",
    "lora/placement=mlp 'lora.placement.rank_pattern={query:2}'",
    "task=rte lora.placement.targets=[query,value] model.dropout=0.1",
    "+lora.placement.rank_pattern.query=3 seed=4 lora.r=2",
    "++seed=3 seed=5",
    "~experiment seed=6",
    "task.labels=null task.text=[a,b] tracker.tags=[x]",
    "lora={r:3,alpha:2} lora.r=5",
    "outputs=${hydra:runtime.cwd}/x seed=7",
    "train.lr=${lora.alpha} lora.alpha=3",
]


@pytest.fixture
def hydra() -> Iterator[tuple[ConfigLoader, DictConfig]]:
    GlobalHydra.instance().clear()
    ConfigStore.instance().store(name="schema", node=schema())
    with initialize_config_dir(str(cli.CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        given = ["hydra.mode=MULTIRUN", "hydra.verbose=true"]
        yield loader, loader.load_configuration("config", given, RunMode.MULTIRUN)


def plain(composed: Any) -> Any:
    """A config as dictionaries and lists."""
    if isinstance(composed, DictConfig):
        return OmegaConf.to_container(composed)
    return composed


def test_points_are_composed_as_hydra_does(hydra: tuple[ConfigLoader, DictConfig]) -> None:
    loader, master = hydra
    compose = Composer(loader, master)
    for point in POINTS:
        overrides = [word.strip("'") for word in point.split()]
        expected = loader.load_sweep_config(master, overrides)
        with open_dict(expected):
            del expected["hydra"]
        assert plain(compose(overrides)) == plain(expected), point


@pytest.mark.parametrize(
    "point", ["lora.rr=3", "lora.r=a", "task=nothing", "lora.r=1 +seed=3", "train=3", "x@y=z"]
)
def test_what_hydra_refuses_is_refused(point: str, hydra: tuple[ConfigLoader, DictConfig]) -> None:
    loader, master = hydra
    with pytest.raises((HydraException, OmegaConfBaseException)):
        loader.load_sweep_config(master, point.split())
    with pytest.raises((HydraException, UserError)):
        cli.config_of(Composer(loader, master)(point.split()))


def test_files_are_read_once_for_the_points_that_choose_the_same(
    hydra: tuple[ConfigLoader, DictConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    loader, master = hydra
    original = loader.load_sweep_config
    composed: list[list[str]] = []

    def load_sweep_config(master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        composed.append(sweep_overrides)
        return original(master_config, sweep_overrides)

    monkeypatch.setattr(loader, "load_sweep_config", load_sweep_config)
    compose = Composer(loader, master)
    configs = [
        plain(compose([f"task={t}", f"lora.r={r}"])) for r in (1, 2, 3) for t in ("rte", "mrpc")
    ]
    assert composed == [["task=rte"], ["task=mrpc"]]
    assert [(config["task"]["name"], config["lora"]["r"]) for config in configs[:3]] == [
        ("rte", 1),
        ("mrpc", 1),
        ("rte", 2),
    ]


def test_a_grid_is_told_its_study(
    hydra: tuple[ConfigLoader, DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader, _ = hydra
    given = ["study=roberta_base_glue", f"outputs={tmp_path}"]
    config = loader.load_configuration("config", given, RunMode.MULTIRUN)
    told: list[str | None] = []

    def train(points: object, study: str | None) -> list[Outcome]:
        told.append(study)
        return []

    monkeypatch.setattr("lora_exp.grid.local.train", train)
    launcher = LocalLauncher()
    context = HydraContext(config_loader=loader, callbacks=Callbacks())
    launcher.setup(hydra_context=context, task_function=print, config=config)
    launcher.launch([], 0)
    assert told == ["roberta_base_glue"]


def test_outputs_that_cannot_be_written_are_told_before_anything_is_made(
    hydra: tuple[ConfigLoader, DictConfig], tmp_path: Path
) -> None:
    loader, _ = hydra
    (tmp_path / "file").touch()
    given = [f"outputs={tmp_path / 'file'}"]
    config = loader.load_configuration("config", given, RunMode.MULTIRUN)
    context = HydraContext(config_loader=loader, callbacks=Callbacks())
    with pytest.raises(UserError, match="is not a folder that can be written to"):
        LocalLauncher().setup(hydra_context=context, task_function=print, config=config)
