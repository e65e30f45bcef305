"""The verbs: questions about runs that exist, and what is to become of them."""

from __future__ import annotations

import typer

from lora_exp.verbs import (
    adapters,
    cancel,
    card,
    clean,
    compare,
    completion,
    dashboard,
    logs,
    predict,
    report,
    rerun,
    retry,
    show,
    status,
    sync,
)

app = typer.Typer(
    name="lora_exp",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Runs that exist. To train one, give overrides: python -m lora_exp task=rte lora.r=8",
)
app.command()(status.status)
app.command()(show.show)
app.command()(logs.logs)
app.command()(report.report)
app.command()(compare.compare)
app.command()(cancel.cancel)
app.command()(retry.retry)
app.command()(rerun.rerun)
app.command()(clean.clean)
app.command()(sync.sync)
app.command()(dashboard.dashboard)
app.command()(predict.predict)
app.command()(adapters.export)
app.command("import")(adapters.import_)
app.command()(card.card)
app.command()(card.push)
app.command()(completion.completion)
