"""`completion`: of the command line in a shell."""

from __future__ import annotations

from typing import Annotated

import typer


def completion(
    shell: Annotated[str, typer.Argument(help="bash, zsh or fish.")],
    line: Annotated[str | None, typer.Argument(hidden=True)] = None,
) -> None:
    """What a shell runs to complete verbs, runs, options and overrides of this command line.

    bash and zsh: eval "$(lora-exp completion bash)"; fish: lora-exp completion fish | source
    """
    from lora_exp.completion import candidates, script
    from lora_exp.verbs import app

    typer.echo(script(shell) if line is None else "\n".join(candidates(line, app)))
