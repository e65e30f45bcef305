"""`card` and `push`: a run's adapter for others, on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lora_exp.verbs.arguments import Outputs, Run


def card(run: Run, outputs: Outputs = Path("outputs")) -> None:
    """Write a model card, README.md, beside a run's adapter."""
    from lora_exp.console import shown
    from lora_exp.finished.card import write

    typer.echo(shown(write(outputs, run)))


def push(
    run: Run,
    repo: Annotated[str, typer.Argument(help="ORGANISATION/NAME, made if there is none.")],
    private: Annotated[
        bool, typer.Option("--private", help="A new repository is for you alone.")
    ] = False,
    outputs: Outputs = Path("outputs"),
) -> None:
    """Put a run's adapter and its card on the Hugging Face hub."""
    from lora_exp.finished.publication import push

    typer.echo(push(outputs, run, repo, private=private))
