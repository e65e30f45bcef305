"""Sources a second: our beam search against transformers' `generate`, on the same sources, in turn.

    python benchmarks/decoding.py --model FOLDER --data DIR     # DIR has e2e/ (README, Data)

FOLDER holds a causal language model and its tokenizer, such as `backbone` of generation.py. One
thread; the first `--sources` distinct sources of E2E's test set, 16 at a time, beam 10, 64 tokens.
`generate` stops early as it does by default, and never, which is what the reference does and we
do. There is no length penalty: `generate` does not count the end of a text, the reference and we
do; without a penalty all mean the same. Printed as Markdown: seconds, the ratio theirs / ours of
each round (median, 10th to 90th percentile), how many texts are equal, and the ratio against
decoding every line of the test set, as the reference does.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch
from measure import one_core, shown, spread, timed
from transformers import AutoModelForCausalLM, AutoTokenizer

from lora_exp.decoding import Decoding, decode
from lora_exp.runs.config import TaskConfig
from lora_exp.tasks import load_generation

BATCH = 16


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sources", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--beam", type=int, default=10)
    given = parser.parse_args()
    one_core()
    model: Any = AutoModelForCausalLM.from_pretrained(given.model).eval()
    tokenizer = AutoTokenizer.from_pretrained(given.model, padding_side="left")
    tokenizer.pad_token = tokenizer.eos_token
    task = TaskConfig(name="e2e", kind="generation", corpus="e2e", data_dir=str(given.data))
    task.test = "test"
    test = load_generation(task).test
    lines = sum(len(source.references) for source in test)
    texts = [source.text + tokenizer.eos_token for source in test[: given.sources]]
    prompts = [tokenizer(text)["input_ids"] for text in texts]
    options = Decoding(
        beam_size=given.beam,
        length_penalty=0.0,
        no_repeat_ngram=0,
        eos_ids=(tokenizer.eos_token_id,),
    )
    found: dict[str, Any] = {}

    def ours() -> None:
        found["lora_exp"] = decode(model, prompts, options, batch_size=BATCH)

    def theirs(early_stopping: bool | str) -> None:
        found[str(early_stopping)] = []
        # Of like length side by side, as ours are.
        order = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
        outputs: dict[int, list[int]] = {}
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            batch = tokenizer(
                [texts[number] for number in chosen], padding=True, return_tensors="pt"
            )
            with torch.no_grad():
                written = model.generate(
                    **batch,
                    num_beams=given.beam,
                    max_new_tokens=options.max_new_tokens,
                    length_penalty=options.length_penalty,
                    early_stopping=early_stopping,
                    do_sample=False,
                    pad_token_id=tokenizer.eos_token_id,
                )
            length = batch["input_ids"].shape[1]
            for number, ids in zip(chosen, written.tolist(), strict=True):
                outputs[number] = ids[length:]
        found[str(early_stopping)] = [outputs[number] for number in range(len(prompts))]

    settings: list[bool | str] = [False, "never"]
    seconds: dict[str, list[float]] = {"lora_exp": [], **{str(one): [] for one in settings}}
    for _ in range(given.repeats + 1):
        seconds["lora_exp"].append(timed(ours))
        for one in settings:
            seconds[str(one)].append(timed(lambda one=one: theirs(one)))
    seconds = {name: values[1:] for name, values in seconds.items()}  # the first warms up
    own = seconds["lora_exp"]
    rate = len(prompts) / statistics.median(own)
    print(f"{len(prompts)} sources, beam {given.beam}: lora_exp {rate:.2f} sources a second")
    print("\n| generate | ours | theirs | theirs / ours | equal texts | against every line |")
    print("|---|---|---|---|---|---|")
    for one in settings:
        middle, text = spread([b / a for a, b in zip(own, seconds[str(one)], strict=True)])
        equal = sum(map(_same, found["lora_exp"], found[str(one)]))
        whole = f"{middle * lines / len(test):.1f}"
        cells = [shown(statistics.median(own)), shown(statistics.median(seconds[str(one)])), text]
        cells += [f"{equal} of {len(prompts)}", whole]
        print(f"| early_stopping={one} | {' | '.join(cells)} |")


def _same(ours: list[int], theirs: list[int]) -> bool:
    """But for what `generate` fills up with."""
    return theirs[: len(ours)] == ours and len(set(theirs[len(ours) :])) <= 1


if __name__ == "__main__":
    main()
