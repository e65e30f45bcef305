"""Text generation from a command to texts and scores; equal to a naive way of doing it."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from packs import losses, queue, recipe, train
from tiny import save_writer

from lora_exp import models
from lora_exp.decoding import Decoding, decode
from lora_exp.errors import UserError
from lora_exp.runs.config import Config, DecodingConfig, ModelConfig, TaskConfig
from lora_exp.runs.folder import RunFolder
from lora_exp.train.workplace import Workplace

PLACES = ("Aromi", "Cocum", "Zizzi", "Giraffe", "Strada")
FOODS = ("Thai", "French", "Indian", "pub")
AREAS = ("riverside", "city centre")


def rows(places: tuple[str, ...]) -> list[dict[str, Any]]:
    return [
        {
            "source": f"name : {place} | food : {food} | area : {area}",
            "references": [
                f"{place} serves {food} food in the {area}.",
                f"In the {area} there is {place}, for {food} food.",
            ],
        }
        for place in places
        for food in FOODS
        for area in AREAS
    ]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for split, places in (("train", PLACES), ("validation", PLACES[:1]), ("test", PLACES[1:3])):
        lines = [json.dumps(row) for row in rows(places)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_writer(tmp_path_factory.mktemp("writer"), texts())


def texts() -> list[str]:
    return [text for row in rows(PLACES) for text in (row["source"], *row["references"])]


def config(model: Path, data: Path, outputs: Path, **changes: Any) -> Config:
    task = TaskConfig(name="places", kind="generation", data_dir=str(data), test="test")
    given: dict[str, Any] = {"task": task, "max_length": 120, "max_steps": 6}
    given["decoding"] = DecodingConfig(examples=0)
    return recipe(model, outputs, **(given | changes))


def command(model: Path, data: Path, outputs: Path, *more: str) -> list[str]:
    return [
        "task=generation",
        f"task.data_dir={data}",
        "task.test=test",
        f"model.name_or_path={model}",
        f"outputs={outputs}",
        "lora/placement=all_linear",
        "lora.dropout=0.1",
        "train.lr=3e-2",
        "train.max_steps=6",
        "train.eval_every=2",
        "train.max_length=120",
        "decoding.max_new_tokens=8",
        "decoding.beam_size=2",
        "decoding.min_length=3",
        "decoding.batch_size=5",
        *more,
    ]


def written(outputs: Path) -> list[dict[str, Any]]:
    file = forked.folder_of(outputs) / "generations" / "test.jsonl"
    return [json.loads(line) for line in file.read_text().split("\n")[:-1]]


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


@pytest.fixture(scope="module")
def finished(
    writer: Path, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, forked.Ended]:
    outputs = tmp_path_factory.mktemp("finished")
    ended = forked.run(*command(writer, data, outputs), before=worse_and_worse)
    assert ended.status == 0, ended.output
    return outputs, ended


def worse_and_worse() -> None:
    """The first evaluation is the best; and what needs Java is missing."""
    from lora_exp.train.run import Run

    original = Run.note

    def note(self: Run, metrics: dict[str, float]) -> bool:
        return original(self, metrics | {"perplexity": 100.0 + self.progress.step})

    Run.note = note  # type: ignore[method-assign]
    without_java()


def without_java() -> None:
    """It takes seconds to start."""
    from lora_exp.tasks.scores import java

    java.lacking = lambda: "needs Java, which is not here"  # type: ignore[assignment]


def test_texts_and_scores(finished: tuple[Path, forked.Ended], data: Path) -> None:
    outputs, ended = finished
    result = RunFolder(forked.folder_of(outputs)).result
    assert result is not None
    assert [*result["metrics"]][:3] == ["loss", "perplexity", "bleu"]
    assert "meteor" not in result["metrics"]
    assert "Java" in result["missing"]["meteor"]
    assert "meteor will be missing: needs Java" in ended.output
    assert ended.output.index("will be missing") < ended.output.index("perplexity")
    assert result["best_step"] == 2
    given = [json.loads(line) for line in (data / "test.jsonl").read_text().splitlines()]
    lines = written(outputs)
    assert [line["source"] for line in lines] == [row["source"] for row in given]
    assert [line["references"] for line in lines] == [row["references"] for row in given]
    (scores,) = (
        line for line in RunFolder(forked.folder_of(outputs)).metrics() if line["split"] == "test"
    )
    assert scores["bleu"] == result["metrics"]["bleu"]
    assert f"bleu {scores['bleu']:.4f}" in (forked.folder_of(outputs) / "log.txt").read_text()
    assert result["sources_per_second"] == pytest.approx(16 / result["decoding_seconds"], rel=0.05)


def test_texts_are_shown(finished: tuple[Path, forked.Ended]) -> None:
    outputs, _ = finished
    shown = forked.run("show", forked.folder_of(outputs).name, "--outputs", str(outputs))
    assert shown.status == 0, shown.output
    first = written(outputs)[0]
    assert f"source: {first['source']}\noutput: {first['output']}\nreference: " in shown.output
    assert "no meteor: needs Java" in shown.output
    assert " sources/s" in shown.output


@pytest.mark.parametrize("method", ["lora", "prefix", "prompt", "adapter"])
def test_greedy_texts_are_the_best_tokens_of_the_model_as_it_is_trained(
    method: str, writer: Path, data: Path, tmp_path: Path
) -> None:
    """The cache and transformers' own attention against flat batches."""
    from lora_exp.train import outputs
    from lora_exp.train.batches import Batch
    from lora_exp.train.forward import Piece, forward
    from lora_exp.train.run import Run

    made = config(writer, data, tmp_path, method=method, decoding=DecodingConfig(examples=4))
    backbone, prepared = Workplace(torch.device("cpu")).prepare(made)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in backbone.model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    run = Run(made, RunFolder(tmp_path), backbone, prepared, [], 1)
    prompts = prepared.test.prompts if prepared.test is not None else []
    with outputs._ready(run, "fp32"):
        options = Decoding(beam_size=1, no_repeat_ngram=0, max_new_tokens=9, eos_ids=(0,))
        texts = decode(backbone.model, prompts, options)
    whole = [[*prompt, *text] for prompt, text in zip(prompts, texts, strict=True)]
    ends = torch.tensor([len(one) for one in whole]).cumsum(0)
    reads = [
        place
        for end, text in zip(ends.tolist(), texts, strict=True)
        for place in range(end - len(text) - 1, end - 1)
    ]
    batch = Batch(
        input_ids=torch.tensor([token for one in whole for token in one]),
        token_types=None,
        lengths=[len(one) for one in whole],
        labels=torch.tensor([token for text in texts for token in text]),
        reads=torch.tensor(reads),
    )
    backbone.model.eval()
    with torch.no_grad(), forward([Piece(backbone, batch)], "fp32") as (hidden,):
        head: Any = backbone.model.get_output_embeddings()
        assert head(hidden).argmax(-1).equal(batch.labels)


def test_texts_are_those_of_the_exported_model(
    finished: tuple[Path, forked.Ended], tmp_path: Path
) -> None:
    """That is, of the best step, which was not the last."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from lora_exp.exchange import export

    outputs, _ = finished
    said = export(outputs, forked.folder_of(outputs).name, "merged", tmp_path / "merged")
    assert "AutoModelForCausalLM" in said
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path / "merged")
    lines = written(outputs)
    end = tokenizer.eos_token_id
    options = Decoding(
        beam_size=2,
        length_penalty=1.0,
        no_repeat_ngram=4,
        min_length=3,
        max_new_tokens=8,
        eos_ids=(end,),
    )
    prompts = [[*tokenizer.encode(line["source"]), end] for line in lines]
    expected = [
        tokenizer.decode(tokens, skip_special_tokens=True).strip()
        for tokens in decode(model, prompts, options)
    ]
    assert [line["output"] for line in lines] == expected
    assert len(set(expected)) > 1


def test_peft_opens_the_adapter(finished: tuple[Path, forked.Ended], tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from lora_exp.exchange import export

    folder = forked.folder_of(finished[0])
    export(finished[0], folder.name, "merged", tmp_path / "merged")
    name = RunFolder(folder).config.model.name_or_path
    theirs = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(name), folder / "adapter"
    )
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    ids = torch.arange(40)[None]
    with torch.no_grad():
        torch.testing.assert_close(
            theirs.eval()(input_ids=ids).logits, ours(input_ids=ids).logits, atol=1e-4, rtol=1e-4
        )
    about = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert about["task_type"] == "CAUSAL_LM"


def test_each_group_has_scores_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from lora_exp.tasks import Source
    from lora_exp.tasks.scores import java, score
    from lora_exp.train import outputs

    texts = ["The doctor is near the river .", "A pilot waits in the old city ."]
    sources = [Source("a", (texts[0],), "seen"), Source("b", ("Nothing of the kind .",), "unseen")]
    test = outputs.TestSet("webnlg", sources, [[1], [2]], Decoding(), [])
    monkeypatch.setattr(java, "lacking", lambda: "needs Java, which is not here")
    scores = outputs._scores(test, texts)
    assert scores.values["bleu_seen"] == pytest.approx(1.0)
    assert scores.values["bleu_unseen"] == 0.0
    whole = score("webnlg", texts, [source.references for source in sources])
    assert scores.values["bleu"] == whole.values["bleu"]
    assert {*scores.missing} == {"meteor", "meteor_seen", "meteor_unseen"}


def kill(name: str, call: int, number: signal.Signals = signal.SIGKILL) -> Callable[[], None]:
    def patch() -> None:
        from lora_exp.train import outputs

        worse_and_worse()
        forked.kill_on_call(outputs, name, call, number=number)

    return patch


def counted(calls: Path) -> Callable[[], None]:
    def patch() -> None:
        from lora_exp.train import outputs

        worse_and_worse()
        original = outputs.decode

        def decoded(model: Any, prompts: Any, *arguments: Any, **keywords: Any) -> Any:
            with calls.open("a") as file:
                file.write("x" * len(prompts))
            return original(model, prompts, *arguments, **keywords)

        outputs.decode = decoded

    return patch


@pytest.mark.parametrize(
    ("name", "call", "left"), [("decode", 3, 6), ("_line", 2, 1), ("score", 1, 0)]
)
def test_a_killed_run_decodes_nothing_twice(
    name: str,
    call: int,
    left: int,
    finished: tuple[Path, forked.Ended],
    writer: Path,
    data: Path,
    tmp_path: Path,
) -> None:
    arguments = command(writer, data, tmp_path)
    assert forked.run(*arguments, before=kill(name, call)).status == -signal.SIGKILL
    folder = forked.folder_of(tmp_path)
    part = folder / "generations" / "test.part.jsonl"
    if name == "decode":
        with part.open("a") as file:
            file.write('{"number": 3, "outp')  # as a crash may leave it
    ended = forked.run(*arguments, before=counted(tmp_path / "calls"))
    assert ended.status == 0, ended.output
    calls = tmp_path / "calls"
    again = len(calls.read_text()) if calls.exists() else 0
    assert again == (left if name == "decode" else 0)
    assert not part.exists()
    theirs = forked.folder_of(finished[0])
    for file in ("generations/test.jsonl", "adapter/adapter_model.safetensors"):
        assert (folder / file).read_bytes() == (theirs / file).read_bytes()
    results = [RunFolder(path).result or {} for path in (folder, theirs)]
    assert results[0]["metrics"] == results[1]["metrics"]
    splits = [line["split"] for line in RunFolder(folder).metrics()]
    assert splits == [line["split"] for line in RunFolder(theirs).metrics()]


def test_a_signal_while_decoding_preempts(
    finished: tuple[Path, forked.Ended], writer: Path, data: Path, tmp_path: Path
) -> None:
    arguments = command(writer, data, tmp_path)
    ended = forked.run(*arguments, before=kill("decode", 2, signal.SIGTERM))
    assert ended.status == 128 + signal.SIGTERM
    folder = RunFolder(forked.folder_of(tmp_path))
    assert folder.status["state"] == "preempted"
    assert folder.status["step"] == 6
    assert forked.run(*arguments, before=worse_and_worse).status == 0
    assert written(tmp_path) == written(finished[0])
    result = folder.result
    assert result is not None  # the first attempt's texts and seconds included
    assert result["sources_per_second"] == pytest.approx(16 / result["decoding_seconds"], rel=0.05)


def test_a_run_can_be_cancelled_while_it_decodes(writer: Path, data: Path, tmp_path: Path) -> None:
    def cancel() -> None:
        from lora_exp.train import outputs, run

        run.HEARTBEAT_SECONDS = 0.0
        original = outputs.decode

        def decoded(*arguments: Any, **keywords: Any) -> Any:
            RunFolder(forked.folder_of(tmp_path)).request_cancel()
            return original(*arguments, **keywords)

        outputs.decode = decoded

    ended = forked.run(*command(writer, data, tmp_path), before=cancel)
    assert ended.status == 1
    folder = RunFolder(forked.folder_of(tmp_path))
    assert folder.status["state"] == "cancelled"
    part = folder.path / "generations" / "test.part.jsonl"
    assert len(part.read_text().splitlines()) == 5


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


def test_the_last_evaluation_if_that_is_asked_for(
    finished: tuple[Path, forked.Ended], writer: Path, data: Path, tmp_path: Path
) -> None:
    arguments = command(writer, data, tmp_path, "train.select=last", "decoding.examples=3")
    ended = forked.run(*arguments, before=worse_and_worse)
    assert ended.status == 0, ended.output
    result = RunFolder(forked.folder_of(tmp_path)).result
    assert result is not None
    assert result["best_step"] == 6
    others = [line["output"] for line in written(finished[0])[:3]]
    assert [line["output"] for line in written(tmp_path)] != others


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


def test_long_sources_are_cut_to_leave_room(
    writer: Path, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: Any
) -> None:
    import logging

    from lora_exp.tasks import Source
    from lora_exp.train.outputs import test_set as prepared

    monkeypatch.setattr(logging.getLogger("lora_exp"), "propagate", True)
    backbone = models.load(ModelConfig(str(writer)), None)
    sources = [Source("name : Zizzi " * 40, ("x",)), Source("Zizzi", ("x",))]
    made = replace(config(writer, data, tmp_path), decoding=DecodingConfig(max_new_tokens=20))
    test = prepared(made, sources, backbone)
    end = backbone.tokenizer.eos_token_id
    assert [len(test.prompts[0]), test.prompts[0][-1]] == [108, end]
    assert len(test.prompts[1]) < 10
    assert "1 of 2 sources of the test split are cut to 108 tokens" in caplog.text


def test_a_text_ends_where_it_stops(
    writer: Path, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: Any
) -> None:
    import logging

    from lora_exp.train import outputs

    monkeypatch.setattr(logging.getLogger("lora_exp"), "propagate", True)
    backbone = models.load(ModelConfig(str(writer)), None)
    made = replace(
        config(writer, data, tmp_path),
        decoding=DecodingConfig(stop=["\n\n", " food"], banned=["!", "zz"]),
    )
    test = outputs.test_set(made, [outputs.Source("Zizzi", ("x",))], backbone)
    tokenizer: Any = backbone.tokenizer
    encode, end = tokenizer.encode, tokenizer.eos_token_id
    assert test.options.eos_ids[0] == end
    assert encode("\n\n")[0] in test.options.eos_ids
    assert test.options.banned_ids == (encode("!")[0],)
    assert "decoding.banned=['!', 'zz']: not all of them are single tokens" in caplog.text

    class Holder:
        pass

    run: Any = Holder()
    run.backbone = backbone
    for tokens, text in (
        ([*encode(" Zizzi serves."), end], "Zizzi serves."),
        ([*encode(" Zizzi serves.\n\nMore")], "Zizzi serves."),
        ([*encode(" Zizzi serves Thai food."), end], "Zizzi serves Thai"),
        ([end], ""),
    ):
        assert outputs._text(run, test, tokens) == text


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
