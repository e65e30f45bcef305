"""The config as values: from what Hydra composed, to YAML and back."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

import yaml
from omegaconf import MISSING, DictConfig, OmegaConf

from lora_exp.errors import UserError
from lora_exp.runs.config import Config

if TYPE_CHECKING:
    from yaml import SafeDumper, SafeLoader
else:
    try:
        from yaml import CSafeDumper as SafeDumper
        from yaml import CSafeLoader as SafeLoader
    except ImportError:  # PyYAML without libyaml: slower
        from yaml import SafeDumper, SafeLoader

MARKS = re.compile(r"\?\?\?|\$\{")
ALIASED, DEPTH = 10_000, 100
"""Most values that the aliases of a YAML file may add to those that are written in it; and how deep
they may be nested."""


def schema() -> DictConfig:
    """The tree of types for Hydra, in which the mappings take any key."""
    node = OmegaConf.structured(Config)
    for name in ("rank_pattern", "alpha_pattern"):
        OmegaConf.set_struct(node.lora.placement[name], False)
    return node


def from_mapping(values: Any) -> Config:
    """A `Config` from a DictConfig or a mapping, interpolations resolved.

    Raises:
        OmegaConfBaseException: for an unknown key, a missing value or one of the wrong type.
        UserError: for what is no plain value in a list or mapping.
    """
    # As plain values: a typed node would bring keys that were added to it (`+key=value`) along.
    if isinstance(values, DictConfig):
        values = OmegaConf.to_container(values, resolve=True)
    config = _exact(Config, values)
    if config is None:  # a value to be converted, or a mistake
        plain = OmegaConf.to_container(OmegaConf.create(values), resolve=True)
        if isinstance(plain, dict):
            _check_items(Config, plain)
        config = OmegaConf.to_object(OmegaConf.merge(_types(), plain))
    assert isinstance(config, Config)
    return config


def _check_items(kind: type, values: dict[Any, Any], prefix: str = "") -> None:
    """Refuse what stands in a list or mapping and is no plain value: OmegaConf would make text of
    it, or leave it.

    Raises:
        UserError: with its key.
    """
    for name, (types, _) in _fields(kind).items():
        value = values.get(name)
        if isinstance(types, type) and is_dataclass(types):
            if isinstance(value, dict):
                _check_items(types, value, f"{prefix}{name}.")
        elif isinstance(value, list | dict):
            for one in value.values() if isinstance(value, dict) else value:
                if one is None or isinstance(one, list | dict):
                    told = "null" if one is None else one
                    raise UserError(f"{prefix}{name}={value}: {told} is no plain value.")


def _exact(kind: type, values: dict[Any, Any]) -> Any | None:
    """A dataclass from values that have its types already, a hundred times as fast as OmegaConf;
    None if there is anything else in them."""
    known = _fields(kind)
    if not values.keys() <= known.keys():
        return None
    made: dict[str, Any] = {}
    for name, (types, required) in known.items():
        if name not in values:
            if required:
                return None
            continue
        value = values[name]
        if isinstance(types, type) and is_dataclass(types):
            value = _exact(types, value) if isinstance(value, dict) else None
            if value is None:
                return None
        elif type(value) is int and types in (float, float | None):
            value = float(value)
        elif not _fits(value, types):
            return None
        made[name] = value
    return kind(**made)


@cache
def _fields(kind: type) -> dict[str, tuple[Any, bool]]:
    """For each field its type, and whether it must be given."""
    hints = get_type_hints(kind)
    return {spec.name: (hints[spec.name], spec.default is MISSING) for spec in fields(kind)}


def _fits(value: Any, annotation: Any) -> bool:
    """Whether a value is of a field's type; a float is one, and no integer."""
    if isinstance(annotation, UnionType):
        return any(_fits(value, one) for one in get_args(annotation))
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is list:
        return type(value) is list and all(_fits(one, inside[0]) for one in value)
    if origin is dict:
        return type(value) is dict and all(
            _fits(key, inside[0]) and _fits(one, inside[1]) for key, one in value.items()
        )
    # "???" is a value that is missing, and what has "${" refers to another.
    return type(value) is annotation and not (type(value) is str and re.search(MARKS, value))


@cache
def _types() -> DictConfig:
    return OmegaConf.structured(Config)


def with_absolute_paths(config: Config) -> Config:
    """The same run, understood from any working directory."""

    def absolute(path: str) -> str:
        return str(Path(path).expanduser().absolute())

    task, model = config.task, config.model
    if task.data_dir is not None:
        task = replace(task, data_dir=absolute(task.data_dir))
    if Path(model.name_or_path).expanduser().is_dir():
        model = replace(model, name_or_path=absolute(model.name_or_path))
    return replace(config, task=task, model=model, outputs=absolute(config.outputs))


def to_yaml(config: Config) -> str:
    """The whole config as YAML, every field written out."""
    return yaml.dump(asdict(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def from_yaml(text: str) -> Config:
    """The config that `to_yaml` has written.

    Raises:
        OmegaConfBaseException: if it does not fit the schema.
        YAMLError: if it is no mapping at all, or `check_size` refuses it.
    """
    values = load(text)
    if not isinstance(values, dict):
        raise yaml.YAMLError("no mapping")
    return _exact(Config, values) or from_mapping(values)


def load(text: str) -> Any:
    """The plain values of YAML that may come from others.

    Raises:
        YAMLError: if it is none, or `check_size` refuses it.
    """
    check_size(text)
    return yaml.load(text, SafeLoader)


def check_size(text: str) -> None:
    """See, before aliases are followed, that a few lines do not become millions of values, nor a
    nest without end.

    Raises:
        TooLarge: if they do.
        YAMLError: if it is no YAML.
    """
    written, sizes = 0, dict[str, float]()
    open_nodes: list[tuple[str | None, float]] = [(None, 0)]  # anchor, values before it
    total: float = 0
    for event in yaml.parse(text, SafeLoader):
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_nodes.pop()
            if anchor is not None:
                sizes[anchor] = total - before
        elif isinstance(event, yaml.AliasEvent):
            total += sizes.get(event.anchor, 1)
        elif isinstance(event, yaml.NodeEvent):
            written += 1
            if isinstance(event, yaml.CollectionStartEvent):
                open_nodes.append((event.anchor, total))
                if event.anchor is not None:
                    sizes[event.anchor] = math.inf  # to those within
            total += 1
        if len(open_nodes) > DEPTH:
            raise TooLarge(f"its values are nested deeper than {DEPTH}")
        if total > written + ALIASED:
            raise TooLarge(
                f"its aliases make more than {ALIASED:,} values of {written}; write less"
            )


class TooLarge(yaml.YAMLError):
    """YAML in which a few lines mean millions of values."""


def flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of a nested config."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


class _Dumper(SafeDumper):
    """Quotes the strings that OmegaConf would read as numbers, such as 1e-5."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        """A string."""
        try:
            float(text.replace("_", ""))
            style = "'"
        except ValueError:
            style = None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _Dumper.represent_text)
