"""Small models with random weights, saved to folders as a user's own would be."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from lora_exp.tasks import agreement

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def save(folder: Path, architecture: str = "bert", **changes: Any) -> Path:
    """Write config, weights and a word-level tokenizer of the agreement task's words.

    Args:
        folder: where to.
        architecture: `bert`, `roberta`, `gpt2`, `deberta-v2`, `llama` and its kin.
        changes: of the config.
    """
    import torch
    import transformers

    vocabulary = words()
    sizes: dict[str, Any] = {"vocab_size": len(vocabulary), "pad_token_id": 0}
    if architecture == "gpt2":
        sizes |= {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
        sizes |= {"bos_token_id": 2, "eos_token_id": 3}
    else:
        sizes |= {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
        sizes |= {"intermediate_size": 64, "max_position_embeddings": 64}
        if architecture in ("llama", "mistral", "qwen2", "qwen3", "phi3"):
            sizes |= {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": None}
            sizes |= {"bos_token_id": 2, "eos_token_id": 3}
    config = transformers.AutoConfig.for_model(architecture, **(sizes | changes))
    torch.manual_seed(0)
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    tokenizer(vocabulary, architecture).save_pretrained(folder)
    return folder


def words() -> dict[str, int]:
    """The words of the agreement task, lower-cased, and the special tokens; their numbers."""
    rows, _ = agreement.generate()
    found = {word for sentence, _ in rows for word in re.findall(r"\w+|\.", sentence.lower())}
    return {word: number for number, word in enumerate([*SPECIAL, *sorted(found)])}


def tokenizer(vocabulary: dict[str, int], architecture: str) -> Any:
    """A fast tokenizer over whole words: [CLS] a [SEP] b [SEP]."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    fast = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    fast.normalizer = normalizers.Lowercase()  # type: ignore[assignment]
    fast.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    fast.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    inputs = ["input_ids", "attention_mask"]
    if architecture in ("bert", "deberta-v2"):
        inputs.insert(1, "token_type_ids")
    return PreTrainedTokenizerFast(
        tokenizer_object=fast,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=inputs,
    )
