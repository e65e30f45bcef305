"""Run the command line in forked children: real processes, without importing torch each time."""

from __future__ import annotations

import os
import select
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Ended:
    """How a child ended."""

    status: int
    """Exit status; minus the signal's number if one killed it."""
    output: str
    """What it wrote to stdout and stderr."""


def run(
    *arguments: str,
    before: Callable[[], None] | None = None,
    kill_after: float | None = None,
) -> Ended:
    """`python -m lora_exp ARGUMENTS` in a child.

    Args:
        arguments: of the command line.
        before: called in the child first; may patch what it likes.
        kill_after: as in `call`.
    """
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig

    from lora_exp import cli, console

    def command() -> None:
        console.console.file = sys.stderr
        GlobalHydra.instance().clear()  # of a child that has a child, or of another test
        HydraConfig.instance().cfg = None
        sys.argv = ["lora_exp", *arguments]
        if before is not None:
            before()
        cli.main()

    return call(command, kill_after=kill_after)


def call(action: Callable[[], object], *, kill_after: float | None = None) -> Ended:
    """Do something in a child.

    Args:
        action: what to do.
        kill_after: seconds after which the child is killed, with all that it has started.
    """
    import torch

    import lora_exp.train.loop  # noqa: F401 (so that no child has to)

    assert torch.get_num_threads() == 1, "forking after threads were started is not safe"
    with tempfile.TemporaryFile("w+") as output:
        child = os.fork()
        if child == 0:
            status = 70
            try:
                os.setpgid(0, 0)
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
                sys.stdout = os.fdopen(1, "w", closefd=False)
                sys.stderr = os.fdopen(2, "w", closefd=False)
                action()
                status = 0
            except SystemExit as leaving:
                status = leaving.code if isinstance(leaving.code, int) else 1
            except BaseException:
                traceback.print_exc()
            finally:
                try:
                    sys.stdout.flush()
                    sys.stderr.flush()
                finally:
                    os._exit(status)  # whatever happens: a child must not go on with the tests
        if kill_after is not None and not _ends_within(child, kill_after):
            os.killpg(child, signal.SIGKILL)
        _, code = os.waitpid(child, 0)
        output.seek(0)
        return Ended(os.waitstatus_to_exitcode(code), output.read())


def _ends_within(child: int, seconds: float) -> bool:
    descriptor = os.pidfd_open(child)
    try:
        return bool(select.select([descriptor], [], [], seconds)[0])
    finally:
        os.close(descriptor)


def kill_on_call(
    owner: object,
    name: str,
    call: int,
    *,
    when: Callable[..., bool] = lambda *a, **k: True,
    number: signal.Signals = signal.SIGKILL,
) -> None:
    """Make this process send itself a signal when a function is called for the n-th time.

    Args:
        owner: module or class that holds the function.
        name: of the function.
        call: number of the call, from 1, among those for which `when` holds.
        when: gets the function's arguments.
        number: of the signal.
    """
    original = getattr(owner, name)
    calls = 0

    def counted(*arguments: object, **keywords: object) -> object:
        nonlocal calls
        if when(*arguments, **keywords):
            calls += 1
            if calls == call:
                os.kill(os.getpid(), number)
        return original(*arguments, **keywords)

    setattr(owner, name, counted)


def folder_of(outputs: Path) -> Path:
    """The only run's folder."""
    (folder,) = (outputs / "runs").iterdir()
    return folder
