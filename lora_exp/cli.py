"""The command line: overrides that describe a run, or a verb."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from lora_exp import console
from lora_exp.errors import RunFailed, UserError
from lora_exp.runs.bounds import printable
from lora_exp.runs.config import CONF
from lora_exp.runs.secrets import hidden

if TYPE_CHECKING:
    from lora_exp.runs.config import Config

FULL_ERROR = "HYDRA_FULL_ERROR"


def main() -> None:
    """Run the command in `sys.argv`.

    Exit status 0; 1 if a run failed; 2 for what the user can mend.
    """
    console.set_up()
    verb = sys.argv[1] if len(sys.argv) > 1 else ""
    if verb == "plan":
        guarded(_plan)
    else:
        guarded(_verb if verb in console.VERBS else _run_or_compose)


def guarded(action: Callable[[], object]) -> None:
    """Do something; what goes wrong ends the process with one message and its exit status."""
    try:
        action()
    except RunFailed as error:
        leave(1, error)
    except UserError as error:
        leave(2, error)
    except KeyboardInterrupt:
        print("lora_exp: stopped.", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:  # who read the output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None


def leave(status: int, error: Exception) -> NoReturn:
    """Exit with one message; with the traceback if HYDRA_FULL_ERROR=1 asks for it."""
    if _tracebacks:
        raise error
    print(f"lora_exp: {printable(hidden(str(error)))}", file=sys.stderr)
    raise SystemExit(status)


def _plan() -> None:
    """The verb that takes overrides, as a run does."""
    global _planning
    del sys.argv[1]
    if {"-m", "--multirun"} & {*sys.argv}:
        raise UserError("plan: tells of one run. Leave out -m, and give one value for each key.")
    _planning = True
    _run_or_compose()


def _verb() -> None:
    import typer

    from lora_exp.verbs import app

    try:
        status = app(standalone_mode=False)
    except typer.Abort:
        raise KeyboardInterrupt from None
    except Exception as error:
        tell = getattr(error, "format_message", None)  # of what typer says of the arguments
        if tell is None:
            raise
        told = tell().rstrip(".")
        raise UserError(f"{told}. See: python -m lora_exp {sys.argv[1]} --help") from error
    if status:
        raise SystemExit(status)


def _run_or_compose() -> None:
    import hydra
    from hydra._internal.utils import get_args_parser
    from hydra.core.config_store import ConfigStore
    from hydra.core.hydra_config import HydraConfig

    from lora_exp import composition
    from lora_exp.explain import explained
    from lora_exp.runs.values import schema

    if any(word.startswith("--experimental-rerun") for word in sys.argv[1:]):
        raise UserError("--experimental-rerun: would run code from a pickle. Take: rerun RUN")
    if any(word.split("=")[0] == "--outputs" for word in sys.argv[1:]):
        raise UserError("--outputs is an option of verbs; a run takes outputs=DIR.")
    # Hydra's parser wants all overrides on one side of its options.
    words = sys.argv[1:]
    sys.argv[1:] = sorted(words, key=lambda word: word[0:1] != "-" and ("=" in word or "~" in word))
    parser = get_args_parser()
    parser.error = _refuse_options  # pyright: ignore[reportAttributeAccessIssue]
    parser.parse_args()
    os.environ[FULL_ERROR] = "1"  # let Hydra raise its errors, to be told in our words
    ConfigStore.instance().store(name="schema", node=schema())
    composition.guard()
    try:
        with explained():
            hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")(_job)()
    except ValueError as error:
        if HydraConfig.initialized():
            raise
        leave(2, error)  # options of Hydra that do not go together
    except OSError as error:  # Hydra makes a folder for each sweep
        if error.filename is None:
            raise
        raise UserError(
            f"{error.filename}: cannot be written ({error.strerror}). If that is the folder of "
            "outputs, name another one: outputs=DIR."
        ) from error


def _refuse_options(message: str) -> NoReturn:
    raise UserError(f"{message}. What there is: python -m lora_exp --help, --hydra-help")


def _job(values: object) -> float:
    """One run in this process; returns its metric, which Hydra's sweepers may optimise.

    The points of a grid come here only with another launcher than ours (hydra/launcher=basic).
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    from lora_exp.runs.checks import check
    from lora_exp.runs.folder import main_metric

    hydra_config = HydraConfig.get()
    overrides: Any = OmegaConf.to_container(hydra_config.overrides.task)  # as they were given
    try:
        config = config_of(values)
        check(config)
        if hydra_config.mode is RunMode.RUN and (config.dry_run or config.detach):
            raise UserError(
                "dry_run and detach are for grids (-m, or a study). What one run comes to: python "
                "-m lora_exp plan ..."
            )
        target = str(hydra_config.launcher._target_)
        if hydra_config.mode is RunMode.RUN and target.endswith(".SlurmLauncher"):
            raise UserError("hydra/launcher=slurm is for grids: give -m as well, for one run too.")
        if warning := advice(config, overrides):
            console.log.warning(warning)
        from lora_exp.train.job import execute, predict

        if _planning:
            print(predict(config))
            return 0.0
        result = execute(config, overrides)
    except UserError as error:
        if hydra_config.mode is RunMode.RUN:
            leave(2, error)
        console.log.error("%s: %s", " ".join(overrides), error)  # the other points go on
        raise
    console.show_result(result)
    return main_metric(result)


def config_of(values: object) -> Config:
    """The run that a composed config describes.

    Raises:
        UserError: for what the schema does not allow.
    """
    from lora_exp.explain import explained
    from lora_exp.runs.values import from_mapping

    with explained():
        return from_mapping(values)


def advice(config: Config, overrides: Sequence[str]) -> str | None:
    """A warning about a config that is valid, and yet hardly what the user wants."""
    given = dict(override.lstrip("+").split("=", 1) for override in overrides if "=" in override)
    if {"experiment", "method"} <= given.keys() and "train.lr" not in given:
        model, method = given["experiment"].split("/")[0], given["method"]
        task = config.task.name
        recipes = (f"model/{model}", f"task/{task}", f"cell/{model}_{task}")
        if method == "lora" or any(
            (CONF / "recipe" / f"{recipe}_{method}.yaml").exists() for recipe in recipes
        ):
            return None
        return (
            f"The learning rate {config.train.lr:g} is that of the experiment's own method; "
            f"give train.lr=... for {config.method}."
        )
    return None


_planning = False
_tracebacks = os.environ.get(FULL_ERROR) == "1"
