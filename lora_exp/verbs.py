"""The verbs: questions about runs that exist, which they never change, and adapters out and in."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from lora_exp.runs.folder import RunFolder
from lora_exp.runs.store import all_runs, find_run

app = typer.Typer(
    name="lora_exp",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Runs that exist. To train one, give overrides: python -m lora_exp task=rte lora.r=8",
)
Outputs = Annotated[Path, typer.Option(help="The folder that holds the runs.")]
Out = Annotated[Path, typer.Option(help="A new folder; nothing is overwritten.")]
Run = Annotated[str, typer.Argument(help="A run's name, its signature, or the beginning of one.")]


@app.command()
def status(outputs: Outputs = Path("outputs")) -> None:
    """Every run, and where it stands."""
    runs = all_runs(outputs)
    if not runs:
        typer.echo(f"There are no runs in {outputs / 'runs'}.")
        return
    table = Table(box=None)
    table.add_column("run", overflow="fold")  # whole, to be copied
    for column in ("state", "progress", "metrics", "last seen"):
        table.add_column(column)
    for run in runs:
        state = run.status
        table.add_row(
            run.name,
            state["state"],
            f"{state.get('step', 0)}/{state.get('total_steps', '?')}",
            _numbers(run) or state.get("reason") or "",
            _ago(state.get("heartbeat")),
        )
    console = Console()
    if not console.is_terminal:
        console.width = 1000  # for grep and awk: one line a run
    console.print(table)


@app.command()
def show(run: Run, outputs: Outputs = Path("outputs")) -> None:
    """A run's result, config and origin."""
    folder = find_run(outputs, run)
    state, origin = folder.status, folder.provenance
    typer.echo(
        f"{folder.path}\n{state['state']}: {_numbers(folder) or state.get('reason') or ''}\n"
    )
    for name in ("command", "created", "host", "gpu", "packages", "group"):
        typer.echo(f"{name}: {origin.get(name)}")
    git = origin.get("git")
    if git:
        typer.echo(f"code: {git['commit']}{' with uncommitted changes' if git['dirty'] else ''}")
    typer.echo("\n" + (folder.path / "config.yaml").read_text(encoding="utf-8").rstrip())


@app.command()
def logs(run: Run, outputs: Outputs = Path("outputs")) -> None:
    """A run's log."""
    folder = find_run(outputs, run)
    if folder.log.exists():
        typer.echo(folder.log.read_text(encoding="utf-8").rstrip())


@app.command()
def export(
    run: Run,
    to: Annotated[str, typer.Option(help="peft, loralib, or merged: a model without LoRA.")],
    out: Out,
    outputs: Outputs = Path("outputs"),
) -> None:
    """Write what a run trained for other software."""
    from lora_exp.exchange import export

    typer.echo(export(outputs, run, to, out.expanduser()))


@app.command("import")
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
) -> None:
    """Write an adapter of other software as those of runs are: model.init_from and PEFT open it."""
    from lora_exp.cli import CONF
    from lora_exp.exchange import take_in

    options = {"alpha": alpha, "slices": slices.split(","), "any_backbone": any_backbone}
    typer.echo(take_in(file.expanduser(), model, out.expanduser(), CONF, **options))


def _numbers(run: RunFolder) -> str:
    metrics = (run.result or {}).get("metrics", {})
    return "  ".join(
        f"{name} {value:.4f}" for name, value in metrics.items() if not name.startswith("loss")
    )


def _ago(moment: float | None) -> str:
    if moment is None:
        return ""
    seconds = max(0.0, time.time() - moment)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"
