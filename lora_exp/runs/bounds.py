"""What no value of the config can be, whatever its key."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from lora_exp.runs.secrets import holds_secret

INTEGER = 2**32
"""No integer is larger: a seed is below it, and more of anything fits in no memory."""
FLOAT = 3.4028234663852886e38
"""The largest number of 32 bits, which models compute with."""
UNPRINTABLE = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
"""What would act on a terminal instead of being shown, or is no Unicode; tabs and line ends may
stand in texts."""
NAME = re.compile(r"[\w.-]*\w[\w.-]*")


def problems(config: Any) -> list[str]:
    """A line for each value that is too large, no number at all, empty, or no text."""
    found = []
    for key, value in _leaves(config):
        if isinstance(value, float) and not abs(value) <= FLOAT:
            found.append(f"{key}={value}: must be a finite number.")
        elif isinstance(value, int) and abs(value) > INTEGER:
            found.append(f"{key}={value}: must be at most 2^32.")
        elif value == "":
            found.append(f"{key}=: is empty. Leave it out, or give a value.")
        elif isinstance(value, str) and (wrong := UNPRINTABLE.search(value)):
            found.append(
                f"{key}={printable(value)}: has the character {wrong[0]!a}, which is no text."
            )
        elif isinstance(value, str) and (secret := holds_secret(value)):
            found.append(f"{key}: holds a secret ({secret}). Leave it to the environment.")
    return found


def is_name(text: str) -> bool:
    """It can be part of a file's name, and leads to no other folder."""
    return NAME.fullmatch(text) is not None


def printable(text: str) -> str:
    """Text for a terminal, with what would act on it written as Python does."""
    return UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


def plain(value: Any) -> Any:
    """What was read from a file, with all its text printable."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {plain(key): plain(one) for key, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, list) else value


def _leaves(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every value with its dotted key; what stands in a list has the key of the list."""
    if is_dataclass(node):
        for spec in fields(node):
            yield from _leaves(getattr(node, spec.name), f"{key}.{spec.name}" if key else spec.name)
    elif isinstance(node, dict):
        for name, value in node.items():
            yield key, name
            yield from _leaves(value, f"{key}.{name}")
    elif isinstance(node, list):
        for value in node:
            yield from _leaves(value, key)
    else:
        yield key, node
