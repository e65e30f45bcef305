"""Telling somebody that a grid has ended: a message to a webhook, a command of theirs.

Both are named by the environment and nothing else. The address of a webhook is a secret: whoever
has it can write in its channel; so it is in no config, and with that in no folder and no log.

    LORA_EXP_WEBHOOK    gets {"text": ...} by POST, as Slack, Mattermost and others take it
    LORA_EXP_EXIT_HOOK  a command for the shell, with the same text as its input, and in its
                        environment LORA_EXP_GRID, LORA_EXP_OUTPUTS, LORA_EXP_RUNS, LORA_EXP_DONE
                        and LORA_EXP_FAILED
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from threading import Thread
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from lora_exp import console
from lora_exp.report.groups import Group, Summary, grouped
from lora_exp.report.pivot import spread, telling
from lora_exp.report.units import lower_is_better
from lora_exp.runs.grid import Grid
from lora_exp.runs.records import Records, RunRecord
from lora_exp.runs.selector import text_of
from lora_exp.text import columns, count, counted, reason

WEBHOOK, EXIT_HOOK = "LORA_EXP_WEBHOOK", "LORA_EXP_EXIT_HOOK"
SECONDS = 10.0
"""For each of them, at most."""
LINES = 10
"""Of the table, of all tasks together."""
FAILURES = 3
"""That are told with their reasons."""

log = logging.getLogger("lora_exp")


def ended(grid: Grid) -> None:
    """Tell whoever the environment names; what goes wrong with that is one warning."""
    address, command = os.environ.get(WEBHOOK), os.environ.get(EXIT_HOOK)
    if not (address or command):
        return
    try:
        records = Records(grid.outputs)
        runs = [records.of(folder) for folder in grid.runs]
        text = message(grid, runs)
        if address:
            _post(address, text)
        if command:
            _call(command, text, grid, runs)
    except Exception as error:  # the grid has its results
        why = type(error).__name__
        log.warning("Nobody could be told of the end of %s (%s).", grid.name, why, exc_info=error)


def message(grid: Grid, runs: Sequence[RunRecord]) -> str:
    """What is told: how many runs ended how, the best groups of each task, the first failures."""
    study = grid.record.get("study")
    of = f" (study {study})" if study and study != grid.name else ""
    parts = [f"lora_exp: grid {grid.name}{of} has ended. {counted(runs)}."]
    if top := _top(runs):
        parts.append(f"```\n{top}\n```")
    failed = [run for run in runs if run.state == "failed"]
    for run in failed[:FAILURES]:
        parts.append(f"{run.name} failed: {reason(run) or 'no reason given'}")
    if len(failed) > FAILURES:
        parts.append(f"and {count(len(failed) - FAILURES, 'failure')} more")
    parts.append(f"All of it: {console.verb(f'report grid={grid.name}', grid.outputs)}")
    return "\n".join(parts)


def _top(runs: Sequence[RunRecord]) -> str:
    """The best groups of each task, best first."""
    tasks: dict[str, list[tuple[Group, str, Summary]]] = {}
    for group in grouped(runs):
        metric = group.main_metric
        if metric is not None and (summary := group.summary(metric)) is not None:
            tasks.setdefault(group.value_of("task"), []).append((group, metric, summary))
    groups = [group for members in tasks.values() for group, _, _ in members]
    keys = ["task", "method"]
    keys += telling(groups, keys)
    rows = []
    for members in tasks.values():
        members.sort(key=lambda member: _rank(*member[1:]))
        for group, metric, summary in members[: max(1, LINES // len(tasks))]:
            labels = [text_of(group.value_of(key)) for key in keys]
            rows.append([*labels, metric, spread(summary, metric), count(summary.seeds, "seed")])
    return columns([*keys, "metric", "", ""], rows) if rows else ""


def _rank(metric: str, summary: Summary) -> float:
    return summary.mean if lower_is_better(metric) else -summary.mean


def _post(address: str, text: str) -> None:
    problems: list[str] = []
    silence = f"no answer for {SECONDS:g} s"

    def send() -> None:
        try:
            body = json.dumps({"text": text}).encode()
            request = Request(address, body, {"Content-Type": "application/json"})
            with urlopen(request, timeout=SECONDS):
                pass
        except TimeoutError:
            problems.append(silence)
        except HTTPError as error:
            problems.append(f"HTTP status {error.code}")
        except URLError as error:
            problems.append(str(error.reason))
        except Exception as error:
            problems.append(type(error).__name__)  # its words may hold the address

    # A thread, since a name server or a slow answer may take longer than any timeout says.
    thread = Thread(target=send, daemon=True)
    thread.start()
    thread.join(SECONDS)
    for problem in [silence] if thread.is_alive() else problems:
        log.warning("%s did not take the message: %s.", WEBHOOK, problem)


def _call(command: str, text: str, grid: Grid, runs: Sequence[RunRecord]) -> None:
    states = Counter(run.state for run in runs)
    told = {
        "LORA_EXP_GRID": grid.name,
        "LORA_EXP_OUTPUTS": str(grid.outputs.absolute()),
        "LORA_EXP_RUNS": str(len(runs)),
        "LORA_EXP_DONE": str(states["done"]),
        "LORA_EXP_FAILED": str(states["failed"]),
    }
    process = subprocess.Popen(
        command,
        shell=True,
        stdin=subprocess.PIPE,
        env=os.environ | told,
        text=True,
        start_new_session=True,
    )
    try:
        process.communicate(text + "\n", timeout=SECONDS)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        log.warning("%s took longer than %g s, and was ended.", EXIT_HOOK, SECONDS)
        return
    if process.returncode:
        log.warning("%s ended with status %d.", EXIT_HOOK, process.returncode)
