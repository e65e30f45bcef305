"""Completion, asked as shells ask: here bash."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lora_exp import completion
from lora_exp.errors import UserError

RUNS = ("rte-tiny-lora-r4-0a1b", "rte-tiny-lora-r8-2c3d", "mrpc-tiny-full-4e5f")
LINES = {
    "lora-exp lora.r": {"lora.r=", "lora.rslora="},
    "lora-exp task=rte lora.al": {"lora.alpha="},
    "lora-exp task=mn": {"mnli"},
    "lora-exp -m task=rte,mrp": {"rte,mrpc"},
    "lora-exp lora/placement=all": {"all_linear"},
    "lora-exp experiment=roberta_base/rte_f": {"roberta_base/rte_from_mnli"},
    "lora-exp stu": {"study="},
    "lora-exp expe": {"experiment="},
    "lora-exp sho": {"show"},
    "lora-exp plan lora.rs": {"lora.rslora="},
    "lora-exp show ": set(RUNS),
    "lora-exp show mrpc": {RUNS[2]},
    "lora-exp compare mrpc rte-tiny-lora-r8": {RUNS[1]},
    "lora-exp show mrpc --outp": {"--outputs"},
    "lora-exp 'lora.r": set(),
    "python -m lora_exp lora.rs": {"lora.rslora="},
    "python -m lora_exp show mr": {RUNS[2]},
    "python -m json.tool lora.rs": set(),
}
"""Lines up to the cursor, and what bash puts behind the last = or blank."""


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with runs, and commands that are this checkout's."""
    folder = tmp_path_factory.mktemp("here")
    for run in RUNS:
        (folder / "outputs" / "runs" / run).mkdir(parents=True)
    (folder / "bin").mkdir()
    for name, module in (("lora-exp", "-m lora_exp"), ("python", "")):
        script = folder / "bin" / name
        script.write_text(f'#!/bin/sh\nexec {sys.executable} {module} "$@"\n')
        script.chmod(0o755)
    return folder


def ask(here: Path, *command: str) -> str:
    own = Path(completion.__file__).parents[1]
    path = f"{here / 'bin'}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": f"{own}{os.pathsep}{own / 'launch'}"}
    ended = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_bash(here: Path) -> None:
    asked = completion.script("bash")
    for line in LINES:
        # As bash parts words, at = as well.
        asked += f"""
            COMP_LINE={shlex.quote(line)} COMP_POINT={len(line)} COMPREPLY=()
            read -ra COMP_WORDS <<< "${{COMP_LINE//=/ = }}"
            [[ $COMP_LINE == *[[:space:]] ]] && COMP_WORDS+=("")
            COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
            _lora_exp
            echo "${{COMPREPLY[@]}}"
        """
    told = ask(here, "bash", "--norc", "--noprofile", "-c", asked)
    assert dict(zip(LINES, map(set, map(str.split, told.splitlines())), strict=True)) == LINES
    assert "-F _lora_exp" in ask(
        here, "bash", "-c", f"{completion.script('bash')}\ncomplete -p lora-exp"
    )


def test_another_shell_is_refused() -> None:
    with pytest.raises(UserError, match=r"completion fich: Did you mean fish\?"):
        completion.script("fich")
