"""A grid on this machine that goes on without its terminal."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from lora_exp import console
from lora_exp.grid import snapshot
from lora_exp.runs.grid import Grid


def start(grid: Grid) -> None:
    """Train what is left of a grid in the background, with the code of now."""
    code = grid.outputs / "snapshots" / grid.record["snapshot"]
    command = [sys.executable, "-m", "lora_exp.grid.detached", str(grid.path)]
    paths = [snapshot.python_path(code), *filter(None, [os.environ.get("PYTHONPATH")])]
    more = {"PYTHONPATH": ":".join(paths), "PYTHONSAFEPATH": "1"}
    with grid.log.open("a") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=os.environ | more,
        )
    console.log.info(
        "Grid %s goes on in the background (process %d). Its log: %s. It is stopped by: %s",
        grid.name,
        process.pid,
        console.shown(grid.log),
        console.verb(f"cancel grid={grid.name}", grid.outputs),
    )


def main() -> None:
    """`python -m lora_exp.grid.detached GRID`."""
    from lora_exp.grid import notify
    from lora_exp.grid.local import train_later, train_runs

    console.set_up()
    grid = Grid(Path(sys.argv[1]))
    if left := grid.left:  # unless it has been cancelled by now
        train_runs(grid, left)
    train_later(grid)
    notify.ended(grid)


if __name__ == "__main__":
    main()
