"""Completion of the command line in bash, zsh and fish: overrides by Hydra, verbs by typer."""

from __future__ import annotations

import io
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

from lora_exp.console import VERBS
from lora_exp.errors import UserError, nearest
from lora_exp.runs.config import CONF

if TYPE_CHECKING:
    from typer import Typer

BASH = r"""
_lora_exp() {
    local words current head=""
    read -ra words <<< "${COMP_LINE:0:COMP_POINT}"
    local command=("${words[0]}")
    if [[ ${words[0]##*/} == python* ]]; then
        [[ ${words[1]} == -m && ${words[2]} == lora_exp && $COMP_CWORD -gt 2 ]] || return
        command+=(-m lora_exp)
    fi
    current=${COMP_LINE:0:COMP_POINT}
    mapfile -t COMPREPLY < <("${command[@]}" completion bash -- "$current" 2> /dev/null)
    [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *[=./] ]] && compopt -o nospace
    # Where = parts words, as it does unless told otherwise, what stands before it stays.
    current=${current##*[[:space:]]}
    [[ $COMP_WORDBREAKS == *=* ]] && head=${current%"${current##*=}"}
    COMPREPLY=("${COMPREPLY[@]#"$head"}")
}
complete -o default -F _lora_exp lora-exp python python3
"""
ZSH = r"""
_lora_exp() {
    local -a command found open closed
    command=("${words[1]}")
    if [[ ${words[1]:t} == python* ]]; then
        [[ "${words[2]} ${words[3]}" == "-m lora_exp" && CURRENT -gt 3 ]] || { _default; return }
        command+=(-m lora_exp)
    fi
    found=("${(@f)$("${(@)command}" completion zsh -- "${(j: :)words[1,CURRENT]}" 2> /dev/null)}")
    open=("${(@M)found:#*[=./]}") closed=("${(@)found:#*[=./]}")
    if [[ -n "${found[*]}" ]]; then
        compadd -Q -S '' -a open
        compadd -Q -a closed
    else
        compset -P '*='
        _files
    fi
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
compdef _lora_exp lora-exp python python3
"""
FISH = r"""
function __lora_exp
    set -l found ($argv completion fish -- (commandline -cp) 2> /dev/null)
    if test -n "$found"
        printf '%s\n' $found
    else
        __fish_complete_path (commandline -ct)
    end
end
complete -c lora-exp -f -a '(__lora_exp lora-exp)'
for python in python python3
    complete -c $python -n 'string match -qr "^\S+ -m lora_exp " -- (commandline -cp)' -f \
        -a "(__lora_exp $python -m lora_exp)"
end
"""
SHELLS = {"bash": BASH, "zsh": ZSH, "fish": FISH}


def script(shell: str) -> str:
    """What a shell is to run for completion: of `lora-exp`, and of `python -m lora_exp`.

    Raises:
        UserError: for another shell.
    """
    if shell not in SHELLS:
        raise UserError(f"completion {shell}: {nearest(shell, SHELLS, kind='shells')}")
    return SHELLS[shell].strip()


def candidates(line: str, app: Typer) -> list[str]:
    """What the last word of a command line may become; nothing where that is a file.

    Args:
        line: up to the cursor, the program's name included.
        app: the verbs.
    """
    try:
        words = shlex.split(line)
    except ValueError:  # inside a quotation
        return []
    if not line or line[-1].isspace():
        words.append("")
    begin = 3 if Path(words[0]).name.startswith("python") else 1
    *before, current = words[begin:] or [""]
    first = next(iter(before), None)
    if first in VERBS and first != "plan":
        found = _of_verb(app, before, current)
    else:
        found = [*_choices(current), *_overrides(before[first == "plan" :], current)]
        found += () if before else VERBS
    return sorted({one for one in found if one.startswith(current) and one != current})


def _of_verb(app: Typer, before: list[str], current: str) -> list[str]:
    """Options of a verb, and names of runs."""
    from typer.completion import completion_init  # pyright: ignore[reportPrivateImportUsage]

    completion_init()
    given = {
        "_LORA_EXP_COMPLETE": "complete_bash",
        "COMP_WORDS": shlex.join(["lora_exp", *before, *([current] if current else [])]),
        "COMP_CWORD": str(len(before) + 1),
    }
    told = io.StringIO()
    with patch.dict(os.environ, given), redirect_stdout(told), suppress(SystemExit):
        app(prog_name="lora_exp")
    return told.getvalue().split()


def _choices(current: str) -> Iterator[str]:
    """For GROUP= the files of that group, those in folders too; several may be given, with -m."""
    key, equals, value = current.partition("=")
    folder = CONF / key.lstrip("+")
    if equals and key and folder.is_dir():
        former = value.rpartition(",")[0]
        for path in folder.rglob("*.yaml"):
            name = path.relative_to(folder).with_suffix("").as_posix()
            yield f"{key}={former}{',' * bool(former)}{name}"


def _overrides(before: list[str], current: str) -> list[str]:
    """Groups, keys and their defaults, as Hydra knows them."""
    import hydra
    from hydra.core.config_store import ConfigStore

    from lora_exp.runs.values import schema

    ConfigStore.instance().store(name="schema", node=schema())
    line = " ".join(["lora_exp", *(word for word in before if " " not in word), current])
    told = io.StringIO()
    with (
        patch.dict(os.environ, COMP_LINE=line),
        patch.object(sys, "argv", ["lora_exp", "-sc", "query=bash"]),
        redirect_stdout(told),
        redirect_stderr(io.StringIO()),
    ):
        try:
            hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")(print)()
        except (Exception, SystemExit):  # what stands before is no valid command
            return []
    # Its files lie in folders, and nobody chooses a recipe: tasks and methods bring theirs.
    found = (word.replace("experiment/", "experiment=") for word in told.getvalue().split())
    return [word for word in found if not word.startswith("recipe")]
