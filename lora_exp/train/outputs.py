"""The end of a run of text generation: texts for the test split, and their scores."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lora_exp.decoding import Decoding, decode
from lora_exp.errors import UserError
from lora_exp.lora import lora_layers
from lora_exp.runs import files
from lora_exp.tasks.data import Source, groups
from lora_exp.tasks.scores import Scores, check, score
from lora_exp.train.device import is_out_of_memory, make_deterministic
from lora_exp.train.flat import ATTENTION
from lora_exp.train.pairs import encode_sources
from lora_exp.train.run import LINE_SECONDS, Run

if TYPE_CHECKING:
    from rich.progress import Progress
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lora_exp.models import Backbone
    from lora_exp.runs.config import Config
    from lora_exp.train.interruption import Interruption

PART = "test.part.jsonl"
"""Beside the run's file of texts, what there is of them so far, in the order of decoding."""

log = logging.getLogger("lora_exp")


@dataclass(frozen=True)
class TestSet:
    """What is to be written."""

    kind: str
    """Of metrics, as `lora_exp.tasks.scores` knows them."""
    sources: list[Source]
    prompts: list[list[int]]
    """Token ids of each source, the end token behind them included."""
    options: Decoding
    stop: list[str]
    """Where texts are cut off."""

    @property
    def order(self) -> list[int]:
        """Prompts of like lengths side by side, the longest first: what does not fit fails at
        once."""
        return sorted(range(len(self.prompts)), key=lambda n: (-len(self.prompts[n]), n))

    def foretell(self) -> list[str]:
        """What the result will be without, as lines for people."""
        missing = check(self.kind).items()
        return [f"{metric} will be missing: {reason}" for metric, reason in missing]


def test_set(config: Config, sources: Sequence[Source], backbone: Backbone) -> TestSet:
    """The first `decoding.examples` of the sources, ready to be decoded.

    Raises:
        UserError: for more new tokens than the model has positions for.
    """
    asked, tokenizer = config.decoding, backbone.tokenizer
    some = list(sources[: asked.examples])
    prompts = encode_sources(tokenizer, [source.text for source in some])
    room = backbone.longest - asked.max_new_tokens
    if room < 2:
        raise UserError(
            f"decoding.max_new_tokens={asked.max_new_tokens}: the model has positions for "
            f"{backbone.longest} tokens, those of the source included."
        )
    if long := sum(len(prompt) > room for prompt in prompts):
        log.warning(
            "%d of %d sources are cut to %d tokens: the model has positions for "
            "%d, and decoding.max_new_tokens=%d.",
            *(long, len(prompts), room, backbone.longest, asked.max_new_tokens),
        )
    ends = [prompts[0][-1], *_tokens(tokenizer, asked.stop)]
    banned = _tokens(tokenizer, asked.banned)
    if len(banned) < len(asked.banned):
        log.warning(
            "decoding.banned=%s: not all of them are single tokens of this model; others are "
            "not banned.",
            asked.banned,
        )
    return TestSet(
        kind=config.task.corpus or "generation",
        sources=some,
        prompts=[p if len(p) <= room else [*p[: room - 1], p[-1]] for p in prompts],
        options=Decoding(
            beam_size=asked.beam_size,
            length_penalty=asked.length_penalty,
            no_repeat_ngram=asked.no_repeat_ngram,
            repetition_penalty=asked.repetition_penalty,
            min_length=asked.min_length,
            max_new_tokens=asked.max_new_tokens,
            eos_ids=tuple(dict.fromkeys(ends)),
            banned_ids=tuple(banned),
            sample=asked.sample,
            temperature=asked.temperature,
            top_k=asked.top_k,
            top_p=asked.top_p,
            seed=config.seed,
        ),
        stop=asked.stop,
    )


def _tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[int]:
    """Of the texts, those that are single tokens."""
    encoded = (tokenizer.encode(text, add_special_tokens=False) for text in texts)
    return [ids[0] for ids in encoded if len(ids) == 1]


def write(run: Run, precision: str, stop: Interruption, bar: Progress) -> Scores | None:
    """Decode the test split with the selected parameters, and measure what comes out.

    What is decoded is kept batch by batch: a run that was killed goes on with the next batch.

    Returns:
        The scores, also of each group of sources (`bleu_unseen`); None if the run has no test
        split, or was asked to leave meanwhile.
    """
    test = run.data.test
    if test is None:
        return None
    began = time.perf_counter()
    if run.ranks.first:
        run.folder.texts_file.parent.mkdir(exist_ok=True)
    with run.selected(), ready(run.model, precision):
        outputs = _outputs(run, test, stop, bar)
    if outputs is None:
        return None
    scores = _scores(test, outputs)
    told = "  ".join(f"{metric} {value:.4f}" for metric, value in scores.values.items())
    run.log.info("test  %s", told)
    run.record(split="test", **scores.values, seconds=round(time.perf_counter() - began, 3))
    return scores


def _scores(test: TestSet, outputs: Sequence[str]) -> Scores:
    values: dict[str, float] = {}
    missing: dict[str, str] = {}
    for group, places in groups(test.sources).items():
        name = "" if group == "all" else f"_{group}"
        references = [test.sources[place].references for place in places]
        found = score(test.kind, [outputs[place] for place in places], references)
        values |= {f"{metric}{name}": value for metric, value in found.values.items()}
        missing |= {f"{metric}{name}": reason for metric, reason in found.missing.items()}
    return Scores(values, missing)


@contextmanager
def ready(model: PreTrainedModel, precision: str) -> Iterator[None]:
    """Within this context the model is one of transformers as any other: with attention of its own
    and, where that rounds nothing, LoRA merged."""
    layers = [layer for _, layer in lora_layers(model)]
    flat = model.config._attn_implementation == ATTENTION
    lower = torch.autocast(model.device.type, torch.bfloat16, enabled=precision == "bf16")
    with lower:
        try:
            if flat:
                model.set_attn_implementation("sdpa")
            # The search adds up and scatters; what it makes of it does not depend on the order.
            make_deterministic(model.device, strict=False)
            model.eval()
            for layer in layers if precision == "fp32" else ():
                layer.merge()
            yield
        finally:
            for layer in layers:
                layer.unmerge()
            model.train()
            make_deterministic(model.device, strict=flat)
            if flat:
                model.set_attn_implementation(ATTENTION)


def _outputs(run: Run, test: TestSet, stop: Interruption, bar: Progress) -> list[str] | None:
    """A text for each source; None after a signal, or if somebody asks for the run's end."""
    whole = run.folder.texts_file
    part = whole.with_name(PART)
    ranks, size = run.ranks, run.config.decoding.batch_size
    if ranks.any(ranks.first and whole.exists()):  # killed while it was measured
        return [entry["output"] for entry in run.folder.texts()]
    order = test.order
    lines = ranks.gather(_kept(run, order) if ranks.first else [])[0]
    if len(lines) < len(order):
        run.log.info("generating texts for %d sources", len(order) - len(lines))
    told = time.monotonic()
    task = bar.add_task("generating", total=len(order), completed=len(lines), note="")
    try:
        while len(lines) < len(order):
            if ranks.any(stop.requested is not None or run.cancelled):
                return None
            began = time.perf_counter()
            start = len(lines) + ranks.rank * size
            batch = order[start : start + size]

            def decided(done: int, of: int, before: int = len(lines)) -> None:
                bar.update(task, completed=before + done)
                run.heartbeat()

            texts = decoded(run.backbone, test, batch, decided, run.log)
            own = [
                json.dumps({"number": number, "output": text}, ensure_ascii=False)
                for number, text in zip(batch, texts, strict=True)
            ]
            more = [line for of_rank in ranks.gather(own) for line in of_rank]
            if ranks.first:
                run.folder.fence()
                with part.open("a", encoding="utf-8") as file:
                    file.write("".join(f"{line}\n" for line in more))
            lines += more
            run.progress.decoded += len(more)
            run.progress.decoding_seconds += time.perf_counter() - began
            bar.update(task, completed=len(lines))
            if time.monotonic() - told >= LINE_SECONDS:
                told = time.monotonic()
                run.log.info("%d of %d texts", len(lines), len(order))
            run.heartbeat()
    finally:
        bar.remove_task(task)
    texts = {entry["number"]: entry["output"] for entry in map(json.loads, lines)}
    outputs = [texts[number] for number in range(len(test.sources))]
    if ranks.first:
        files.write(whole, "".join(map(_line, test.sources, outputs)))
        part.unlink(missing_ok=True)
    return outputs


def _kept(run: Run, order: Sequence[int]) -> list[str]:
    """The lines of the batches that a former attempt has decoded as a whole; others are cut off."""
    part = run.folder.texts_file.with_name(PART)
    lines = _whole_lines(part) if part.exists() else []
    size = run.config.decoding.batch_size
    if len(lines) < len(order):
        lines = lines[: len(lines) // size * size]
    files.write(part, "".join(f"{line}\n" for line in lines), durable=False)
    if lines:
        run.log.info("%d of %d texts are there already.", len(lines), len(order))
    return lines


def _whole_lines(path: Path) -> list[str]:
    """Without one that a crash cut short."""
    return path.read_text(encoding="utf-8").split("\n")[:-1]  # texts may hold other line ends


def decoded(
    backbone: Backbone,
    test: TestSet,
    batch: Sequence[int],
    decided: Callable[[int, int], None],
    told: logging.Logger | logging.LoggerAdapter[Any],
) -> list[str]:
    """The texts for some sources; fewer at a time where memory does not suffice.

    Args:
        backbone: within `ready`.
        test: the sources.
        batch: their numbers.
        decided: told now and then how many texts are complete, of how many.
        told: takes warnings.
    """
    prompts, size = [test.prompts[number] for number in batch], len(batch)
    while prompts:
        try:
            tokens = decode(backbone.model, prompts, test.options, decided, batch_size=size)
            return [_text(backbone.tokenizer, test, one) for one in tokens]
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or size == 1:
                raise
            size //= 2
            told.warning("Out of memory: decoding %d sources at a time.", size)
        torch.cuda.empty_cache()
    return []


def _text(tokenizer: PreTrainedTokenizerBase, test: TestSet, tokens: list[int]) -> str:
    """What was written, up to where it ends."""
    ended = tokens[:-1] if tokens and tokens[-1] in test.options.eos_ids else tokens
    text = str(tokenizer.decode(ended, skip_special_tokens=True))
    for end in test.stop:
        text = text.partition(end)[0]
    return text.strip()


def _line(source: Source, output: str) -> str:
    entry = {
        "source": source.text,
        "output": output,
        "references": source.references,
        "group": source.group,
    }
    return json.dumps(entry, ensure_ascii=False) + "\n"
