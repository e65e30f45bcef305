"""A device and what was loaded for it, kept warm from run to run: backbones and tokenised data."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

import torch
from torch import nn

from lora_exp import init_from, methods, models, tasks
from lora_exp.errors import UserError
from lora_exp.methods import shares_backbone
from lora_exp.models import Backbone
from lora_exp.runs.config import Config, ModelConfig, TaskConfig
from lora_exp.tasks import GenerationData, TaskData, pairs
from lora_exp.tasks.metrics import choose_metrics
from lora_exp.train.device import is_out_of_memory, make_deterministic
from lora_exp.train.dropout import again
from lora_exp.train.encoding import Sequences, encode
from lora_exp.train.families import family_of, make_flat
from lora_exp.train.outputs import test_set
from lora_exp.train.pairs import encode_pairs
from lora_exp.train.prepacked import prepack
from lora_exp.train.run import Data

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger("lora_exp")


class Workplace:
    """Makes runs ready for a device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._tokenizers: dict[str, PreTrainedTokenizerBase] = {}
        self._examples: dict[str, TaskData | GenerationData] = {}
        self._encoded: dict[str, dict[str, Sequences]] = {}
        self._key = ""  # which backbone is warm
        self._backbones: dict[int | None, Backbone] = {}  # with heads of so many outputs

    def prepare(self, config: Config) -> tuple[Backbone, Data]:
        """The model with its method on the device, and the tokenised data.

        Raises:
            UserError: if either is not as it should be.
        """
        examples = self._load_examples(config.task)
        if isinstance(examples, GenerationData):
            outputs, metrics = None, ["perplexity"]
            models.end_of_text(config.model, self._tokenizer(config.model))
        else:
            outputs, metrics = examples.outputs, choose_metrics(config.task.metrics, examples)
        limit = min(config.train.max_length, self._tokenizer(config.model).model_max_length)
        # The tokenizer works in native code, so the model can be made ready meanwhile; what is
        # wrong with it is told without waiting for the tokenizer.
        with ThreadPoolExecutor(1) as background:
            hopeless = Event()
            encoding = background.submit(self._encode, config, examples, limit, hopeless.is_set)
            try:
                backbone = self._backbone(config, outputs)
                methods.attach(backbone, config)
                _check_room(config, backbone)
                init_from.start(backbone, config)
            except BaseException as error:
                hopeless.set()
                if isinstance(error, RuntimeError) and is_out_of_memory(error):
                    raise UserError(
                        f"method={config.method}: the model and what is trained of it do not fit "
                        "into memory. Choose a smaller model, rank, size or length."
                    ) from error
                raise
            splits = encoding.result()
        longest = min(config.train.max_length, backbone.longest)
        if longest < config.train.max_length:
            log.info("train.max_length: the model reads %d tokens at most.", longest)
            splits = self._encode(config, examples, longest)
        nn.Module.to(backbone.model, self.device)  # transformers' own wrapper hides the type
        set_precision(backbone, config.train.precision)
        if config.train.gradient_checkpointing:
            options = {"use_reentrant": False, "context_fn": again}
            backbone.model.gradient_checkpointing_enable(options)
        train, *validation = splits.items()
        _check_batch(config, train[1])
        labels = test = None
        if not isinstance(examples, GenerationData):
            labels = examples.labels
        elif config.decoding.examples != 0:
            test = test_set(config, examples.test, backbone)
        return backbone, Data(train[1], dict(validation), metrics, labels, test)

    def can_share(self, config: Config, backbone: Backbone) -> bool:
        """Whether other runs can be in a pass with this one."""
        return shares_backbone(config) and family_of(backbone.model.config) is not None

    def _load_examples(self, task: TaskConfig) -> TaskData | GenerationData:
        key = f"{task} {tasks.fingerprint(task)}"
        if key not in self._examples:
            load = tasks.load_generation if task.kind == "generation" else tasks.load
            self._examples[key] = load(task)
        return self._examples[key]

    def _tokenizer(self, model: ModelConfig) -> PreTrainedTokenizerBase:
        key = _which(model)
        if key not in self._tokenizers:
            self._tokenizers[key] = models.load_tokenizer(model)
        return self._tokenizers[key]

    def _encode(
        self,
        config: Config,
        examples: TaskData | GenerationData,
        longest: int,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> dict[str, Sequences]:
        """Every split, that of training first."""
        key = f"{_which(config.model)} {config.task} {tasks.fingerprint(config.task)} {longest}"
        if key not in self._encoded:
            cache = Path(config.outputs) / "cache" / "tokens"
            tokenizer = self._tokenizer(config.model)
            options = longest, cache, cancelled
            if isinstance(examples, GenerationData):
                texts = {name: pairs(split) for name, split in examples.validation.items()}
                self._encoded[key] = {
                    name: encode_pairs(tokenizer, split, *options)
                    for name, split in {"train": examples.train, **texts}.items()
                }
            else:
                self._encoded[key] = {
                    name: encode(tokenizer, split, *options)
                    for name, split in {"train": examples.train, **examples.validation}.items()
                }
        return self._encoded[key]

    def _backbone(self, config: Config, outputs: int | None) -> Backbone:
        """A model without method: its own, or one around weights that it shares."""
        model = config.model
        key = f"{_which(model)} {config.train.precision} {config.train.gradient_checkpointing}"
        if not shares_backbone(config) or key != self._key:
            self._backbones.clear()  # only one stays in memory
        if not shares_backbone(config):
            return loaded(model, outputs, self._tokenizer(model))
        self._key, known = key, self._backbones
        if outputs not in known:
            backbone = loaded(model, outputs, self._tokenizer(model))
            if known:
                models.share(backbone, next(iter(known.values())))
            else:
                nn.Module.to(backbone.model, self.device)
            known[outputs] = backbone
        return models.sharing(known[outputs])


def loaded(
    model: ModelConfig, outputs: int | None, tokenizer: PreTrainedTokenizerBase | None = None
) -> Backbone:
    """A pre-trained model that takes the batches of this package.

    Raises:
        UserError: if it cannot be loaded.
    """
    backbone = models.load(model, outputs, tokenizer)
    make_flat(backbone.model)
    return backbone


def set_precision(backbone: Backbone, precision: str) -> None:
    """For bf16, keep frozen matrices in bf16; what is trained, and every vector, stays in fp32."""
    flat = family_of(backbone.model.config) is not None
    make_deterministic(backbone.model.device, strict=flat)
    if precision == "bf16":
        for parameter in backbone.model.parameters():
            if parameter.ndim > 1 and not parameter.requires_grad:
                parameter.data = parameter.data.to(torch.bfloat16)
        if flat and backbone.model.device.type == "cpu":
            prepack(backbone.model.base_model)


def _check_room(config: Config, backbone: Backbone) -> None:
    """See that what stands in front of every text leaves room for one, between its two ends."""
    fronts = {"prefix": config.prefix.length, "prompt": config.prompt.length}
    length = fronts.get(config.method)
    if length is not None and backbone.longest < 3:
        raise UserError(
            f"{config.method}.length={length}: the model has positions for "
            f"{backbone.longest + length} tokens, those of the text included. Give a smaller one."
        )


def _check_batch(config: Config, examples: Sequences) -> None:
    if config.train.drop_last and len(examples) < config.train.batch_size:
        raise UserError(
            f"train.drop_last: the {len(examples)} training examples are fewer than a batch of "
            f"train.batch_size={config.train.batch_size}, so nothing would be left of them."
        )


def _which(model: ModelConfig) -> str:
    return f"{replace(model, init_from=None)} {models.fingerprint(model)}"
