"""`predict`: a finished run over new data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lora_exp.verbs.arguments import Backbone, Outputs, Run


def predict(
    run: Run,
    source: Annotated[
        Path,
        typer.Option(
            "--input", help="TSV, CSV, JSON lines or parquet with the columns of the run's task."
        ),
    ],
    target: Annotated[
        Path,
        typer.Option(
            "--output", help="A new file: the same rows with predictions, as its name says."
        ),
    ],
    backbone: Backbone = None,
    outputs: Outputs = Path("outputs"),
) -> None:
    """What a run says of new data: labels and probabilities, numbers, or texts."""
    from lora_exp.finished.new_data import predict

    typer.echo(predict(outputs, run, source.expanduser(), target.expanduser(), backbone))
