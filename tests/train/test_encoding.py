"""Tokens that are found again on disk are those that the tokenizer would make."""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny as models
import torch

from lora_exp.runs import files
from lora_exp.tasks import Examples
from lora_exp.train.encoding import CHUNK, Encoded, encode

PAIRS = [
    ("The doctor waits.", "The pilot near the doctors waits."),
    ("The pilots wait.", "The doctor"),
    ("", "The pilot waits."),
    ("The pilot near the doctors waits.", ""),
    ("waits", "wait"),
]
EXAMPLES = Examples([*PAIRS], [0, 1, 2, 0, 1])


@pytest.fixture
def tokenizer() -> Any:
    return models.tokenizer(models.words(), "bert")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tokenizer: Any) -> list[int]:
    """Grows by the number of texts of each call of a tokenizer."""
    kind = type(tokenizer)
    original, made = kind.__call__, []

    def counted(self: Any, first: list[str], *arguments: Any, **keywords: Any) -> Any:
        made.append(len(first))
        return original(self, first, *arguments, **keywords)

    monkeypatch.setattr(kind, "__call__", counted)
    return made


def assert_equal(one: Encoded, other: Encoded) -> None:
    for name in ("ids", "types", "offsets", "labels", "lengths"):
        a, b = getattr(one, name), getattr(other, name)
        assert (a is None) == (b is None), name
        if a is not None:
            assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()), name


def entry(cache: Path) -> Path:
    (found,) = cache.iterdir()
    return found


def naive(tokenizer: Any, examples: Examples, indices: Sequence[int], name: str) -> list[list[int]]:
    """What the tokenizer says of each example by itself."""
    texts = [examples.texts[i] for i in indices]
    return [tokenizer([a], [b], truncation=True, max_length=9)[name][0] for a, b in texts]


@pytest.mark.parametrize("architecture", ["bert", "roberta"])
@pytest.mark.parametrize("width", [1, 2])
def test_equal_with_and_without_a_cache(architecture: str, width: int, tmp_path: Path) -> None:
    tokenizer = models.tokenizer(models.words(), architecture)
    examples = Examples([texts[:width] for texts in PAIRS], [0.5, 1.0, 2.0, -1.0, 0.0])
    plain = encode(tokenizer, examples, 9)
    assert (plain.types is None) == (architecture == "roberta")
    cache = tmp_path / "cache" / "tokens"
    for _ in range(2):
        assert_equal(encode(tokenizer, examples, 9, cache), plain)
    assert (plain.ids.dtype, plain.offsets.dtype) == (np.int32, np.int64)
    assert plain.labels.dtype == np.float32


def test_found_again_without_the_tokenizer(
    tokenizer: Any, calls: list[int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = encode(tokenizer, EXAMPLES, 9, tmp_path)
    again = models.tokenizer(models.words(), "bert")  # as in another process
    assert_equal(encode(again, EXAMPLES, 9, tmp_path), first)
    assert calls == [len(EXAMPLES)]
    assert not caplog.records


def test_found_again_whatever_the_tokenizer_did_before(
    tokenizer: Any, calls: list[int], tmp_path: Path
) -> None:
    tokenizer.backend_tokenizer.enable_truncation(3)  # as many a tokenizer's file has it
    tokenizer.backend_tokenizer.enable_padding(length=7)
    encode(tokenizer, EXAMPLES, 9, tmp_path)
    tokenizer(["The doctor"], padding=True, truncation=True, max_length=4)
    calls.clear()
    encode(tokenizer, EXAMPLES, 9, tmp_path)
    encode(models.tokenizer(models.words(), "bert"), EXAMPLES, 9, tmp_path)
    assert not calls


def test_a_split_longer_than_a_chunk(tokenizer: Any, calls: list[int], tmp_path: Path) -> None:
    count = CHUNK + 5
    examples = Examples([(f"{'doctor ' * (i % 4)}",) for i in range(count)], [0] * count)
    first = encode(tokenizer, examples, 9, tmp_path)
    assert_equal(encode(tokenizer, examples, 9, tmp_path), first)
    assert calls == [CHUNK, 5]
    assert first.lengths.tolist() == [2 + i % 4 for i in range(count)]
    changed = replace(examples, texts=[*examples.texts[:-1], ("pilot",)])
    assert len(encode(tokenizer, changed, 9, tmp_path).ids) != len(first.ids)


def with_texts(*texts: tuple[str, ...]) -> dict[str, Any]:
    return {"examples": Examples([*texts], [0] * len(texts))}


def other_tokenizer(change: Callable[[Any], None], architecture: str = "bert") -> dict[str, Any]:
    tokenizer = models.tokenizer(models.words(), architecture)
    change(tokenizer)
    return {"tokenizer": tokenizer}


def as_another_class(tokenizer: Any) -> None:
    tokenizer.__class__ = type("Other", (type(tokenizer),), {})


def without_the_template(tokenizer: Any) -> None:
    tokenizer.backend_tokenizer.post_processor = None


@pytest.mark.parametrize(
    "change",
    [
        lambda: with_texts(*PAIRS[:4], ("waits", "doctor")),
        lambda: with_texts(*PAIRS[:4]),
        lambda: with_texts(*reversed(PAIRS)),
        lambda: with_texts(*PAIRS[:4], ("wait", "swait")),
        lambda: with_texts(*[texts[:1] for texts in PAIRS]),
        lambda: {"max_length": 8},
        lambda: other_tokenizer(lambda tokenizer: tokenizer.add_tokens(["near the"])),
        lambda: other_tokenizer(lambda tokenizer: setattr(tokenizer, "truncation_side", "left")),
        lambda: other_tokenizer(lambda tokenizer: setattr(tokenizer, "split_special_tokens", True)),
        lambda: other_tokenizer(lambda tokenizer: setattr(tokenizer, "eos_token", "[UNK]")),
        lambda: other_tokenizer(lambda tokenizer: None, "roberta"),
        lambda: other_tokenizer(without_the_template),
        lambda: other_tokenizer(as_another_class),
    ],
)
def test_what_decides_the_tokens_is_an_entry_of_its_own(
    change: Callable[[], dict[str, Any]], tokenizer: Any, tmp_path: Path
) -> None:
    call = {"tokenizer": tokenizer, "examples": EXAMPLES, "max_length": 9}
    before = encode(**call, cache=tmp_path)
    encode(**(call | change()), cache=tmp_path)
    assert len([*tmp_path.iterdir()]) == 2
    assert_equal(encode(**call, cache=tmp_path), before)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([("a", "bc")], [("ab", "c")]),
        ([("a", "b"), ("c", "d")], [("a", "b"), ("cd", "")]),
        ([("a",), ("b",)], [("ab",), ("",)]),
        ([("é",)], [("e\u0301",)]),
        ([("a\0",), ("b",)], [("a",), ("\0b",)]),
    ],
)
def test_where_texts_end_matters(
    one: list[tuple[str, ...]], other: list[tuple[str, ...]], tokenizer: Any, tmp_path: Path
) -> None:
    for texts in (one, other, one):
        encode(tokenizer, Examples(texts, [0] * len(texts)), 9, tmp_path)
    assert len([*tmp_path.iterdir()]) == 2


@pytest.mark.parametrize("package", ["tokenizers", "transformers"])
def test_another_version_may_tokenise_otherwise(
    package: str, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lora_exp.train import encoding

    encode(tokenizer, EXAMPLES, 9, tmp_path)
    original = encoding.version
    monkeypatch.setattr(encoding, "version", lambda name: original(name) + "1" * (name == package))
    encode(tokenizer, EXAMPLES, 9, tmp_path)
    assert len([*tmp_path.iterdir()]) == 2


def test_other_labels_use_the_entry(tokenizer: Any, calls: list[int], tmp_path: Path) -> None:
    first = encode(tokenizer, EXAMPLES, 9, tmp_path)
    values = replace(EXAMPLES, labels=[0.5, 1.5, 2.5, 3.5, 4.5])
    second = encode(tokenizer, values, 9, tmp_path)
    assert len(calls) == 1
    assert second.labels.tolist() == values.labels
    assert_equal(replace(second, labels=first.labels), first)


def damages(content: bytes) -> list[bytes]:
    flipped = [bytearray(content) for _ in range(0, len(content), 7)]
    for number, one in enumerate(flipped):
        one[7 * number] ^= 1 << number % 8
    cut = [content[:size] for size in (0, 8, 31, 32, 40, 56, len(content) // 2, len(content) - 1)]
    return [*map(bytes, flipped), *cut, content + b"\0", b"garbage" * 100, bytes(len(content))]


def test_a_damaged_entry_is_made_anew(
    tokenizer: Any, calls: list[int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = encode(tokenizer, EXAMPLES, 9, tmp_path)
    path = entry(tmp_path)
    content = path.read_bytes()
    for damaged in damages(content):
        calls.clear()
        caplog.clear()
        path.write_bytes(damaged)
        assert_equal(encode(tokenizer, EXAMPLES, 9, tmp_path), first)
        assert entry(tmp_path).read_bytes() == content
        assert len(calls) == 1
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert "damaged" in caplog.text


def test_an_entry_does_not_pass_for_another(tokenizer: Any, tmp_path: Path) -> None:
    encode(tokenizer, EXAMPLES, 9, tmp_path)
    other = entry(tmp_path).rename(tmp_path / "other")
    shorter = encode(tokenizer, EXAMPLES, 5)
    encode(tokenizer, EXAMPLES, 5, tmp_path)
    (path,) = {*tmp_path.iterdir()} - {other}
    other.replace(path)
    assert_equal(encode(tokenizer, EXAMPLES, 5, tmp_path), shorter)


def under_a_file(tmp_path: Path, patch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "file").touch()
    return tmp_path / "file" / "tokens"


def forbidden(tmp_path: Path, patch: pytest.MonkeyPatch) -> Path:
    """Also for root, whom modes do not keep out."""
    original = Path.open

    def read_only(self: Path, mode: str = "r", *arguments: Any, **keywords: Any) -> Any:
        if set(mode) & set("wa+"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return original(self, mode, *arguments, **keywords)

    patch.setattr(Path, "open", read_only)
    return tmp_path / "tokens"


def full(tmp_path: Path, patch: pytest.MonkeyPatch) -> Path:
    def commit(temporary: Path, path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    patch.setattr(files, "commit", commit)
    return tmp_path / "tokens"


@pytest.mark.parametrize("where", [under_a_file, forbidden, full])
def test_without_a_place_to_write_the_run_goes_on(
    where: Callable[[Path, pytest.MonkeyPatch], Path],
    tokenizer: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    cache = where(tmp_path, monkeypatch)
    for longest in (9, 9, 5):
        plain = encode(tokenizer, EXAMPLES, longest)
        assert_equal(encode(tokenizer, EXAMPLES, longest, cache), plain)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]  # once
    assert str(cache) in caplog.text
    assert not cache.is_dir() or not [*cache.iterdir()]


def test_a_folder_that_is_only_read_still_serves(
    tokenizer: Any, calls: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = encode(tokenizer, EXAMPLES, 9, tmp_path / "tokens")
    assert_equal(encode(tokenizer, EXAMPLES, 9, forbidden(tmp_path, monkeypatch)), first)
    assert len(calls) == 1


def test_two_processes_at_once(tokenizer: Any, calls: list[int], tmp_path: Path) -> None:
    plain = encode(tokenizer, EXAMPLES, 9)
    processes = multiprocessing.get_context("fork")
    both = processes.Barrier(2)
    commit = files.commit

    def together(temporary: Path, path: Path) -> None:
        both.wait(30)  # each has written all of its file, and neither has put it in place
        commit(temporary, path)

    def work() -> None:
        files.commit = together
        assert_equal(encode(tokenizer, EXAMPLES, 9, tmp_path), plain)

    children = [processes.Process(target=work) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0]
    calls.clear()
    assert_equal(encode(tokenizer, EXAMPLES, 9, tmp_path), plain)
    assert entry(tmp_path)
    assert not calls


def test_a_tokenizer_that_cannot_be_written_down_is_not_cached(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = encode(tokenizer, EXAMPLES, 9)
    with monkeypatch.context() as patch:
        patch.setattr(type(tokenizer), "backend_tokenizer", property(lambda self: None))
        assert_equal(encode(tokenizer, EXAMPLES, 9, tmp_path), plain)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("found", [False, True])
@pytest.mark.parametrize("indices", [[0], [4, 0, 2, 2, 3], np.array([3, 1]), range(5)])
def test_a_batch_is_its_sequences_end_to_end(
    found: bool, indices: Sequence[int], tokenizer: Any, tmp_path: Path
) -> None:
    encode(tokenizer, EXAMPLES, 9, tmp_path)
    batch = encode(tokenizer, EXAMPLES, 9, tmp_path if found else None).batch(indices)
    ids = naive(tokenizer, EXAMPLES, indices, "input_ids")
    types = naive(tokenizer, EXAMPLES, indices, "token_type_ids")
    assert batch.input_ids.tolist() == [*chain(*ids)]
    assert batch.token_types is not None
    assert batch.token_types.tolist() == [*chain(*types)]
    assert batch.lengths == [*map(len, ids)]
    assert batch.labels.tolist() == [EXAMPLES.labels[i] for i in indices]
    for tensor in (batch.input_ids, batch.token_types, batch.labels):
        assert tensor.dtype == torch.int64
        tensor.zero_()  # a batch is the caller's own
    again = encode(tokenizer, EXAMPLES, 9, tmp_path).batch(indices)
    assert again.input_ids.tolist() == [*chain(*ids)]


@pytest.mark.parametrize("tokens", [1, 10, 64, 100_000])
def test_by_length_takes_each_example_once(tokens: int) -> None:
    lengths = np.random.default_rng(0).integers(0, 30, 200)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    encoded = Encoded(np.zeros(offsets[-1], np.int32), None, offsets, np.zeros(200, np.int64))
    batches = [*encoded.by_length(tokens)]
    order = [i for batch in batches for i in batch]
    assert sorted(order) == [*range(200)]
    assert [lengths[i] for i in order] == sorted(lengths, reverse=True)
    assert all(len(batch) == 1 or lengths[batch].sum() <= tokens for batch in batches)
    assert all(max(1, lengths[batch].max()) * (len(batch) + 1) > tokens for batch in batches[:-1])


def test_it_can_be_called_off(tokenizer: Any, tmp_path: Path) -> None:
    from concurrent.futures import CancelledError

    examples = Examples([("the doctor waits",)], [0])
    with pytest.raises(CancelledError):
        encode(tokenizer, examples, 30, tmp_path, cancelled=lambda: True)
    assert len(encode(tokenizer, examples, 30, tmp_path)) == 1
