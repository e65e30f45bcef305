"""Every method on text generation, with a small GPT-2 that is made here from nothing.

    python benchmarks/generation.py --data DIR     # DIR has e2e/ and webnlg/ of .jsonl.gz

A GPT-2 of about 9M parameters, with a byte-level BPE of 4,096 tokens, is pre-trained on the
training texts with method=full (`--pretraining` updates). Then each method trains on E2E and WebNLG
for `--updates` updates of 16 pairs and decodes the first `--sources` test sources (beam 5), all
through the command line. Printed as Markdown: trained parameters, perplexity on 50 validation
sources, scores, seconds of training. What is done is not done again: the same command goes on.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from lora_exp.runs.config import TaskConfig
from lora_exp.runs.records import Records

TASKS = ("e2e", "webnlg")
VALIDATION = 50
# The learning rates of the published recipes are for 40 times as many parameters.
METHODS = {
    "full": ["train.lr=5e-4"],
    "full_top": ["train.lr=1e-3"],
    "lora": ["train.lr=2e-3", "lora.r=4", "lora.alpha=32"],
    "lora all_linear": ["train.lr=2e-3", "lora.r=4", "lora.alpha=32", "lora/placement=all_linear"],
    "adapter": ["train.lr=2e-3", "adapter.kind=lin", "adapter.size=16"],
    "bitfit": ["train.lr=5e-3"],
    "prefix": ["train.lr=2e-3", "prefix.length=5", "prefix.hidden=512"],
    "prompt": ["train.lr=2e-2", "prompt.length=5"],
}
SHARED = ["device=auto", "train.warmup_steps=20", "train.batch_size=16", "train.eval_every=100000"]
# The published recipes decode in two ways; here all methods write under the same rules.
WRITING = [
    "decoding.beam_size=5",
    "decoding.length_penalty=0.8",
    "decoding.no_repeat_ngram=4",
    "decoding.max_new_tokens=64",
    "decoding.min_length=0",
    "decoding.banned=[]",
]


def main() -> None:
    """Train, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("outputs/benchmark-generation"))
    parser.add_argument("--pretraining", type=int, default=600)
    parser.add_argument("--updates", type=int, default=150)
    parser.add_argument("--sources", type=int, default=100)
    parser.add_argument("--methods", nargs="+", default=[*METHODS], choices=[*METHODS])
    given = parser.parse_args()
    work, data = given.work.absolute(), given.data.absolute()
    backbone = work / "backbone"
    if not backbone.exists():
        pretrain(work, data, given.pretraining)
        run = next((work / "pretraining" / "runs").iterdir()).name
        lora_exp(
            "export", run, "--to=merged", "--out", backbone, f"--outputs={work / 'pretraining'}"
        )
    for method in given.methods:
        overrides = [f"task={','.join(TASKS)}", f"method={method.split()[0]}", *METHODS[method]]
        overrides += [f"task.data_dir={work / 'data'}", f"model.name_or_path={backbone}", *SHARED]
        overrides += [f"train.max_steps={given.updates}", f"decoding.examples={given.sources}"]
        overrides += [*WRITING, f"outputs={work}", f"grid={method.replace(' ', '-')}"]
        lora_exp("-m", *overrides)
    print(table(work, given.methods))


def pretrain(work: Path, data: Path, updates: int) -> None:
    """A model that writes texts of these kinds, whatever it is asked."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    from lora_exp.tasks import load_generation

    texts = []
    for task in TASKS:
        shorten(data / task, work / "data" / task)
        config = TaskConfig(name=task, kind="generation", corpus=task, data_dir=str(data))
        texts += [f"{pair.source} {pair.target}" for pair in load_generation(config).train]
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(texts, vocab_size=4096, special_tokens=["<|endoftext|>"])
    end = {"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, **end)
    sizes = GPT2Config(n_embd=320, n_layer=6, n_head=5, n_positions=512, vocab_size=4096)
    sizes.bos_token_id = sizes.eos_token_id = 0
    model = GPT2LMHeadModel(sizes)
    for part in (model, tokenizer):
        part.save_pretrained(work / "random")
    folder = work / "texts"
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"source": "text", "references": [text]}) for text in texts]
    (folder / "train.jsonl").write_text("\n".join(lines))
    (folder / "validation.jsonl").write_text("\n".join(lines[:: len(lines) // VALIDATION]))
    values = [f"task.data_dir={folder}", f"model.name_or_path={work / 'random'}", *SHARED]
    values += ["train.lr=1e-3", f"train.max_steps={updates}", "train.max_length=128"]
    lora_exp(
        "task=generation",
        "method=full",
        *values,
        f"outputs={work / 'pretraining'}",
        "decoding.examples=0",
    )


def shorten(source: Path, folder: Path) -> None:
    """The same data, with `VALIDATION` validation sources."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "valid", "test"):
        with gzip.open(source / f"{split}.jsonl.gz", "rt", encoding="utf-8") as file:
            lines = file.readlines()
        kept = lines[:VALIDATION] if split == "valid" else lines
        (folder / f"{split}.jsonl").write_text("".join(kept), encoding="utf-8")


def lora_exp(*arguments: str | Path) -> None:
    """The command, as a user gives it."""
    command = [sys.executable, "-m", "lora_exp", *map(str, arguments)]
    subprocess.run(command, check=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})


def table(work: Path, methods: list[str]) -> str:
    """The runs as Markdown."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for run in Records(work).runs:
        if run.result is not None:
            for grid in run.grids:
                found[grid.name.replace("-", " "), run.config["task"]["name"]] = run.result
    names = ("perplexity", "bleu", "nist", "meteor", "rouge_l", "ter", "chrf++")
    lines = [f"| task | method | parameters | {' | '.join(names)} | training |"]
    lines.append("|" + "---|" * (len(names) + 4))
    for task in TASKS:
        for method in methods:
            result = found.get((method, task))
            if result is not None:
                values = (result["metrics"].get(name) for name in names)
                cells = ["" if value is None else f"{value:.3f}" for value in values]
                counted = f"{result['trainable_parameters']:,}"
                seconds = f"{result['train_seconds']:.0f} s"
                lines.append(f"| {' | '.join([task, method, counted, *cells, seconds])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
