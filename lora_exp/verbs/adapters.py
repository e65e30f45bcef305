"""`export` and `import`: adapters for other software and from it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lora_exp.verbs.arguments import Backbone, Outputs, Run

Out = Annotated[Path, typer.Option(help="A new folder; nothing is overwritten.")]


def export(
    run: Run,
    to: Annotated[str, typer.Option(help="peft, loralib, or merged: a model without LoRA.")],
    out: Out,
    backbone: Backbone = None,
    outputs: Outputs = Path("outputs"),
) -> None:
    """Write what a run trained for other software."""
    from lora_exp.finished.exchange import export

    typer.echo(export(outputs, run, to, out.expanduser(), backbone))


def import_(
    file: Annotated[Path, typer.Argument(help="A folder of PEFT, or a .bin or .pt of loralib.")],
    model: Annotated[str, typer.Option(help="minilm, roberta_base, ..., or model.name_or_path.")],
    out: Out,
    alpha: Annotated[float | None, typer.Option(help="Of loralib's files: lora_alpha.")] = None,
    slices: Annotated[
        str, typer.Option(help="Of fused projections in loralib's files: those with LoRA.")
    ] = "query,value",
    any_backbone: Annotated[
        bool, typer.Option("--any-backbone", help="Even if it was trained on other weights.")
    ] = False,
    outputs: Annotated[Path, typer.Option(hidden=True)] = Path("outputs"),
) -> None:
    """Write an adapter of other software as those of runs are: model.init_from and PEFT open it."""
    from lora_exp.finished.exchange import take_in
    from lora_exp.runs.config import CONF

    options = {"alpha": alpha, "slices": slices.split(","), "any_backbone": any_backbone}
    typer.echo(take_in(file.expanduser(), model, out.expanduser(), CONF, **options))
