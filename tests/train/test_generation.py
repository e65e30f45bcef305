"""Training for text generation, equal to a naive way of doing it."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from packs import losses, queue, train
from tiny import save_writer
from writers import command, config, texts, without_java, written

from lora_exp import models
from lora_exp.errors import UserError
from lora_exp.runs.config import Config, ModelConfig
from lora_exp.runs.folder import RunFolder
from lora_exp.train.workplace import Workplace


def naive_loss(model: Any, encoded: Any, chosen: list[int]) -> torch.Tensor:
    """Each sequence through transformers alone; the mean over the tokens of all."""
    total, count = torch.zeros(()), 0
    for number in chosen:
        span = slice(*encoded.offsets[number : number + 2])
        ids, kinds = (
            torch.from_numpy(x[span].astype("int64")) for x in (encoded.ids, encoded.types)
        )
        logits = model(input_ids=ids[None]).logits[0, :-1]
        wanted = ids[1:].masked_fill(kinds[1:] == 0, -100)
        total = total + torch.nn.functional.cross_entropy(logits, wanted, reduction="sum")
        count += int((wanted != -100).sum())
    return total / count


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "qwen3", "gpt_neox"])
def test_loss_gradients_and_perplexity_are_those_of_transformers(
    architecture: str, data: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    from lora_exp.console import progress
    from lora_exp.train.evaluation import evaluate
    from lora_exp.train.forward import forward
    from lora_exp.train.interruption import Interruption
    from lora_exp.train.run import Run

    changes: dict[str, Any] = {"tie_word_embeddings": False} if architecture == "llama" else {}
    folder = save_writer(tmp_path / "model", texts(), architecture, **changes)
    made = config(folder, data, tmp_path, method="full")
    made = replace(made, model=ModelConfig(str(folder), dropout=0.0))
    backbone, prepared = Workplace(torch.device("cpu")).prepare(made)
    run = Run(made, RunFolder(tmp_path / "run"), backbone, prepared, [], 1)
    run.folder.create(made, {})
    theirs = AutoModelForCausalLM.from_pretrained(folder).eval()
    chosen = [3, 11, 0, 7, 30]
    from lora_exp.train.forward import Piece

    batch = prepared.train.batch(chosen)
    with forward([Piece(backbone, batch)], "fp32") as (hidden,):
        loss = run.loss(hidden, batch.labels)
        loss.backward()
    expected = naive_loss(theirs, prepared.train, chosen)
    expected.backward()
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    own = dict(backbone.model.named_parameters())
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(own[name].grad, parameter.grad, atol=1e-5, rtol=1e-4, msg=name)
    with progress() as bar:
        metrics = evaluate(run, "fp32", Interruption(), bar)
    assert metrics is not None
    validation = prepared.validation["validation"]
    with torch.no_grad():
        mean = naive_loss(theirs, validation, list(range(len(validation)))).item()
    assert metrics["loss"] == pytest.approx(mean, rel=1e-5)
    assert metrics["perplexity"] == pytest.approx(math.exp(mean), rel=1e-5)


def test_runs_of_a_pack_equal_their_solo_runs(writer: Path, data: Path, tmp_path: Path) -> None:
    def runs(outputs: Path) -> list[Config]:
        return [
            config(writer, data, outputs, seed=1, lora_dropout=0.1, label_smoothing=0.1),
            config(writer, data, outputs, seed=2, lora_r=2, batch_size=3, micro_batch_size=2),
        ]

    together, alone = runs(tmp_path / "together"), runs(tmp_path / "alone")
    assert set(train(together, 2).values()) == {"done"}
    assert set(train(alone, 1).values()) == {"done"}
    for packed, solo in zip(queue(together, 2), queue(alone, 1), strict=True):
        assert losses(packed) == pytest.approx(losses(solo), rel=1e-5)
        assert RunFolder(packed).status["pack"] is not None


def test_micro_batches_weigh_by_tokens(writer: Path, data: Path, tmp_path: Path) -> None:
    model = ModelConfig(str(writer), dropout=0.0)
    runs = [
        replace(config(writer, data, tmp_path, micro_batch_size=size), model=model)
        for size in (None, 3, 1)
    ]
    train(runs, 1)
    whole, *parts = (losses(path) for path in queue(runs, 1))
    for part in parts:
        assert part == pytest.approx(whole, rel=1e-5)


def test_two_processes_write_as_one(writer: Path, data: Path, tmp_path: Path) -> None:
    more = ["model.dropout=0", "lora.dropout=0", "device=cpu", "train.log_every=1"]
    one, two = (command(writer, data, tmp_path / name, *more) for name in ("one", "two"))
    started = subprocess.Popen(
        [sys.executable, "-m", "lora_exp", *two, "train.devices=2"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PATH": str(Path(sys.executable).parent)},
    )
    assert forked.run(*one, before=without_java).status == 0
    assert started.wait(120) == 0, started.communicate()
    paths = [forked.folder_of(tmp_path / name) for name in ("one", "two")]
    assert losses(paths[1]) == pytest.approx(losses(paths[0]), rel=1e-5)
    assert written(tmp_path / "two") == written(tmp_path / "one")
    results = [RunFolder(path).result or {} for path in paths]
    assert results[1]["metrics"] == pytest.approx(results[0]["metrics"], rel=1e-4)


def test_the_last_batch_may_be_left_out(writer: Path, data: Path, tmp_path: Path) -> None:
    """80 examples: the schedule counts three batches of 32, as the reference's does."""
    whole = config(writer, data, tmp_path, max_steps=None, epochs=2, batch_size=32)
    cut = replace(whole, train=replace(whole.train, drop_last=True))
    train([whole, cut], 1)
    found = [list(RunFolder(path).metrics()) for path in queue([whole, cut], 1)]
    rates = [
        [line["learning_rate"] for line in lines if "learning_rate" in line] for lines in found
    ]
    assert len(rates[0]) == 6
    assert rates[1] == rates[0][:4]
    assert [line["step"] for line in found[1] if line["split"] == "validation"] == [4]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["train.max_length=10"], "train.max_length=10: every example is cut"),
        (["train.drop_last=true", "train.batch_size=100"], "train.drop_last: the 80 training"),
        (["decoding.max_new_tokens=127"], "decoding.max_new_tokens=127: the model has positions"),
        (
            ["method=prefix", "prefix.length=126"],
            "prefix.length=126: the model has positions for 128",
        ),
        (["decoding.sample=true"], "decoding.beam_size=2: decoding.sample=true draws one text"),
        (["decoding.top_p=2"], "decoding.top_p=2.0: must be at most 1."),
        (["model.head_dropout=0.1"], "a language model's head has no dropout"),
        (["task.metrics=[accuracy]"], "task.metrics=['accuracy']: is for labels"),
        (["train.select=first"], "train.select=first: must be one of best, last"),
        (["train.label_smoothing=1"], "train.label_smoothing=1.0: must be at least 0 and below 1"),
    ],
)
def test_what_cannot_be_is_told_before(
    more: list[str], message: str, writer: Path, data: Path, tmp_path: Path
) -> None:
    ended = forked.run(*command(writer, data, tmp_path, *more))
    assert ended.status == 2
    assert message in ended.output
    assert "Traceback" not in ended.output
    assert not (tmp_path / "runs").exists()


def test_models_that_cannot_write(tiny: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    with pytest.raises(UserError, match=r"bert is not a causal language model|no head of a"):
        models.load(ModelConfig(str(tiny)), None)
    from tiny import save

    headless = save(tmp_path / "llama", "llama", tie_word_embeddings=False)
    with pytest.raises(UserError, match=r"no head of a language model \(lm_head.weight"):
        models.load(ModelConfig(str(headless)), None)
    folder = save_writer(tmp_path / "scaled", texts(), "gemma2", final_logit_softcapping=0.1)
    with pytest.raises(UserError, match="gemma2 is not a causal language model with a plain head"):
        models.load(ModelConfig(str(folder)), None)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="its tokenizer has no eos_token"):
        models.end_of_text(ModelConfig(str(folder)), tokenizer)
