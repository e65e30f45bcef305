"""How fast is it? Each row of the table, by lora_exp and by what else there is, in turn.

    python benchmarks/speed.py                        # on GLUE beside the repository, or generated
    python benchmarks/speed.py --data DIR             # DIR has cola/
    python benchmarks/speed.py --only step-fp32 grid-bf16 --quick

Steps alternate A B A B in one process, on one core with one thread, in that thread's CPU time (on a
GPU: one process, time as it passes), with the same examples in the same batches; each row has a
process of its own. A ratio is theirs over ours, the median over the pairs of steps with the tenth
and ninetieth percentile: above 1, we are faster or smaller. Without `--only` and `--quick` the
table is written to `results/` as well.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import corpus
import processes
from measure import Row, Setting, Work, against, apart, one_core, shown, spread, timed

from lora_exp.runs.provenance import git_state

HERE = Path(__file__).resolve().parent


# -- steps ---------------------------------------------------------------------------------------


def step_fp32(setting: Setting) -> list[Row]:
    """MiniLM in fp32, against PEFT and loralib with dynamic padding."""
    import steps

    one_core()
    recipe = steps.Recipe(setting.data, setting.folder)
    what = "step, MiniLM, CoLA, batch 32, fp32; PEFT"
    return against_peft(what, recipe, setting.repeats(40), 1.8)


def step_loralib(setting: Setting) -> list[Row]:
    """The same against loralib."""
    import steps

    one_core()
    recipe = steps.Recipe(setting.data, setting.folder)
    loralib = steps.theirs(recipe, steps.with_loralib(recipe))
    what = "step, MiniLM, CoLA, batch 32, fp32; loralib"
    return [against(what, steps.ours(recipe).step, {"": loralib}, setting.repeats(40))]


def against_peft(what: str, recipe: Any, repeats: int, target: float) -> list[Row]:
    """A row with the same batches by the fastest of PEFT's settings, and one with batches that
    `train_sampling_strategy="group_by_length"` would make: other examples, hardly any padding."""
    import steps

    pack, found = steps.ours(recipe), peft_settings(recipe)
    same = against(what, pack.step, found, repeats, target)
    lengths = pack.members[0].data.train.lengths.tolist()
    order = partial(steps.grouped, lengths, recipe.batch_size)
    found = peft_settings(recipe, order)
    return [same, against(f"{what}, grouped by length", pack.step, found, repeats, target)]


def peft_settings(recipe: Any, order: Callable[[], Any] | None = None) -> dict[str, Work]:
    """Ways to have PEFT train in a precision; `order` makes batches other than ours."""
    import steps
    import torch

    types = {"fp32 model": (torch.float32, False)}
    if recipe.precision == "bf16":
        types = {
            "fp32 model, autocast": (torch.float32, True),
            "bf16 model, autocast": (torch.bfloat16, True),
            "bf16 model": (torch.bfloat16, False),
        }
    return {
        f"{name}, {attention}": steps.theirs(
            recipe,
            steps.with_peft(recipe, dtype, attn_implementation=attention),
            autocast=autocast,
            order=order() if order else None,
        )
        for name, (dtype, autocast) in types.items()
        for attention in ("sdpa", "eager")
    }


def step_bf16(setting: Setting) -> list[Row]:
    """MiniLM with a bf16 backbone."""
    import steps

    one_core()
    recipe = steps.Recipe(setting.data, setting.folder, precision="bf16")
    what = "step, MiniLM, CoLA, batch 32, bf16; PEFT"
    return against_peft(what, recipe, setting.repeats(40), 2.5)


def roberta(setting: Setting, **more: Any) -> Any:
    """A recipe for RoBERTa-base with random weights, on sentences as long as CoLA's."""
    import steps

    data = corpus.write(setting.folder / "data", corpus.lengths_of(setting.data))
    model = corpus.save_model(setting.folder / "model", "roberta")
    return steps.Recipe(data, setting.folder, model, precision="bf16", **more)


def step_roberta(setting: Setting) -> list[Row]:
    """RoBERTa-base in bf16 on a CPU."""
    one_core()
    recipe = roberta(setting, batch_size=8)
    what = "step, RoBERTa-base (random), CoLA lengths, batch 8, bf16; PEFT"
    return against_peft(what, recipe, setting.repeats(30), 1.7)


def step_512(setting: Setting) -> list[Row]:
    """MiniLM, against padding to 512 as the original example does."""
    import steps

    one_core()
    recipe = steps.Recipe(setting.data, setting.folder, batch_size=8, max_length=512)
    peft = steps.theirs(recipe, steps.with_peft(recipe), padding="max_length")
    what = "step, MiniLM, CoLA, batch 8, fp32; PEFT, padded to 512"
    pack, repeats = steps.ours(recipe), setting.repeats(5)
    return [against(what, pack.step, {"": peft}, repeats, 30, warmup=1)]


def step_full(setting: Setting) -> list[Row]:
    """Full fine-tuning."""
    import steps

    one_core()
    recipe = steps.Recipe(setting.data, setting.folder, method="full")
    plain = steps.theirs(recipe, steps.plain(recipe))
    what = "step, MiniLM, CoLA, batch 32, fp32, full fine-tuning; transformers"
    return [against(what, steps.ours(recipe).step, {"": plain}, setting.repeats(30))]


def floor_minilm(setting: Setting, precision: str) -> list[Row]:
    """MiniLM against the least that a step has to do."""
    import floor
    import steps

    one_core()
    recipe = steps.Recipe(setting.data, setting.folder, precision=precision)
    return floor.rows(f"MiniLM, CoLA, batch 32, {precision}", recipe, setting.repeats(40))


def floor_roberta(setting: Setting) -> list[Row]:
    """The same for RoBERTa-base."""
    import floor

    one_core()
    what = "RoBERTa-base (random), CoLA lengths, batch 8, bf16"
    return floor.rows(what, roberta(setting, batch_size=8), setting.repeats(30))


def cuda_roberta(setting: Setting) -> list[Row]:
    """RoBERTa-base on a GPU: one run, and eight in a pack."""
    import steps

    recipe = roberta(setting, batch_size=16, device="cuda")
    what = "GPU: step, RoBERTa-base (random), CoLA lengths, batch 16, bf16; PEFT"
    theirs, repeats = peft_settings(recipe), setting.repeats(100)
    alone = against(what, steps.ours(recipe).step, theirs, repeats, 3, warmup=20)
    what = "GPU: 8 such runs packed; 8 in a row of PEFT"
    pack = steps.ours(recipe, runs=8)
    return [alone, against(what, pack.step, theirs, repeats, 12, scale=8, warmup=20)]


def cuda_peak(setting: Setting) -> list[Row]:
    """Share of the GPU's bf16 matmul rate that long steps reach."""
    import steps
    import torch

    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    fastest = min(timed(lambda: a @ b) for _ in range(setting.repeats(50)))
    peak = 2 * 8192**3 / fastest
    rows = []
    for architecture, length, batch_size in (("roberta", 128, 512), ("gpt2", 512, 32)):
        folder = setting.folder / architecture
        data = corpus.write(folder / "data", [length] * 4096)
        model = corpus.save_model(folder / "model", architecture)
        recipe = steps.Recipe(
            data, folder, model, batch_size, "bf16", max_length=length, device="cuda"
        )
        pack = steps.ours(recipe)
        for _ in range(3):
            pack.step()
        seconds = [timed(pack.step) for _ in range(setting.repeats(20))]
        # Forward, and backward to the activations: 2 floating-point operations per weight each.
        base: Any = pack.members[0].model.base_model
        layers = base.encoder.layer if architecture == "roberta" else base.h
        weights = sum(p.numel() for p in layers.parameters() if p.ndim == 2 and not p.requires_grad)
        shares = [4 * weights * length * batch_size / second / peak for second in seconds]
        middle, text = spread(shares)
        what = f"GPU: {architecture}, {batch_size} x {length} tokens a step, share of matmul peak"
        own = shown(statistics.median(seconds))
        rows.append(Row(what, own, f"{peak / 1e12:.0f} TFLOP/s", text, "0.5", middle >= 0.5))
    return rows


# -- the table -----------------------------------------------------------------------------------

ROWS: dict[str, Callable[[Setting], list[Row]]] = {
    "step-fp32": step_fp32,
    "step-loralib": step_loralib,
    "step-bf16": step_bf16,
    "step-roberta": step_roberta,
    "step-512": step_512,
    "step-full": step_full,
    "floor-fp32": partial(floor_minilm, precision="fp32"),
    "floor-bf16": partial(floor_minilm, precision="bf16"),
    "floor-roberta": floor_roberta,
    "grid-fp32": partial(processes.grid, precision="fp32"),
    "grid-bf16": partial(processes.grid, precision="bf16"),
    "memory": processes.memory,
    "start": processes.start,
    "worker": processes.worker,
    "cuda-roberta": cuda_roberta,
    "cuda-peak": cuda_peak,
}


def main() -> None:
    """Measure the rows that are named, or all that this machine can, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    beside = HERE.parents[1] / "shared" / "data" / "glue"
    parser.add_argument("--data", default=str(beside), help="folder that has cola/")
    parser.add_argument("--only", nargs="+", default=[], choices=list(ROWS))
    parser.add_argument("--quick", action="store_true", help="few repeats")
    given = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    gpu = apart(gpu_name)
    names = given.only or [name for name in ROWS if gpu or not name.startswith("cuda-")]
    began, rows = time.monotonic(), list[Row]()
    with tempfile.TemporaryDirectory() as folder:
        data = corpus.cola(given.data, Path(folder, "data"))
        for name in names:
            own = Path(folder, name)
            own.mkdir()
            for row in apart(partial(ROWS[name], Setting(data, own, given.quick))):
                print(row, flush=True)
                rows.append(row)
    text = report(rows, gpu, time.monotonic() - began)
    if not given.only and not given.quick:
        file = HERE / "results" / f"{slug(gpu or cpu_name())}.md"
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        print(f"written to {file.relative_to(HERE.parent)}", file=sys.stderr)


def report(rows: list[Row], gpu: str | None, seconds: float) -> str:
    """The table and what it was measured on, in Markdown."""
    packages = ("torch", "transformers", "peft", "loralib")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    package = HERE.parent / "lora_exp" / "__init__.py"
    git, _ = git_state(package) or ({"commit": "no commit", "dirty": False}, "")
    code = git["commit"][:12] + (" with uncommitted changes" if git["dirty"] else "")
    lines = [
        f"# {gpu or cpu_name()}",
        "",
        f"`python benchmarks/speed.py`, {time.strftime('%Y-%m-%d')}, {seconds / 60:.0f} minutes;",
        f"{code}.",
        f"{cpu_name()}, {os.cpu_count()} cores{f'; {gpu}' if gpu else ''}; {versions}.",
        "What follows a semicolon in the first column is what we are compared with. Ratios are",
        "theirs / ours: median (10th to 90th percentile; of the grid: least to most). Batches are",
        "the same on both sides; `grouped by length`, PEFT has others, of similar lengths.",
        "",
        "| what | ours | theirs | ratio | target | reached |",
        "|---|---|---|---|---|---|",
        *map(str, rows),
    ]
    return "\n".join(lines) + "\n"


def gpu_name() -> str | None:
    """Of the GPU that torch would use, if there is one."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def cpu_name() -> str:
    """The model, as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def slug(name: str) -> str:
    """As a file's name."""
    plain = name.replace("(R)", "").replace("(TM)", "").lower()
    return "-".join("".join(c if c.isalnum() else " " for c in plain).split())


if __name__ == "__main__":
    main()
