"""DeBERTa-v2-XXL and GPT-2 large: a few updates of LoRA in bf16, with the memory that they take.

    python benchmarks/large.py [--updates 3] [--batch-size 4]

The models have their published shapes and random weights in bf16 (about 3.1 and 1.5 GB, in a
temporary folder); sentences have the lengths of CoLA's. Through the command line, one process for
each. Printed as Markdown: trained parameters, memory of a step as it was predicted, the peak of the
process (loading included: then the weights are there twice, once in fp32), seconds of an update.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from corpus import cola, save_model

from lora_exp.runs.records import Records

ARCHITECTURES = {"deberta-v2": "DeBERTa-v2-XXL", "gpt2-large": "GPT-2 large"}


def main() -> None:
    """Train, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--updates", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=4)
    given = parser.parse_args()
    print("| model | trained | a step, predicted | of it backbone | peak of all | an update |")
    print("|---" * 6 + "|")
    for architecture, title in ARCHITECTURES.items():
        with tempfile.TemporaryDirectory() as folder:
            print(f"| {title} | {_trained(Path(folder), architecture, given)} |", flush=True)


def _trained(work: Path, architecture: str, given: argparse.Namespace) -> str:
    data = cola(None, work)
    for name, lines in (("train.tsv", given.updates * given.batch_size), ("dev.tsv", 8)):
        file = data / "cola" / name
        kept = file.read_text().splitlines(keepends=True)[: 1 + lines]
        file.write_text("".join(kept))
    command = [
        *(sys.executable, "-m", "lora_exp", "task=cola", f"task.data_dir={data}"),
        f"model.name_or_path={save_model(work / 'model', architecture, 'bfloat16')}",
        f"train.batch_size={given.batch_size}",
        *("train.precision=bf16", "train.epochs=1", "lora.r=16", "lora.alpha=32"),
        f"outputs={work / 'outputs'}",
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (run,) = Records(work / "outputs").runs
    log = run.folder.log.read_text()
    (step,) = re.findall(r"memory of a step: about ([\d,]+) MiB \(backbone ([\d,]+),", log)
    result = run.result
    assert result is not None
    peak = f"{result['peak_memory_bytes'] / 2**20:,.0f}"
    seconds = result["train_seconds"] / given.updates
    number = f"{result['trainable_parameters']:,}"
    return f"{number} | {step[0]} MiB | {step[1]} MiB | {peak} MiB | {seconds:.1f} s"


if __name__ == "__main__":
    main()
