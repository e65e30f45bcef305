"""Small models with random weights, saved to folders as a user's own would be."""

from __future__ import annotations

import re
from collections.abc import Iterable
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


def save_writer(
    folder: Path, texts: Iterable[str], architecture: str = "gpt2", **more: Any
) -> Path:
    """Write a causal language model and a byte-level BPE, as GPT-2's, learned from texts.

    Args:
        folder: where to.
        texts: whose words become tokens.
        architecture: as in `save`.
        more: changes of the config.
    """
    import torch
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore
    bpe.decoder = decoders.ByteLevel()  # type: ignore
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([*texts, *["\n\n"] * 9], trainer)
    end = bpe.token_to_id("<|endoftext|>")
    sizes: dict[str, Any] = {"vocab_size": bpe.get_vocab_size(), "tie_word_embeddings": True}
    sizes |= {"bos_token_id": end, "eos_token_id": end}
    if architecture == "gpt2":
        sizes |= {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
    else:
        sizes |= {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
        sizes |= {"num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 64}
        sizes |= {"max_position_embeddings": 128, "pad_token_id": None}
    config = transformers.AutoConfig.for_model(architecture, **(sizes | more))
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        model_input_names=["input_ids", "attention_mask"],
    ).save_pretrained(folder)
    return folder
