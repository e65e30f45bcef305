"""A worker that goes on from run to run keeps nothing of them; how many: `soak.py --runs 1000`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_sixty_runs_in_one_worker_leave_no_descriptors_and_little_memory() -> None:
    """A graph of a step that stays behind for each run is more than 1.5 percent."""
    campaign = [sys.executable, str(Path(__file__).with_name("soak.py"))]
    done = subprocess.run(
        [*campaign, "--runs", "60", "--growth", "1.5"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 lost" in done.stdout
