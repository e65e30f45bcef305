"""The texts of a run, from a command to their scores."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from writers import command, config, worse_and_worse, written

from lora_exp import models
from lora_exp.decoding import Decoding, decode
from lora_exp.runs.config import DecodingConfig, ModelConfig
from lora_exp.runs.folder import RunFolder
from lora_exp.train.workplace import Workplace


@pytest.fixture(scope="module")
def finished(
    writer: Path, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, forked.Ended]:
    outputs = tmp_path_factory.mktemp("finished")
    ended = forked.run(*command(writer, data, outputs), before=worse_and_worse)
    assert ended.status == 0, ended.output
    return outputs, ended


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
    with run.selected(), outputs.ready(run.model, "fp32"):
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

    from lora_exp.finished.exchange import export

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

    from lora_exp.finished.exchange import export

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
    assert "1 of 2 sources are cut to 108 tokens" in caplog.text


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
        assert outputs._text(run.backbone.tokenizer, test, tokens) == text
