"""The speed figures of whole processes: grids, start-up, warm workers, memory."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import corpus
from measure import Row, Setting, apart, give_back_memory, mib, one_core, shown, spread, timed

HERE = Path(__file__).resolve().parent

# -- grids, start-up, workers --------------------------------------------------------------------


def command(*arguments: str, threads: int | None = None) -> subprocess.Popen[bytes]:
    """Start Python with arguments, offline and silent."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    return subprocess.Popen(
        [sys.executable, *arguments],
        env=environment,
        cwd=HERE.parent,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def finish(*processes: subprocess.Popen[bytes]) -> None:
    """Wait for them.

    Raises:
        RuntimeError: if one failed.
    """
    statuses = [process.wait() for process in processes]
    if any(statuses):
        raise RuntimeError(f"failed: {[process.args for process in processes]}")


def grid(setting: Setting, precision: str) -> list[Row]:
    """Eight short runs, start-up and evaluation included, by both in the same precision."""
    from lora_exp import models
    from lora_exp.runs.config import ModelConfig
    from lora_exp.tasks import agreement

    data, numbers, steps = setting.folder / "agreement", iter(range(1000)), 30
    data.mkdir()
    for name, rows in zip(("train", "dev"), agreement.generate(), strict=True):
        lines = [f"{sentence}\t{label}\n" for sentence, label in rows]
        (data / f"{name}.tsv").write_text("sentence\tlabel\n" + "".join(lines))
    model = models.locate(ModelConfig(corpus.MINILM))
    points = [(r, seed) for r in (1, 2, 4, 8) for seed in (1, 2)]

    def ours() -> None:
        outputs = f"outputs={setting.folder / f'grid-{next(numbers)}'}"
        axes = ("lora.r=1,2,4,8", "seed=1,2", f"train.max_steps={steps}", outputs)
        task = ("task=agreement", f"train.precision={precision}")
        finish(command("-m", "lora_exp", "-m", *task, *axes))

    def theirs(at_once: int) -> None:
        threads = max(1, (os.cpu_count() or 1) // at_once)
        for start in range(0, len(points), at_once):
            running = []
            for r, seed in points[start : start + at_once]:
                output = setting.folder / f"trainer-{next(numbers)}"
                given = {"model": model, "data": data, "output": output}
                given |= {"r": r, "seed": seed, "max_steps": steps, "precision": precision}
                words = [
                    word for name, value in given.items() for word in (f"--{name}", str(value))
                ]
                running.append(command(str(HERE / "trainer.py"), *words, threads=threads))
            finish(*running)

    what = f"grid of 8 runs, MiniLM, {steps} updates each, {precision}, all cores; PEFT + Trainer "
    repeats = 1 if setting.quick else 3
    rounds = [
        (timed(ours), timed(partial(theirs, 1)), timed(partial(theirs, 2))) for _ in range(repeats)
    ]
    rows = []
    for place, how, target in ((1, "in a row", 5.0), (2, "two at a time", 2.7)):
        ratios = [seconds[place] / seconds[0] for seconds in rounds]
        own, other = (statistics.median(seconds[i] for seconds in rounds) for i in (0, place))
        middle = statistics.median(ratios)
        text = f"{middle:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        reached = middle >= target
        rows.append(Row(what + how, shown(own), shown(other), text, f"{target:g} times", reached))
    return rows


def start(setting: Setting) -> list[Row]:
    """Showing a config."""

    def work() -> None:
        finish(command("-m", "lora_exp", "task=cola", "--cfg", "job"))

    work()
    middle, text = spread([timed(work) for _ in range(setting.repeats(15))])
    return [Row("`--cfg job`", f"{text} s", "", "", "0.5 s", middle < 0.5)]


def worker(setting: Setting) -> list[Row]:
    """A further grid point in a warm worker: a run with one update and eight sentences to evaluate.

    That is the time between the ends of runs that train one after the other; in packs, from end to
    end of a pack over its runs. What is left without the update and the evaluation is what it
    costs that they are a run.
    """
    one_core()
    rows = []
    for size in (1, 8):
        ends, computing = _trivial_runs(setting, size)
        gaps = [(b - a) / size for a, b in pairwise(ends[size - 1 :: size])]
        middle, text = spread(gaps)
        what = f"a further run in a warm worker, {'alone' if size == 1 else f'in packs of {size}'}"
        rows.append(Row(what, f"{text} s", "", "", "0.1 s", middle < 0.1))
        if size == 1:
            rest = [gap - seconds for gap, seconds in zip(gaps, computing[1:], strict=True)]
            rows.append(
                Row(f"{what}, but for update and evaluation", f"{spread(rest)[1]} s", "", "")
            )
    return rows


def _trivial_runs(setting: Setting, size: int) -> tuple[list[float], list[float]]:
    """When each of some trivial runs ended in a worker that packs as many, and how many seconds
    each was updated and evaluated."""
    import steps

    from lora_exp.runs.config import PackConfig
    from lora_exp.train.job import identify
    from lora_exp.train.work import work

    data = corpus.write(setting.folder / "data", [12] * 80)
    recipe = steps.Recipe(data, setting.folder / f"by-{size}", batch_size=8)
    runs = []
    for seed in range(1, 1 + size * setting.repeats(15)):
        config = recipe.config(seed)
        train = replace(config.train, max_steps=1)
        run = identify(replace(config, train=train, pack=PackConfig(size)))
        run.folder.create(run.config, {})
        runs.append(run.folder)
    waiting = [run.path for run in runs]
    ends: list[float] = []

    class Runs:
        def take(self, like: Path | None, number: int) -> list[Path]:
            if like is not None and len(waiting) % size == 0:
                return []  # whole packs: none takes another's place
            return [waiting.pop(0) for _ in range(min(number, len(waiting)))]

        def ended(self, run: Path, state: str) -> None:
            assert state == "done", (run / "status.json").read_text()
            ends.append(time.perf_counter())

    work(Runs(), "cpu")
    computing = []
    for run in runs:
        result, lines = run.result, list(run.metrics())
        assert result is not None
        evaluated = sum(line["seconds"] for line in lines if line["split"] == "validation")
        computing.append(result["train_seconds"] + evaluated)
    return ends, computing


# -- memory --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Memory:
    """Bytes of a process that trains."""

    loaded: int
    """With models and data, beyond what imports take."""
    peak: int
    """Of the largest steps, beyond what imports take."""
    predicted: int = 0
    """Of the largest step beyond what was loaded, by `lora_exp.train.memory`."""
    backbone: int = 0
    """Of the weights that runs share."""

    @property
    def step(self) -> int:
        """Beyond what was loaded."""
        return self.peak - self.loaded


def memory(setting: Setting) -> list[Row]:
    """Peak memory of a step, and of eight runs in a pack; the steps are the largest of an epoch."""
    rows = []
    for precision in ("fp32", "bf16"):
        single, pack = (_middle(setting, partial(_ours, setting, precision, n)) for n in (1, 8))
        dtypes = sorted({"fp32", precision})
        found = [_middle(setting, partial(_peft, setting, precision, dtype)) for dtype in dtypes]
        peft = min(found, key=lambda memory: memory.step)
        ratio = peft.step / single.step
        what = f"memory of a step, MiniLM, CoLA, batch 32, {precision}; PEFT"
        rows.append(Row(what, mib(single.step), mib(peft.step), f"{ratio:.2f}", "1", ratio >= 1))
        bound = single.loaded + 8 * single.step
        ratio = bound / pack.peak
        what = f"memory of 8 runs packed, {precision}; one loaded and 8 times its step"
        reached = ratio >= 1 / 1.1
        rows.append(Row(what, mib(pack.peak), mib(bound), f"{ratio:.2f}", "0.91", reached))
        for name, one in (("1 run", single), ("8 runs", pack)):
            what = f"memory of a step of {name}, {precision}; as predicted"
            ratio = f"{one.predicted / one.step:.2f}"
            rows.append(Row(what, mib(one.step), mib(one.predicted), ratio))
    return rows


def _middle(setting: Setting, work: Callable[[], Memory]) -> Memory:
    """The median of some processes."""
    found = [apart(work) for _ in range(1 if setting.quick else 3)]
    texts = ", ".join(mib(one.step) for one in found)
    print(f"  memory of a step in each process: {texts}", file=sys.stderr)
    return sorted(found, key=lambda memory: memory.step)[len(found) // 2]


def _ours(setting: Setting, precision: str, runs: int) -> Memory:
    """What so many packed runs take."""
    import steps

    from lora_exp.train.memory import need

    one_core()
    folder = setting.folder / f"{precision}-{runs}"
    recipe = steps.Recipe(setting.data, folder, precision=precision)
    imported = _in_use()
    pack = steps.ours(recipe, runs)
    loaded = _in_use()
    for run in pack.members:
        run.progress.step = next(_largest(run.data.train.lengths.tolist(), run.config.seed))[0]
    pack.step()
    pack.step()
    peak = _peak()
    needs = [need(run) for run in pack.members]
    # Parameters and their gradients, half of what is trained, are there from the start.
    predicted = sum(need.activations + need.trained // 2 for need in needs)
    return Memory(loaded - imported, peak - imported, predicted, needs[0].backbone)


def _peft(setting: Setting, precision: str, dtype: str) -> Memory:
    """What a run by PEFT takes with the frozen weights in that type."""
    import steps
    import torch

    one_core()
    recipe = steps.Recipe(setting.data, setting.folder, precision=precision)
    chosen = _largest(corpus.lengths_of(setting.data), recipe.config().seed)
    order = iter([batch for _, batch in chosen])
    imported = _in_use()
    model = steps.with_peft(recipe, torch.bfloat16 if dtype == "bf16" else torch.float32)
    for parameter in model.parameters():
        parameter.sum()  # else a file that is mapped is read in the step only
    step = steps.theirs(recipe, model, autocast=precision == "bf16", order=order)
    loaded = _in_use()
    step()
    step()
    return Memory(loaded - imported, _peak() - imported)


def _largest(lengths: list[int], seed: int) -> Iterator[tuple[int, list[int]]]:
    """The batch of 32 with the most tokens in the first epoch, and the one after it: numbers of the
    batches, and of their examples."""
    from lora_exp.train.batches import epoch_order

    order = epoch_order(len(lengths), seed, 0).tolist()
    batches = [order[start : start + 32] for start in range(0, len(order), 32)]
    sizes = [sum(lengths[i] for i in batch) for batch in batches]
    first = sizes.index(max(sizes))
    return iter([(first, batches[first]), (first + 1, batches[first + 1])])


def _in_use() -> int:
    """Bytes of this process now; its peak counts from here."""
    import torch

    from lora_exp.train.device import reset_peak_memory

    give_back_memory()
    reset_peak_memory(torch.device("cpu"))
    return _peak()


def _peak() -> int:
    import torch

    from lora_exp.train.device import peak_memory

    return peak_memory(torch.device("cpu"))
