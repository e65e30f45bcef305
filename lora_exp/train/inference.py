"""A trained model over new texts: as in evaluation, but without a run that goes on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lora_exp.lora import lora_layers
from lora_exp.tasks.data import Examples, Source
from lora_exp.train.device import is_out_of_memory
from lora_exp.train.encoding import encode
from lora_exp.train.evaluation import TOKENS
from lora_exp.train.families import make_flat
from lora_exp.train.forward import Piece, forward
from lora_exp.train.outputs import decoded, ready, test_set
from lora_exp.train.workplace import set_precision

if TYPE_CHECKING:
    from rich.progress import Progress

    from lora_exp.models import Backbone
    from lora_exp.runs.config import Config

log = logging.getLogger("lora_exp")


def classify(
    backbone: Backbone,
    config: Config,
    texts: Sequence[tuple[str, ...]],
    device: torch.device,
    bar: Progress,
) -> Tensor:
    """The logits [texts, classes], or the values [texts, 1] of one that predicts a number.

    Args:
        backbone: of a classifier, restored; it is changed to take flat batches.
        config: of its run, whose precision and longest text are kept to.
        texts: one or two each.
        device: where to compute.
        bar: shows how far it is.

    Returns:
        In the order of the texts, fp32, on the CPU.
    """
    model, precision = backbone.model, config.train.precision
    make_flat(model)
    _move(backbone, config, device)
    longest = min(config.train.max_length, backbone.longest)
    data = encode(backbone.tokenizer, Examples([*texts], [0] * len(texts)), longest)
    width = model.config.num_labels
    assert width is not None
    found = torch.zeros(len(texts), width)
    task = bar.add_task("predicting", total=len(texts), note="")
    layers = [layer for _, layer in lora_layers(model)] if precision == "fp32" else []
    for layer in layers:
        layer.merge()
    batches = list(data.by_length(TOKENS[device.type]))
    with torch.no_grad():
        while batches:
            chosen = batches[0]
            try:
                piece = Piece(backbone, data.batch(chosen).to(device))
                with forward([piece], precision) as (outputs,):
                    found[chosen] = outputs.float().cpu()
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not is_out_of_memory(error) or len(chosen) == 1:
                    raise
                half = len(chosen) // 2
                batches[:1] = [chosen[:half], chosen[half:]]
                continue
            del batches[0]
            bar.update(task, advance=len(chosen))
    return found


def write(
    backbone: Backbone,
    config: Config,
    sources: Sequence[str],
    device: torch.device,
    bar: Progress,
) -> list[str]:
    """The text for each source, decoded as the run has decoded its test split.

    Args:
        backbone: of a language model, restored.
        config: of its run.
        sources: what the model reads; equal ones are decoded once.
        device: where to compute.
        bar: shows how far it is.

    Raises:
        UserError: for more new tokens than the model has positions for.
    """
    _move(backbone, config, device)
    distinct = list(dict.fromkeys(sources))
    whole = replace(config, decoding=replace(config.decoding, examples=None))
    test = test_set(whole, [Source(text, ()) for text in distinct], backbone)
    order, size = test.order, config.decoding.batch_size
    task = bar.add_task("generating", total=len(order), note="")
    found: dict[str, str] = {}
    with ready(backbone.model, config.train.precision):
        for start in range(0, len(order), size):
            batch = order[start : start + size]

            def decided(done: int, of: int, before: int = start) -> None:
                bar.update(task, completed=before + done)

            texts = decoded(backbone, test, batch, decided, log)
            found |= {distinct[number]: text for number, text in zip(batch, texts, strict=True)}
            bar.update(task, completed=start + len(batch))
    return [found[source] for source in sources]


def _move(backbone: Backbone, config: Config, device: torch.device) -> None:
    nn.Module.to(backbone.model, device)  # transformers' own wrapper hides the type
    set_precision(backbone, config.train.precision)
    backbone.model.eval()
