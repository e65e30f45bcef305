"""Every key of the config with values of wrong types and out of range, derived from the schema."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import commands
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_exp import cli
from lora_exp.errors import UserError
from lora_exp.runs.checks import check
from lora_exp.runs.config import Config

LONG = commands.LONG in os.environ
MAPPING, NESTED, ESCAPE = "{a: 1}", "[[1]]", '"\x1b[31m"'
WRONG: dict[Any, list[str]] = {
    int: ["many", "1.5", "[1]", MAPPING, "true", "1e400", "'1 2'", "-1", str(10**30)],
    float: ["fast", "[1]", MAPPING, "nan", "inf", "-inf", "-1", "'1,5'", "1e39"],
    bool: ["maybe", "[true]", MAPPING, "1.5", "'true '"],
    str: ["[1]", MAPPING, "''", ESCAPE, '"a\x00b"', '"a\x9bb"'],
    list: ["word", MAPPING, NESTED, "[{a: 1}]", "3", f"[{ESCAPE}]"],
    dict: ["word", "[1]", "{a: word}", "{a: null}", "{a: [1]}", "3", "{a: 1e39}", "{a: -1}"],
}
"""By the type of a key, values that it cannot have."""
SENSIBLE = {
    "decoding.length_penalty": ["-1"],  # shorter texts are worth more
}
"""By key, what of these is sensible all the same."""


def keys(node: type = Config, prefix: str = "") -> Iterator[tuple[str, Any, bool]]:
    """Every key, its type, and whether it may be null."""
    hints = get_type_hints(node)
    for spec in fields(node):
        hint, key = hints[spec.name], prefix + spec.name
        if is_dataclass(hint):
            assert isinstance(hint, type)
            yield from keys(hint, f"{key}.")
            continue
        optional = type(None) in get_args(hint)
        kind = next(one for one in get_args(hint) or (hint,) if one is not type(None))
        if get_origin(hint) in (list, dict):
            kind = hint
        yield key, get_origin(kind) or kind, optional


KEYS = {key: (kind, optional) for key, kind, optional in keys()}


def wrong(key: str) -> list[str]:
    kind, optional = KEYS[key]
    values = WRONG[kind] + ([] if optional else ["null"])
    return [value for value in values if value not in SENSIBLE.get(key, ())]


@pytest.fixture(scope="module")
def composed() -> Callable[[str], object]:
    """The config with one override, as the points of a grid get it: a hundred times as fast as a
    command."""
    from hydra import initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode

    from hydra_plugins.lora_exp_launch.compose import Composer
    from lora_exp import composition
    from lora_exp.runs.values import schema

    composition.guard()
    ConfigStore.instance().store(name="schema", node=schema())
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(cli.CONF), version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        loader = hydra.config_loader
        master = loader.load_configuration("config", [], RunMode.MULTIRUN)
    composer = Composer(loader, master)
    return lambda override: composer([override])


def run_of(composed: Callable[[str], object], override: str) -> Config:
    """The run that a command with this override would train, once it is checked."""
    from lora_exp.explain import explained

    with explained():
        values = composed(override)
    config = cli.config_of(values)
    check(config)
    return config


def test_the_schema_is_known() -> None:
    assert {kind for kind, _ in KEYS.values()} == {*WRONG}
    assert len(KEYS) > 80
    assert sum(len(wrong(key)) for key in KEYS) > 500


@pytest.mark.parametrize("key", KEYS)
def test_no_key_takes_a_wrong_value(key: str, composed: Callable[[str], object]) -> None:
    for value in wrong(key):
        with pytest.raises(UserError) as caught:
            run_of(composed, f"{key}={value}")
        told = str(caught.value)
        assert key.split(".")[-1] in told, f"{key}={value}: {told}"


@pytest.mark.parametrize("key", KEYS)
def test_a_command_is_refused_as_a_whole(key: str, tmp_path: Path) -> None:
    values = wrong(key) if LONG else wrong(key)[:: len(wrong(key))]
    for value in values:
        told = commands.refused(tmp_path / "outputs", f"{key}={value}")
        assert key.split(".")[-1] in told


WORDS = st.text(min_size=1, max_size=12).map(lambda text: text.replace("\0", ""))


@settings(max_examples=2000 if LONG else 150, deadline=None)
@given(st.sampled_from(sorted(KEYS)), WORDS | st.integers().map(str) | st.floats().map(str))
def test_whatever_a_value_is_it_is_taken_or_refused(
    composed: Callable[[str], object], key: str, value: str
) -> None:
    """Only with a UserError, whatever characters there are."""
    quoted = value.replace("\\", "\\\\").replace("'", "\\'")
    with suppress(UserError):
        assert isinstance(run_of(composed, f"{key}='{quoted}'"), Config)
