"""Commands that submit overlapping grids at once; how many: `concurrency.py --processes 20`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_overlapping_grids_of_commands_at_once_train_each_run_once() -> None:
    campaign = [sys.executable, str(Path(__file__).with_name("concurrency.py")), "--processes", "5"]
    done = subprocess.run(campaign, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 commands, 20 points, 8 runs, 4 grids" in done.stdout
