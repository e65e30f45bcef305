"""The verb `predict`: a run over new data."""

from __future__ import annotations

import csv
import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import forked
import pytest
from learned import CLASSES, PAIRS, ROWS, Learned
from pyarrow import parquet

from lora_exp.errors import UserError
from lora_exp.finished import new_data
from lora_exp.runs import predictions
from lora_exp.tasks import tables
from lora_exp.tasks.answered import encoded

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Learned:
    return Learned(tmp_path_factory.mktemp("learned"))


def predict(run: Path, source: Path, target: Path, **options: Any) -> forked.Ended:
    return forked.run(
        "predict", str(run), "--input", str(source), "--output", str(target), **options
    )


def predicted(run: Path, source: Path, target: Path, **options: Any) -> Rows:
    ended = predict(run, source, target, **options)
    assert ended.status == 0, ended.output
    assert sorted(path.name for path in target.parent.iterdir() if path.suffix == ".tmp") == []
    return [record for _, record in tables.records(target)]


def small_batches() -> None:
    from lora_exp.train import inference

    inference.TOKENS = {"cpu": 30}


# -- what a run says -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "method"),
    [("bert", "lora"), ("gpt2", "lora"), ("deberta-v2", "lora"), ("bert", "prompt")],
)
def test_the_validation_file_gets_the_predictions_that_are_kept(
    architecture: str, method: str, learned: Learned, tmp_path: Path
) -> None:
    run = learned.rating(architecture, f"method={method}")
    rows = predicted(run, learned.data() / "validation.tsv", tmp_path / "out.jsonl")
    said = predictions.read(run / "predictions")["validation"].predictions
    scores = [row["score"] for row in rows]
    assert scores == pytest.approx(said, rel=1e-4, abs=1e-4)
    assert [(row["text"], row["class"]) for row in rows] == [row[:2] for row in ROWS]
    again = predicted(
        run, learned.data() / "validation.tsv", tmp_path / "again.jsonl", before=small_batches
    )
    assert [row["score"] for row in again] == pytest.approx(scores, rel=1e-4, abs=1e-4)


def test_classes_and_their_probabilities(learned: Learned, tmp_path: Path) -> None:
    run = learned.classifying("bert")
    rows = predicted(run, learned.data() / "validation.tsv", tmp_path / "out.jsonl")
    said = predictions.read(run / "predictions")["validation"].predictions
    assert [row["prediction"] for row in rows] == [CLASSES[int(number)] for number in said]
    for row in rows:
        shares = {name: row[f"probability_{name}"] for name in CLASSES}
        assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
        assert max(shares, key=lambda name: shares[name]) == row["prediction"]
    again = predicted(
        run, learned.data() / "validation.tsv", tmp_path / "again.jsonl", before=small_batches
    )
    assert [row["prediction"] for row in again] == [row["prediction"] for row in rows]


def test_too_large_batches_are_halved(learned: Learned, tmp_path: Path) -> None:
    def little_memory() -> None:
        from lora_exp.train import inference

        original = inference.forward

        def forward(pieces: Any, precision: str) -> Any:
            if len(pieces[0].batch.lengths) > 7:
                raise RuntimeError("can't allocate memory")
            return original(pieces, precision)

        inference.forward = forward

    run = learned.classifying("bert")
    source = learned.data() / "validation.tsv"
    rows = predicted(run, source, tmp_path / "out.jsonl")
    small = predicted(run, source, tmp_path / "small.jsonl", before=little_memory)
    assert [row["prediction"] for row in small] == [row["prediction"] for row in rows]


@pytest.mark.parametrize("beams", [1, 3])
def test_texts_are_those_of_the_run(beams: int, learned: Learned, tmp_path: Path) -> None:
    run = learned.writing(f"decoding.beam_size={beams}", "decoding.examples=5")
    written = [json.loads(line)["output"] for line in (run / "generations/test.jsonl").open()]
    source = tmp_path / "new.csv"
    rows = [*PAIRS, PAIRS[0]]
    source.write_text("id,source\n" + "".join(f"{n},{one}\n" for n, (one, _) in enumerate(rows)))
    found = predicted(run, source, tmp_path / "out.csv")
    assert [row["id"] for row in found] == [str(number) for number in range(len(rows))]
    outputs = [row["output"] for row in found]
    assert any(outputs)
    assert outputs[:5] == written
    assert outputs[-1] == outputs[0]


# -- files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", tables.SUFFIXES)
def test_every_format_is_read_and_written(suffix: str, tmp_path: Path) -> None:
    rows = [{"text": "a, b", "label": "é"}, {"text": 'c "d"', "label": "2"}]
    path = tmp_path / f"table{suffix}"
    path.write_bytes(encoded(path, rows))
    assert [record for _, record in tables.records(path)] == rows
    assert encoded(path, rows) == path.read_bytes(), "no time in it"


def test_what_is_no_text_is_kept(tmp_path: Path) -> None:
    rows = [{"n": 1, "list": ["a"], "x": None}, {"n": 2, "list": [], "x": 0.5, "more": True}]
    for name in ("t.jsonl", "t.parquet", "t.csv"):
        (tmp_path / name).write_bytes(encoded(tmp_path / name, rows))
    assert [json.loads(line) for line in (tmp_path / "t.jsonl").open()] == rows
    assert parquet.read_table(tmp_path / "t.parquet").to_pylist() == [
        {**rows[0], "more": None},
        rows[1],
    ]
    assert [*csv.reader((tmp_path / "t.csv").open())] == [
        ["n", "list", "x", "more"],
        ["1", '["a"]', "", ""],
        ["2", "[]", "0.5", "true"],
    ]


@pytest.mark.parametrize(
    ("name", "rows", "expected"),
    [
        ("t.tsv", [{"text": "a"}, {"text": "b\tc"}], "row 2 has a tab or a line end"),
        ("t.parquet", [{"x": 1}, {"x": "a"}], "the column 'x' holds values of several types"),
        ("t.jsonl", [{"x": "\ud800"}], "half of a surrogate pair"),
        ("t.xlsx", [{"x": 1}], "its name must end in .tsv, "),
    ],
)
def test_what_a_format_cannot_hold(name: str, rows: Rows, expected: str) -> None:
    with pytest.raises(UserError, match=f"^{name}: .*{expected}"):
        encoded(Path(name), rows)


def test_mistakes_are_told_before_the_model_is_loaded(
    learned: Learned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifying = learned.classifying("bert")
    monkeypatch.delattr(new_data, "restore")

    def refused(
        content: bytes, name: str = "in.csv", out: str = "out.csv", run: Path = classifying
    ) -> str:
        (tmp_path / name).write_bytes(content)
        before = sorted(tmp_path.iterdir())
        with pytest.raises(UserError) as caught:
            new_data.predict(Path("outputs"), str(run), tmp_path / name, tmp_path / out)
        assert sorted(tmp_path.iterdir()) == before
        assert len(str(caught.value).splitlines()) == 1
        return str(caught.value)

    assert "in.csv:1: no column 'text'. Did you mean texts?" in refused(b"texts\na\n")
    assert "in.csv: the file is empty" in refused(b"")
    assert "in.csv: has no rows." in refused(b"text\n")
    assert "in.csv:2: byte 0xe9 at position 0 is not UTF-8" in refused(b"text\n\xe9\n")
    assert "in.csv:3: the column 'text' is empty" in refused(b'text,n\na,1\n"",2\n')
    assert "not a readable gzip file" in refused(b"text\na\n", "in.csv.gz")
    assert "not a table" in refused(b"text\na\n", "in.xlsx")
    assert "its name must end in" in refused(b"text\na\n", out="out.txt")
    assert "is not a folder" in refused(b"text\na\n", out="none/out.csv")
    assert "has a column 'probability_bad' already" in refused(b"text,probability_bad\na,1\n")
    assert "row 1 has a tab" in refused(b'{"text": "a\\tb"}', "in.jsonl", "out.tsv")
    (tmp_path / "taken.csv").write_text("mine")
    assert "taken.csv: exists, and nothing is overwritten" in refused(b"text\na\n", out="taken.csv")
    assert (tmp_path / "taken.csv").read_text() == "mine"
    ended = predict(classifying, tmp_path / "inn.csv", tmp_path / "out.csv")
    assert ended.status == 2
    assert "inn.csv: there is no such file. Did you mean in.csv" in ended.output
    writing = learned.writing("decoding.beam_size=1", "decoding.examples=5")
    text = refused(b"source\na\n", out="out.tsv", run=writing)
    assert "texts may have line ends, which TSV cannot hold" in text
    assert "no column 'source'" in refused(b"text\na\n", run=writing)


def test_a_file_of_a_corpus(learned: Learned, tmp_path: Path) -> None:
    data = tmp_path / "e2e"
    data.mkdir()
    meanings = ["name[Alimentum], food[soup]", "name[Alimentum], food[fish]"]
    rows = "".join(f'"{one}",It has soup.\n' for one in (*meanings, meanings[0]))
    for split in ("trainset", "devset", "testset_w_refs"):
        (data / f"{split}.csv").write_text(f"mr,ref\n{rows}")
    run = learned.run(
        "writer",
        "task=e2e",
        f"task.data_dir={tmp_path}",
        "train.epochs=1",
        "train.batch_size=2",
        "train.drop_last=false",
        "decoding.beam_size=1",
        "decoding.max_new_tokens=4",
    )
    found = predicted(run, data / "devset.csv", tmp_path / "out.jsonl")
    written = [json.loads(line) for line in (run / "generations/test.jsonl").open()]
    assert found == [{"source": one["source"], "output": one["output"]} for one in written]
    assert len(found) == 2
    with gzip.open(tmp_path / "plain.tsv.gz", "wt") as file:
        file.write(f"source\tid\n{found[0]['source']}\t7\n")
    plain = predicted(run, tmp_path / "plain.tsv.gz", tmp_path / "plain.jsonl")
    assert plain == [{"source": found[0]["source"], "id": "7", "output": found[0]["output"]}]


def test_a_run_that_was_copied(learned: Learned, tmp_path: Path) -> None:
    run = learned.classifying("bert")
    copied = shutil.copytree(run, tmp_path / "copied")
    source = learned.data() / "validation.tsv"
    assert predicted(copied, source, tmp_path / "a.csv") == predicted(
        run, source, tmp_path / "b.csv"
    )
