"""The loop."""

from __future__ import annotations

import logging

import torch

from lora_exp.console import progress
from lora_exp.train.evaluation import evaluate
from lora_exp.train.interruption import Interruption
from lora_exp.train.run import Diverged, Run

log = logging.getLogger("lora_exp")


def train(runs: list[Run], stop: Interruption) -> None:
    """Train runs to their ends: each is then done, failed or preempted (`run.state`).

    Args:
        runs: they take turns, an update each; each from its newest checkpoint if it has one.
        stop: asks to save and leave.
    """
    for run in runs:
        if run.resume():
            log.info("%s: going on from step %d", run.folder.name, run.progress.step)
        run.model.train()

    with progress() as bar:
        tasks = {run: bar.add_task("training", total=run.total_steps, note="") for run in runs}
        while live := [run for run in runs if run.state == "running"]:
            for run in live:
                try:
                    if stop.requested:
                        run.preempt()
                    elif run.evaluation_due:
                        run.write_training_metrics()
                        if (metrics := evaluate(run, stop, bar)) is not None:
                            best = run.note(metrics)
                            report(run, metrics, best)
                            run.save()  # first, so that no adapter is newer than its checkpoint
                            if best:
                                run.write_adapter()
                    elif run.finished:
                        run.finish()
                    else:
                        total = torch.zeros((), device=run.device)
                        for batch, share in run.micro_batches():
                            loss = run.loss(run.forward(batch), batch.labels) * share
                            loss.backward()
                            total += loss.detach()
                        run.update(total)
                        if run.checkpoint_due:
                            run.save()
                        run.heartbeat()
                except Diverged as reason:
                    run.fail(str(reason))
                note = f"epoch {run.epoch:.2f}"
                bar.update(tasks[run], completed=run.progress.step, note=note)


def report(run: Run, metrics: dict[str, float], best: bool) -> None:
    """A line for people about an evaluation."""
    numbers = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
    log.info(
        "epoch %-6g step %d/%d  %s%s",
        run.epoch,
        run.progress.step,
        run.total_steps,
        numbers,
        "  (best so far)" if best else "",
    )
