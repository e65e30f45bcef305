"""The loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from lora_exp.train.evaluation import evaluate
from lora_exp.train.interruption import Interruption
from lora_exp.train.outputs import write
from lora_exp.train.pack import Pack
from lora_exp.train.run import Run

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


def train(
    pack: Pack,
    runs: Sequence[Run],
    stop: Interruption,
    bar: Progress,
    more: Callable[[], Sequence[Run]],
) -> None:
    """Train runs to their ends: each is then done, failed or preempted (`run.state`).

    Args:
        pack: empty.
        runs: to begin with; each goes on from its checkpoint if it has one.
        stop: asks to save and leave.
        bar: shows where they are.
        more: called when a run has ended; those that take its place.
    """
    tasks: dict[Run, TaskID] = {}
    pack.join(runs)
    while pack.members:
        if pack.members[0].ranks.any(stop.requested is not None):
            pack.preempt()
            return
        before = len(pack.members)
        for run in [run for run in pack.members if run.ranks.any(run.cancelled)]:
            pack.cancel(run)
        evaluate_due(pack, stop, bar)
        for run in [run for run in pack.members if run.finished and not run.evaluation_due]:
            with pack.blaming(run):
                scores = write(run, pack.precision, stop, bar)
                if scores is not None or run.data.test is None:
                    run.finish(scores)
                    pack.leave(run)
        pack.expel()
        # What a signal broke off is still due, and nothing is trained any further before it.
        due = any(run.evaluation_due or run.finished for run in pack.members)
        if len(pack.members) == before and not due:
            pack.step()
            if any(run.checkpoint_due for run in pack.members):
                pack.save()
                pack.expel()
        for run in pack.members:
            with pack.blaming(run):
                run.heartbeat()
        pack.expel()
        if len(pack.members) < before:
            pack.join(more())
        for run in pack.members:
            if run not in tasks:
                tasks[run] = bar.add_task("training", total=run.total_steps, note="")
            note = f"epoch {run.epoch:.2f}"
            bar.update(tasks[run], completed=run.progress.step, note=note)
        for run in [run for run in tasks if run not in pack.members]:
            bar.remove_task(tasks.pop(run))


def evaluate_due(pack: Pack, stop: Interruption, bar: Progress) -> None:
    """Evaluate the members whose turn it is, write checkpoints, and then the best adapters: none is
    newer than the checkpoint that knows of it."""
    if not any(run.evaluation_due for run in pack.members):
        return
    best = []
    for run in pack.members:
        with pack.blaming(run):
            run.read_losses()  # clocks stand still meanwhile, and nothing diverged is evaluated
    pack.expel()
    for run in [run for run in pack.members if run.evaluation_due]:
        with pack.blaming(run):
            run.write_training_metrics()
            if (metrics := evaluate(run, pack.precision, stop, bar)) is not None:
                if run.note(metrics):
                    best.append(run)
                    run.write_predictions()  # no checkpoint has them: one newer does no harm
                report(run, metrics, run in best)
    pack.save()
    for run in best:
        with pack.blaming(run):
            run.write_adapter()
    pack.expel()


def report(run: Run, metrics: dict[str, float], best: bool) -> None:
    """A line for people about an evaluation."""
    numbers = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
    run.log.info(
        "epoch %-6g step %d/%d  %s%s",
        run.epoch,
        run.progress.step,
        run.total_steps,
        numbers,
        "  (best so far)" if best else "",
    )
