"""`rerun`: a run once more, with a word on what is not as it was then."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from lora_exp.errors import UserError
from lora_exp.runs.checks import check
from lora_exp.runs.config import CONF, Config
from lora_exp.runs.folder import RunFolder
from lora_exp.runs.store import find_run
from lora_exp.runs.values import from_mapping
from lora_exp.verbs.arguments import Outputs, Run

PACKAGE = Path(__file__).parents[1]
FILES_SHOWN = 5
"""Most files of a patch that are named."""


def rerun(
    run: Run,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="KEY=VALUE: another run, with all else as it was in this one."),
    ] = None,
    outputs: Outputs = Path("outputs"),
) -> None:
    """Train a run again; its result is kept under outputs/superseded."""
    folder = find_run(outputs, run)
    given = overrides or []
    here = str(folder.path.parent.parent.absolute())  # wherever it was when the run was made
    config = replace(_changed(folder.config, given), outputs=here, rerun=not given)
    check(config)
    for line in _differences(folder):
        typer.echo(line)
    from lora_exp.console import show_result
    from lora_exp.train.job import execute

    former = folder.provenance.get("overrides") or []
    show_result(execute(config, [*former, *given]))


def _changed(config: Config, overrides: Sequence[str]) -> Config:
    """A config with other values.

    Raises:
        UserError: for what is no KEY=VALUE of a config.
    """
    if not overrides:
        return config
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import OverrideType
    from omegaconf import OmegaConf

    from lora_exp.explain import explained

    with explained():
        parsed = OverridesParser.create().parse_overrides(list(overrides))
        node = OmegaConf.structured(config)
        for override in parsed:
            key, group = override.key_or_group, override.key_or_group.replace(".", "/")
            if (CONF / group).is_dir():
                raise UserError(
                    f"{override.input_line}: rerun changes single values, and this chooses a file. "
                    "Give the command of a run instead."
                )
            if override.type is not OverrideType.CHANGE:
                raise UserError(f"{override.input_line}: rerun takes KEY=VALUE.")
            if override.is_sweep_override() or override.is_hydra_override():
                raise UserError(f"{override.input_line}: rerun takes one value for each key.")
            OmegaConf.update(node, key, override.value(), merge=False)
        return from_mapping(node)


# -- what is not as it was -------------------------------------------------------------------------


def _differences(folder: RunFolder) -> Iterator[str]:
    """How code, packages and machine differ from those that the run was made with."""
    from lora_exp.runs.provenance import provenance

    then = folder.provenance
    now, patch = provenance(signature="", group="", overrides=[], gpu=None, content={})
    yield from _code(then.get("git"), _patch(folder), now["git"], patch)
    before, after = then.get("packages") or {}, now["packages"]
    for name in sorted({*before, *after}):
        if before.get(name) != after.get(name):
            yield f"{name}: {before.get(name)} then, {after.get(name)} now"
    if then.get("host") != now["host"]:
        yield f"host: {then.get('host')} then, {now['host']} now"


def _patch(folder: RunFolder) -> str:
    try:
        return (folder.path / "code.patch").read_text(encoding="utf-8")
    except FileNotFoundError:  # none, or a run from before there was such a file
        return (folder.provenance.get("git") or {}).get("patch", "")


def _code(
    before: dict[str, Any] | None, patch_before: str, after: dict[str, Any] | None, patch: str
) -> Iterator[str]:
    old, new = (before or {}).get("commit"), (after or {}).get("commit")
    if old == new and patch_before == patch:
        yield "code: as it was then" if old else "code: no git then or now, so nobody knows"
        return
    if old != new:
        yield f"code: {_named(old)} then, {_named(new)} now{_between(old, new)}"
    if patch_before != patch:
        yield f"uncommitted changes: {_files(patch_before)} then, {_files(patch)} now"


def _named(commit: str | None) -> str:
    return f"commit {commit[:12]}" if commit else "no commit"


def _between(old: str | None, new: str | None) -> str:
    """What changed in the code between two commits, if git knows both."""
    if not (old and new):
        return ""
    command = ["git", "-C", str(PACKAGE), "diff", "--shortstat", old, new, "--", ".", str(CONF)]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f" ({told})" if told else " (the package and its configs are the same)"


def _files(patch: str) -> str:
    """The files that a patch changes."""
    names = [
        line.split(" b/", 1)[-1] for line in patch.splitlines() if line.startswith("diff --git ")
    ]
    if len(names) > FILES_SHOWN:
        return f"{len(names)} files"
    return ", ".join(names) if names else "none"
