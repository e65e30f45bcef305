"""Commands in this very process: hundreds of mistakes in the time that a few processes take."""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

LONG = "LORA_EXP_LONG"
"""The variable of the environment that makes campaigns long; docs/reliability.md tells of them."""


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int
    output: str
    """What it wrote to stdout."""
    errors: str
    """What it wrote to stderr."""

    @property
    def message(self) -> str:
        """The one message of a command that was refused."""
        assert self.status == 2, f"status {self.status}: {self.output}{self.errors}"
        assert self.errors.startswith("lora_exp: "), self.errors
        assert self.errors.count("lora_exp: ") == 1, self.errors
        assert "Traceback" not in self.errors, self.errors
        assert len(self.errors) < 4000, "nobody reads so much"
        assert self.errors.replace("\n", "").replace("\t", "").isprintable(), ascii(self.errors)
        return self.errors.removeprefix("lora_exp: ")


def run(*arguments: str) -> Ended:
    """`python -m lora_exp ARGUMENTS`. An exception that the command line lets through comes out."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig

    from lora_exp import cli

    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["lora_exp", *arguments])
        patch.setattr(cli, "_planning", False)
        patch.setenv(cli.FULL_ERROR, "0")  # what the command sets ends with it
        with redirect_stdout(io.StringIO()) as output, redirect_stderr(io.StringIO()) as errors:
            try:
                cli.main()
                status = 0
            except SystemExit as leaving:
                status = leaving.code if isinstance(leaving.code, int) else 1
    return Ended(status, output.getvalue(), errors.getvalue())


def refused(outputs: Path, *arguments: str) -> str:
    """What a command that trains says when it is refused; no run may be left, or begun.

    Args:
        outputs: the folder of its runs.
        arguments: of the command line.
    """
    message = run(f"outputs={outputs}", *arguments).message
    for folder in ("runs", "grids", "snapshots", "superseded"):
        assert not (outputs / folder).exists(), f"{folder} was made"
    return message
