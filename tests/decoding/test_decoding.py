"""Decoding equals the reference's rules written down plainly: one source at a time, no cache."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import transformers

from lora_exp.decoding import Decoding, decode, search, tree
from lora_exp.decoding.rules import log_probabilities
from lora_exp.errors import UserError

VOCABULARY = 23
EOS = (3, 7)
PROMPTS = [[5, 6], [9], [4, 8, 15, 16, 22, 1, 1], [5, 6], [2, 11, 2], [12, 13, 14, 10, 9, 8]]


@cache
def model(architecture: str, attention: str = "sdpa") -> Any:
    """A random model whose outputs vary and end; in fp64, so that no two hypotheses are tied."""
    sizes: dict[str, Any] = {"vocab_size": VOCABULARY, "initializer_range": 0.4}
    if architecture == "gpt2":
        sizes |= {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 96}
    else:
        sizes |= {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
        sizes |= {"num_key_value_heads": 2, "intermediate_size": 24}
        sizes |= {"max_position_embeddings": 96}
    config = transformers.AutoConfig.for_model(architecture, **sizes)
    torch.manual_seed(2)
    made = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    return made.double()


def naive(model: Any, prompt: list[int], options: Decoding) -> list[int]:
    """`examples/NLG/src/gpt2_beam.py` of microsoft/LoRA for one source, as its words say."""
    beams: list[tuple[float, list[int]]] = [(0.0, [])]
    best: tuple[float, list[int]] = (-math.inf, [])
    for step in range(options.max_new_tokens):
        candidates = []
        if not beams:
            break
        with torch.no_grad():
            texts = torch.tensor([prompt + generated for _, generated in beams])
            rows = model.eval()(texts).logits[:, -1]
        for (score, generated), logits in zip(beams, rows, strict=True):
            for token in set(generated):
                penalty = options.repetition_penalty
                logits[token] *= penalty if logits[token] < 0 else 1 / penalty
            if step < options.min_length:
                logits[list(options.eos_ids)] = -math.inf
            n = options.no_repeat_ngram
            grams = [tuple(generated[i : i + n]) for i in range(len(generated) - n + 1)]
            for gram in grams if n else []:
                if gram[:-1] == tuple(generated[len(generated) - n + 1 :]):
                    logits[gram[-1]] = -math.inf
            log_p = logits.softmax(-1).log()
            candidates += [(score + float(log_p[t]), [*generated, t]) for t in range(len(log_p))]
        candidates.sort(key=lambda candidate: -candidate[0])
        beams = []
        for score, generated in candidates[: options.beam_size]:
            if generated[-1] in options.eos_ids or step + 1 == options.max_new_tokens:
                worth = score / len(generated) ** options.length_penalty
                best = max(best, (worth, generated), key=lambda pair: pair[0])
            elif score > -math.inf:
                beams.append((score, generated))
    return best[1]


CASES = {
    "as the recipe": Decoding(beam_size=10, max_new_tokens=20, eos_ids=EOS),
    "four beams": Decoding(
        beam_size=4, length_penalty=1.0, no_repeat_ngram=0, max_new_tokens=40, eos_ids=EOS
    ),
    "long texts preferred": Decoding(
        beam_size=3, length_penalty=2.5, no_repeat_ngram=3, eos_ids=EOS
    ),
    "short texts preferred": Decoding(beam_size=5, length_penalty=-1.0, eos_ids=EOS),
    "no word twice": Decoding(beam_size=3, no_repeat_ngram=1, max_new_tokens=12, eos_ids=EOS),
    "penalised, long enough": Decoding(
        beam_size=4, repetition_penalty=1.3, min_length=6, max_new_tokens=24, eos_ids=EOS
    ),
    "greedy": Decoding(beam_size=1, no_repeat_ngram=2, max_new_tokens=40, eos_ids=EOS),
    "without an end": Decoding(beam_size=3, max_new_tokens=21, eos_ids=()),
    "one token": Decoding(beam_size=6, max_new_tokens=1, eos_ids=EOS),
}


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("case", CASES)
def test_equals_the_naive_search(architecture: str, case: str) -> None:
    options, made = CASES[case], model(architecture)
    expected = [naive(made, prompt, options) for prompt in PROMPTS]
    for batch_size in (1, 4):
        assert decode(made, PROMPTS, options, batch_size=batch_size) == expected


def test_texts_of_these_cases_end_at_different_lengths() -> None:
    """Or the comparison above would not see sources that leave the batch."""
    texts = decode(model("gpt2"), PROMPTS, CASES["as the recipe"])
    assert len({len(text) for text in texts}) > 2
    assert {text[-1] for text in texts} & set(EOS)


def test_no_more_is_run_than_decides_the_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each prompt once, not once for each beam; nothing after the last source is decided."""
    made, shapes = model("gpt2"), []
    forward = made.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        shapes.append(tuple(kwargs["input_ids"].shape))
        return forward(*args, **kwargs)

    monkeypatch.setattr(made, "forward", counted)
    options = Decoding(beam_size=4, length_penalty=0, max_new_tokens=40, eos_ids=EOS)
    texts = decode(made, PROMPTS, options)
    assert shapes[0] == (5, 7)
    assert shapes[1] == (5, 4)
    assert shapes[-1][0] < 5
    assert max(map(len, texts)) <= len(shapes) < 40


@pytest.mark.parametrize("room", [1, 3])
def test_the_cache_may_be_compacted_at_any_step(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    options, made = CASES["four beams"], model("llama")
    expected = decode(made, PROMPTS, options)
    monkeypatch.setattr(tree, "ROOM", room)
    monkeypatch.setattr(search, "SHRINK", 1.0)
    assert decode(made, PROMPTS, options) == expected


def test_eager_attention_gives_the_same() -> None:
    options = CASES["as the recipe"]
    expected = decode(model("gpt2"), PROMPTS, options)
    assert decode(model("gpt2", "eager"), PROMPTS, options) == expected


def test_greedy_equals_generate() -> None:
    options = Decoding(beam_size=1, no_repeat_ngram=0, max_new_tokens=30, eos_ids=EOS)
    made = model("gpt2")
    for prompt, text in zip(PROMPTS, decode(made, PROMPTS, options), strict=True):
        generated = made.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=30,
            do_sample=False,
            eos_token_id=list(EOS),
            pad_token_id=0,
        )
        assert generated[0, len(prompt) :].tolist() == text


def test_repetition_is_counted_in_generated_tokens_only() -> None:
    """The prompt may be said again, which transformers' ban of n-grams forbids."""
    made = model("gpt2")
    options = Decoding(beam_size=1, no_repeat_ngram=1, max_new_tokens=1, eos_ids=())
    (first,) = decode(made, [[5]], options)
    # A prompt that holds the token which the model says next.
    (again,) = decode(made, [[*first, 5]], options)
    free = Decoding(beam_size=1, no_repeat_ngram=0, max_new_tokens=1, eos_ids=())
    assert [again] == decode(made, [[*first, 5]], free)


def test_sampling_follows_the_probabilities() -> None:
    """Over many seeds the first token is as frequent as it is probable: chi-squared, 1 in 1000."""
    made = model("gpt2").eval()
    common = {"beam_size": 1, "sample": True, "no_repeat_ngram": 0, "max_new_tokens": 1}
    options = [
        Decoding(**common, eos_ids=EOS, temperature=1.5, top_k=6, seed=s) for s in range(400)
    ]
    drawn = [decode(made, [[5, 6]], one)[0][0] for one in options]
    with torch.inference_mode():
        logits = made(torch.tensor([[5, 6]])).logits[0, -1] / 1.5
    top = logits.topk(6)
    assert set(drawn) <= set(top.indices.tolist())
    counts = torch.tensor([drawn.count(token) for token in top.indices.tolist()])
    expected = 400 * top.values.softmax(-1)
    assert ((counts - expected) ** 2 / expected).sum() < 20.5


def test_a_sample_depends_on_seed_and_prompt_alone() -> None:
    made = model("llama")
    options = Decoding(beam_size=1, sample=True, max_new_tokens=20, eos_ids=EOS, seed=3)
    texts = decode(made, PROMPTS, options)
    assert decode(made, PROMPTS[::-1], options, batch_size=1) == texts[::-1]
    other = Decoding(beam_size=1, sample=True, max_new_tokens=20, eos_ids=EOS, seed=4)
    assert decode(made, PROMPTS, other) != texts


def test_top_p_keeps_the_fewest_tokens_that_reach_it() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    none = torch.zeros(1, 0, dtype=torch.long)
    for top_p, kept in ((0.4, 1), (0.6, 2), (0.9, 3), (0.96, 4)):
        options = Decoding(beam_size=1, sample=True, top_p=top_p, eos_ids=())
        log_p = log_probabilities(logits, none, options)
        expected = logits.exp()[0, :kept] / logits.exp()[0, :kept].sum()
        torch.testing.assert_close(log_p.exp()[0, :kept], expected)
        assert log_p.isfinite().sum() == kept


def test_banned_tokens_do_not_occur() -> None:
    options = Decoding(beam_size=4, max_new_tokens=20, eos_ids=EOS, banned_ids=(0, 1, 2))
    texts = decode(model("gpt2"), PROMPTS, options)
    assert not {0, 1, 2} & {token for text in texts for token in text}
    assert texts != decode(model("gpt2"), PROMPTS, CASES["four beams"])


def test_equal_prompts_are_decoded_once_and_progress_is_told() -> None:
    told: list[tuple[int, int]] = []
    options = CASES["as the recipe"]
    texts = decode(model("gpt2"), PROMPTS, options, lambda *at: told.append(at), batch_size=2)
    distinct = len({tuple(prompt) for prompt in PROMPTS})
    assert told[-1] == (distinct, distinct)
    assert told == sorted(told)
    assert texts[0] == texts[3]
    assert texts[0] is not texts[3]


def test_bf16_gives_one_text_for_each_prompt() -> None:
    made = model("llama").to(torch.bfloat16)
    try:
        texts = decode(made, PROMPTS, CASES["as the recipe"])
        assert all(0 < len(text) <= 20 for text in texts)
    finally:
        made.double()


def test_the_model_is_left_in_its_mode() -> None:
    made = model("gpt2").train()
    decode(made, PROMPTS, CASES["one token"])
    assert made.training


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "beam": (lambda: Decoding(beam_size=0), "decoding.beam_size=0: at least 1"),
    "heat": (lambda: Decoding(temperature=0), "decoding.temperature=0: greater than 0"),
    "share": (lambda: Decoding(top_p=1.5), "decoding.top_p=1.5"),
    "sample": (lambda: Decoding(sample=True), "beam_size=1, not 10"),
    "empty": (lambda: decode(model("gpt2"), [[1], []], Decoding(eos_ids=EOS)), "Prompt 2 is empty"),
    "long": (
        lambda: decode(model("gpt2"), [[1] * 72], Decoding(max_new_tokens=26, eos_ids=EOS)),
        "Prompt 1 has 72 tokens and decoding.max_new_tokens=26.* for 96 tokens",
    ),
    "end": (lambda: decode(model("gpt2"), [[1]], Decoding()), "50256 is not a token of the model"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_told(case: str) -> None:
    make, message = WRONG[case]
    with pytest.raises(UserError, match=message):
        make()


def test_all_positions_may_be_used() -> None:
    options = Decoding(beam_size=1, max_new_tokens=25, eos_ids=())
    assert len(decode(model("gpt2"), [[1] * 72], options)[0]) == 25
