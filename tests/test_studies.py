"""Every study composes, and every script of launch/ shows its own before anything is started."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lora_exp.cli import CONF

LAUNCH = Path(__file__).resolve().parents[1] / "launch"
STUDIES = sorted(path.stem for path in (CONF / "study").glob("*.yaml"))
SCRIPTS = sorted(path.stem for path in LAUNCH.glob("*.sh") if path.stem != "study")


def runs(study: str) -> int:
    """How many runs its values come to: all their combinations."""
    if study == "demo":
        return 8  # of twelve: the rank matters to LoRA alone
    text = (CONF / "study" / f"{study}.yaml").read_text()
    number = 1
    for value in yaml.safe_load(text)["hydra"]["sweeper"]["params"].values():
        while (inner := re.sub(r"[\[{][^\[\]{}]*[\]}]", "", str(value))) != value:
            value = inner  # commas within lists and mappings do not count
        number *= value.count(",") + 1
    return number


@pytest.mark.parametrize("study", STUDIES)
def test_a_study_is_shown_by_its_script_and_nothing_is_started(study: str, tmp_path: Path) -> None:
    command = LAUNCH / f"{study}.sh"
    assert os.access(command, os.X_OK)
    shown = subprocess.run(
        [command, "--dry-run", f"outputs={tmp_path / 'outputs'}"],
        env=os.environ | {"PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )
    assert shown.returncode == 0, shown.stderr
    assert f"{runs(study)} runs: " in shown.stdout
    assert re.search(r"^workers: \d", shown.stdout, re.MULTILINE)
    assert not (tmp_path / "outputs" / "runs").exists()


def test_scripts_and_studies_are_the_same_and_explained() -> None:
    assert SCRIPTS == STUDIES
    listed = re.findall(r"^\| `(\w+)\.sh` \|", (LAUNCH / "README.md").read_text(), re.MULTILINE)
    assert sorted(listed) == STUDIES


@pytest.mark.parametrize("study", STUDIES)
def test_a_study_begins_with_its_command_and_names_its_grid(study: str) -> None:
    text = (CONF / "study" / f"{study}.yaml").read_text()
    assert text.splitlines()[:2] == ["# @package _global_", f"# python -m lora_exp study={study}"]
    assert yaml.safe_load(text)["grid"] == study
