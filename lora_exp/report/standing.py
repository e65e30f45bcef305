"""What a table cannot show: the runs that have no result, and why; the metrics that are missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from lora_exp.runs.records import LOST, RunRecord
from lora_exp.text import count, counted, reason

LISTED = 20
"""Most failed runs that are named."""


def standing(runs: Sequence[RunRecord]) -> list[str]:
    """Lines under a table: how many runs of each state there are, failures, missing metrics."""
    failed = [run for run in runs if run.state in ("failed", LOST)]
    lines = [f"{counted(runs)}."]
    lines += [
        f"{run.name} {run.state}: {reason(run) or 'no reason given'}" for run in failed[:LISTED]
    ]
    if len(failed) > LISTED:
        lines.append(f"and {len(failed) - LISTED:,} more: status state=failed,lost")
    if damaged := [run.name for run in runs if run.damaged]:
        lines.append(f"Damaged, and told of by `show`: {', '.join(damaged)}.")
    missing = Counter(
        (metric, reason)
        for run in runs
        if run.state == "done"
        for metric, reason in ((run.result or {}).get("missing") or {}).items()
    )
    lines += [
        f"{metric} is missing in {count(number)}: {reason}"
        for (metric, reason), number in missing.items()
    ]
    return lines
