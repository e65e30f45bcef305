"""Secrets in the environment, which are written nowhere."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

NAME = re.compile(r"(^|_)(KEY|APIKEY|TOKEN|SECRET|PASSWORD|PASSWD|PAT)$")
"""How variables end whose values nobody else may know: WANDB_API_KEY, HF_TOKEN."""
LEAST = 8
"""Characters of a secret; fewer could be any word."""
CREDENTIALS = re.compile(r"(\w://)[^\s/@'\"]+@")
"""Of `https://user:token@host`, what stands before the host."""


def hidden(text: str) -> str:
    """Text with the names of variables instead of their secret values, and URLs without
    credentials."""
    for name, value in _secrets():
        text = text.replace(value, f"${name}")
    return CREDENTIALS.sub(r"\1", text)


def holds_secret(text: str) -> str | None:
    """What secret there is in a text: the name of the variable, or what else it is."""
    found = next((name for name, value in _secrets() if value in text), None)
    return found or ("credentials" if CREDENTIALS.search(text) else None)


def _secrets() -> Iterator[tuple[str, str]]:
    for name, value in os.environ.items():
        if NAME.search(name) and len(value) >= LEAST and not value.startswith(("/", "~")):
            yield name, value
