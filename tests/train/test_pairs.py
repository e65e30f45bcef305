"""Sources and texts as tokens, and which of them count."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SHARED
from tiny import save_writer

from lora_exp.errors import UserError
from lora_exp.tasks import Pair
from lora_exp.train.pairs import encode_pairs, encode_sources

PAIRS = [
    Pair("name : Alimentum | area : city centre", "Alimentum is in the city centre."),
    Pair("name : Zizzi", "Zizzi."),
    Pair("name : Cocum | near : Burger King | area : riverside", "Cocum, near Burger King."),
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoTokenizer

    folder = save_writer(tmp_path_factory.mktemp("writer"), [pair.target for pair in PAIRS])
    return AutoTokenizer.from_pretrained(folder)


def naive(tokenizer: Any, pair: Pair) -> tuple[list[int], list[int]]:
    """As gpt2_encode.py: tokens, and the mask of the loss over them."""
    end = [tokenizer.eos_token_id]
    source, target = tokenizer.encode(pair.source), tokenizer.encode(" " + pair.target)
    return source + end + target + end, [0] * (len(source) + 1) + [1] * (len(target) + 1)


@pytest.mark.parametrize("longest", [100, 30])
def test_each_example_is_source_end_text_end(tokenizer: Any, longest: int) -> None:
    encoded = encode_pairs(tokenizer, PAIRS, longest)
    assert encoded.types is not None
    for number, pair in enumerate(PAIRS):
        span = slice(*encoded.offsets[number : number + 2])
        ids, mask = naive(tokenizer, pair)
        assert encoded.ids[span].tolist() == ids[:longest]
        assert encoded.types[span].tolist() == mask[:longest]
        assert encoded.weights[number] == sum(mask[:longest])


def test_a_batch_reads_each_token_off_at_the_one_before(tokenizer: Any) -> None:
    encoded = encode_pairs(tokenizer, PAIRS, 100)
    batch = encoded.batch([2, 0])
    assert batch.reads is not None
    assert batch.input_ids[batch.reads + 1].equal(batch.labels)
    texts = [naive(tokenizer, PAIRS[number]) for number in (2, 0)]
    targets = [i for ids, mask in texts for i, counts in zip(ids, mask, strict=True) if counts]
    assert batch.labels.tolist() == targets
    ends = [tokenizer.eos_token_id] * 2
    lengths = torch.tensor(batch.lengths)
    assert batch.labels[encoded.weights[[2, 0]].cumsum() - 1].tolist() == ends
    assert batch.reads.max() < lengths.sum() - 1


def test_what_is_read_before_writing(tokenizer: Any) -> None:
    (prompt,) = encode_sources(tokenizer, ["name : Zizzi"])
    assert tokenizer.decode(prompt) == "name : Zizzi<|endoftext|>"


def test_a_begin_token_where_the_tokenizer_puts_one(tokenizer: Any, tmp_path: Path) -> None:
    from tokenizers import processors
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    other: Any = AutoTokenizer.from_pretrained(tmp_path, bos_token="!")
    number = other.convert_tokens_to_ids("!")
    other.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="! $A", special_tokens=[("!", number)]
    )
    (prompt,) = encode_sources(other, ["name : Zizzi"])
    assert other.decode(prompt) == "!name : Zizzi<|endoftext|>"
    encoded = encode_pairs(other, PAIRS[1:2], 100)
    assert other.decode(encoded.ids) == "!name : Zizzi<|endoftext|> Zizzi.<|endoftext|>"


def test_found_again_by_content(tokenizer: Any, tmp_path: Path) -> None:
    plain = encode_pairs(tokenizer, PAIRS, 30)
    encode_pairs(tokenizer, PAIRS, 30, tmp_path)
    found = encode_pairs(tokenizer, PAIRS, 30, tmp_path)
    assert len([*tmp_path.iterdir()]) == 1
    assert found.types is not None
    assert plain.types is not None
    assert found.ids.tolist() == plain.ids.tolist()
    assert found.types.tolist() == plain.types.tolist()
    encode_pairs(tokenizer, PAIRS, 31, tmp_path)
    encode_pairs(tokenizer, [Pair(p.target, p.source) for p in PAIRS], 30, tmp_path)
    assert len([*tmp_path.iterdir()]) == 3


def test_examples_cut_before_their_text_are_told(
    tokenizer: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("lora_exp"), "propagate", True)
    short = len(tokenizer.encode(PAIRS[1].source)) + 2
    encoded = encode_pairs(tokenizer, PAIRS, short)
    assert encoded.weights.tolist() == [0, 1, 0]
    assert f"train.max_length={short}: 2 of 3 examples are cut" in caplog.text
    assert len(encoded.batch([0, 2]).labels) == 0
    with pytest.raises(UserError, match=rf"train.max_length={short - 1}: every example is cut"):
        encode_pairs(tokenizer, PAIRS, short - 1)


@pytest.mark.skipif(not SHARED.exists(), reason="../shared is not here")
def test_gpt2_and_a_line_of_the_reference() -> None:
    """microsoft/LoRA's line, in its tokenisation with blanks."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(SHARED / "data" / "tokenizers" / "gpt2")
    pair = Pair("name : The Vaults | Type : pub", "The Vaults is a family - friendly pub .")
    encoded = encode_pairs(tokenizer, [pair], 512)
    ids = encoded.ids.tolist()
    assert [i for i, token in enumerate(ids) if token == 50256] == [8, len(ids) - 1]
    assert ids[9] == 383  # " The"
    assert encoded.weights.tolist() == [len(ids) - 9]
