"""The placement, as it is given on the command line."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore

from lora_exp.cli import CONF
from lora_exp.errors import UserError
from lora_exp.runs.checks import check
from lora_exp.runs.config import PlacementConfig
from lora_exp.runs.values import from_mapping, schema


@pytest.fixture(scope="module", autouse=True)
def conf() -> Iterator[None]:
    """Hydra, set up as the command line does."""
    ConfigStore.instance().store(name="schema", node=schema())
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def placement(*overrides: str) -> PlacementConfig:
    """Of a command line, checked."""
    config = from_mapping(compose("config", list(overrides)))
    check(config)
    return config.lora.placement


@pytest.mark.parametrize("preset", ["qv", "attention", "mlp", "all_linear", "embedding"])
def test_presets(preset: str) -> None:
    assert placement(f"lora/placement={preset}") == PlacementConfig(preset)


@pytest.mark.parametrize(
    ("given", "layers"),
    [("0-5", "0-5"), ("3", "3"), ('"0,2,6-11"', "0,2,6-11"), ('"0, 2"', "0, 2"), ("null", None)],
)
def test_layers(given: str, layers: str | None) -> None:
    assert placement(f"lora.placement.layers={given}").layers == layers


@pytest.mark.parametrize(
    ("given", "pattern"),
    [
        ("={value:16,layer.0.**.query:4}", {"value": 16, "layer.0.**.query": 4}),
        (r"={c_attn\:query:2}", {"c_attn:query": 2}),
        (r"={c_attn\:query\,value:0}", {"c_attn:query,value": 0}),
        (r"={layer.\[0-3\].**.\{query\,key\}:2}", {"layer.[0-3].**.{query,key}": 2}),
        (".query=4", {"query": 4}),
    ],
)
def test_ranks_and_alphas_by_pattern(given: str, pattern: dict[str, int]) -> None:
    assert placement(f"lora.placement.rank_pattern{given}").rank_pattern == pattern
    if 0 not in pattern.values():
        assert placement(f"lora.placement.alpha_pattern{given}").alpha_pattern == pattern


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("lora.placement.layers=a-b", "lora.placement.layers=a-b: must be numbers and ranges"),
        ("lora.placement.layers=1-", "lora.placement.layers=1-: must be numbers and ranges"),
        (
            "lora.placement.rank_pattern={query:-1}",
            "lora.placement.rank_pattern.query=-1: must be at least 0",
        ),
        (
            "lora.placement.alpha_pattern={query:0}",
            "lora.placement.alpha_pattern.query=0.0: must be greater than 0.",
        ),
        (
            "lora.placement.alpha_pattern={query:nan}",
            "lora.placement.alpha_pattern.query=nan: must be a finite number.",
        ),
    ],
)
def test_impossible_values(given: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        placement(given)
    assert message in str(caught.value)
