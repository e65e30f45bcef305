"""The command line: overrides that describe a run, or a verb."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn

from lora_exp import console
from lora_exp.errors import RunFailed, UserError

VERBS = ("status", "show", "logs", "export", "import")
FULL_ERROR = "HYDRA_FULL_ERROR"
CONF = next(
    folder
    for folder in (Path(__file__).parent / "conf", Path(__file__).parent.parent / "conf")
    if folder.is_dir()
)


def main() -> None:
    """Run the command in `sys.argv`.

    Exit status 0; 1 if a run failed; 2 for what the user can mend.
    """
    console.set_up()
    try:
        if len(sys.argv) > 1 and sys.argv[1] in VERBS:
            from lora_exp.verbs import app

            app()
        else:
            _run_or_compose()
    except RunFailed as error:
        leave(1, error)
    except UserError as error:
        leave(2, error)
    except KeyboardInterrupt:
        print("lora_exp: stopped.", file=sys.stderr)
        raise SystemExit(130) from None


def leave(status: int, error: Exception, message: str | None = None) -> NoReturn:
    """Exit with one message; with the traceback if HYDRA_FULL_ERROR=1 asks for it."""
    if _tracebacks:
        raise error
    print(f"lora_exp: {message or error}", file=sys.stderr)
    raise SystemExit(status)


def _run_or_compose() -> None:
    import hydra
    from hydra.core.config_store import ConfigStore
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    from lora_exp.explain import explain
    from lora_exp.runs.config import schema

    os.environ[FULL_ERROR] = "1"  # let Hydra raise its errors, to be told in our words
    ConfigStore.instance().store(name="schema", node=schema())
    try:
        hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")(_job)()
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        leave(2, error, explain(error, CONF, VERBS))
    except ValueError as error:
        if HydraConfig.initialized():
            raise
        leave(2, error)  # options of Hydra that do not go together


def _job(values: object) -> float:
    """One run; returns its metric, which Hydra's sweepers may optimise."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf.errors import OmegaConfBaseException

    from lora_exp.explain import explain
    from lora_exp.runs.config import check, from_mapping

    hydra_config = HydraConfig.get()
    overrides = list(hydra_config.overrides.task)
    try:
        try:
            config = from_mapping(values)
        except OmegaConfBaseException as error:
            raise UserError(explain(error, CONF, VERBS)) from error
        check(config)
        given = {override.lstrip("+").split("=")[0] for override in overrides}
        if {"experiment", "method"} <= given and "train.lr" not in given:
            console.log.warning(
                "The learning rate %g is that of the experiment's own method; "
                "give train.lr=... for %s.",
                config.train.lr,
                config.method,
            )
        from lora_exp.train.job import execute

        result = execute(config, overrides)
    except UserError as error:
        if hydra_config.mode is RunMode.RUN:
            leave(2, error)
        console.log.error("%s: %s", " ".join(overrides), error)  # the other points go on
        raise
    show_result(result)
    return next(value for name, value in result["metrics"].items() if name != "loss")


def show_result(result: dict) -> None:
    """A table of a run's result, for the terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, show_header=False)
    for name, value in result["metrics"].items():
        if not name.startswith("loss"):
            table.add_row(name, f"{value:.4f}")
    table.add_row("best epoch", f"{result['best_epoch']:g}")
    table.add_row("trained parameters", f"{result['trainable_parameters']:,}")
    table.add_row("training time", f"{result['train_seconds']:.1f} s")
    table.add_row("peak memory", f"{result['peak_memory_bytes'] / 2**20:,.0f} MiB")
    Console().print(table)


_tracebacks = os.environ.get(FULL_ERROR) == "1"
