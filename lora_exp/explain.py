"""Hydra's and OmegaConf's errors in the user's words: what was wrong, where, what is right."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

from lora_exp.console import VERBS
from lora_exp.errors import UserError, nearest
from lora_exp.runs.config import CONF, Config


@contextmanager
def explained() -> Iterator[None]:
    """Turn what composing a config raises into a UserError."""
    try:
        yield
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise UserError(explain(error)) from error


def explain(error: Exception) -> str:
    """One message for the user, about an error of composing a config."""
    cause = error.__cause__ or error.__context__
    if isinstance(error, OmegaConfBaseException):
        cause = error
    if isinstance(error, MissingConfigException) and error.missing_cfg_file is not None:
        return _unknown_choice(str(error.missing_cfg_file), error.options or [])
    if isinstance(error, OverrideParseException):
        return _unreadable(error)
    if isinstance(error, YAMLError):
        return f"A config file is not valid YAML: {error}"
    if isinstance(cause, ConfigKeyError | ConfigAttributeError):
        return _unknown_key(error, cause)
    if isinstance(cause, OmegaConfBaseException):
        problem = str(cause.msg or cause).splitlines()[0]
        return f"{_file(error)}{cause.full_key or 'config'}: {problem}."
    return str(error).replace("\n", " ", 1)


def keys(node: Any = Config, prefix: str = "") -> Iterator[str]:
    """Every key of the config, dotted."""
    instance = node() if isinstance(node, type) else node
    for spec in fields(instance):
        value = getattr(instance, spec.name)
        if is_dataclass(value):
            yield from keys(value, f"{prefix}{spec.name}.")
        else:
            yield prefix + spec.name


def _unknown_choice(name: str, options: Sequence[str]) -> str:
    """`name` is GROUP/CHOICE; both may have slashes (lora/placement, roberta_base/mnli)."""
    depth = 2 if name.startswith(("lora/", "hydra/")) else 1
    group, choice = "/".join(name.split("/")[:depth]), "/".join(name.split("/")[depth:])
    if not choice:
        return f"{name}: there is no such config file in {CONF}."
    folder = CONF / group
    files = [path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml")]
    return f"{group}={choice}: {nearest(choice, {*files, *options}, kind='choices')}"


def _unreadable(error: OverrideParseException) -> str:
    given = error.override
    if "=" in given:
        key, _, value = given.partition("=")
        quoted = f'["{value.strip("[]")}"]' if value.startswith("[") else f'"{value}"'
        problem = str(error.__cause__ or error).splitlines()[0]
        return (
            f"{given}: cannot be read ({problem}). Values with special characters are quoted "
            f"twice, for the shell and for Hydra: '{key}={quoted}'"
        )
    if given in VERBS:
        return f"{given}: a verb stands first, before any option: python -m lora_exp {given}"
    return (
        f"{given}: neither an override (KEY=VALUE) nor a verb. "
        f"{nearest(given, VERBS, kind='verbs')}"
    )


def _unknown_key(error: Exception, cause: OmegaConfBaseException) -> str:
    key = str(cause.full_key)
    if key.startswith("hydra.launcher."):
        from lora_exp.grid.slurm import unknown_setting

        return unknown_setting(key.removeprefix("hydra.launcher."))
    groups = {path.relative_to(CONF).as_posix() for path in CONF.rglob("*") if path.is_dir()}
    known = set(keys()) | {group for group in groups if not (CONF / group / "config.yaml").exists()}
    last = key.rsplit(".", 1)[-1]
    same_name = sorted(option for option in known if option.rsplit(".", 1)[-1] == last)
    if same_name:
        hint = f"Did you mean {' or '.join(same_name)}?"
    else:
        section, _, _ = key.rpartition(".")
        inside = [option for option in known if option.startswith(section + ".")]
        hint = nearest(key, inside if section and inside else known, kind="keys")
    return f"{_file(error)}{key}: there is no such key. {hint}"


def _file(error: Exception) -> str:
    """The config file that an error of Hydra's names."""
    found = re.match(r"In '([^']+)': ", str(error))
    return f"In conf/{found[1]}.yaml: " if found else ""
