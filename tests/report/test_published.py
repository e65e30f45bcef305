"""`report --study`: the published numbers, and ours in their places."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import SHARED
from stores import Store

from lora_exp.cli import CONF
from lora_exp.report.published import FILE, Published, studies
from lora_exp.report.units import scale
from lora_exp.runs.selector import Selector
from lora_exp.tasks.scores import metrics

Capture = pytest.CaptureFixture[str]
GLUE = ["mnli", "sst2", "mrpc", "cola", "qnli", "qqp", "rte", "stsb"]
ROBERTA: dict[str, Any] = {"model__name_or_path": "roberta-base"}


def study(store: Store, name: str, runs: list) -> None:
    store.grid("g" * (1 + len(list(store.outputs.glob("grids/*")))), runs, study=name)


def runs(store: Store, task: str, metric: str, values: list[float], **more: Any) -> list:
    return [
        store.run("done", task__name=task, seed=seed, metrics={"loss": 1.0, metric: value}, **more)
        for seed, value in enumerate(values, start=1)
    ]


def cells(store: Store, capsys: Capture, name: str) -> list[dict[str, Any]]:
    status, text = store.say(capsys, "report", "--study", name, "--json", "-")
    assert status == 0, text
    return [cell for table in json.loads(text)["tables"] for cell in table["cells"]]


def row(text: str, *words: str) -> str:
    return next(
        re.sub(r"\s+", " ", line) for line in text.splitlines() if all(w in line for w in words)
    )


def test_ours_beside_theirs(store: Store, capsys: Capture) -> None:
    ours = runs(store, "rte", "accuracy", [0.861, 0.868, 0.875, 0.88, 0.88], **ROBERTA)
    ours += runs(store, "cola", "matthews_correlation", [0.50, 0.52, 0.51], **ROBERTA)
    ours.append(store.run("failed", {"reason": "nan"}, task__name="cola", seed=4, **ROBERTA))
    runs(store, "rte", "accuracy", [0.1, 0.1], group="elsewhere", **ROBERTA)
    study(store, "roberta_base_glue", ours)
    text = store.say(capsys, "report", "--study", "roberta_base_glue")[1]
    _, paper = text.split("Table 2")
    assert row(paper, "lora", "theirs").split(" theirs ")[1] == (
        "87.5 ± 0.3 95.1 ± 0.2 89.7 ± 0.7 63.4 ± 1.2 93.3 ± 0.3 90.8 ± 0.1 86.6 ± 0.7 91.5 ± 0.2 "
        "87.2"
    )
    dash = "\u2013"
    own = f"{dash} {dash} {dash} 51.0 ± 1.0 (3/5) 1 failed {dash} {dash} 87.5 ± 0.8 {dash} {dash}"
    assert row(paper, "ours ").split(" ours ")[1] == own
    assert row(paper, "difference").split() == [
        "difference",
        "\u221212.4",
        "neither",
        "+0.9",
        "neither",
    ]
    assert "nan" in text
    found = {
        (c["source"], c["column"]): c
        for c in cells(store, capsys, "roberta_base_glue")
        if c["method"] == "lora"
    }
    rte = found["microsoft/LoRA, README", "rte"]
    assert rte["ours"] == pytest.approx(87.5), "the median"
    assert rte["difference"] == pytest.approx(0.9)
    assert (rte["within_theirs"], rte["within_ours"]) == (False, False)
    assert found["microsoft/LoRA, README", "cola"]["unfinished"] == ["1 failed"]


@pytest.mark.parametrize(
    ("values", "within"),
    [
        ([0.866] * 5, (True, True)),
        ([0.860] * 5, (True, False)),  # 0.6 of 0.7 there, none here
        ([0.80, 0.85, 0.875, 0.90, 0.95], (False, True)),
        ([0.866], (True, None)),
    ],
)
def test_within_which_spread(
    store: Store, capsys: Capture, values: list[float], within: tuple[bool, bool | None]
) -> None:
    study(store, "roberta_base_glue", runs(store, "rte", "accuracy", values, **ROBERTA))
    found = cells(store, capsys, "roberta_base_glue")
    cell = next(c for c in found if c["method"] == "lora" and c["column"] == "rte")
    assert (cell["within_theirs"], cell["within_ours"]) == within


def test_the_average_is_that_of_the_published_columns(store: Store, capsys: Capture) -> None:
    published = next(t for t in studies()["roberta_base_glue"].tables if "README" in t.source)
    lora = next(r for r in published.rows if r.method == "lora" and r.model == "roberta-base")
    ours = []
    for name in published.average:
        column = published.columns[name]
        value = lora.scores[name].mean / column.scale
        metric = {column.metric: value, "accuracy_mismatched": 0.1, "spearman": 0.1}
        ours.append(store.run("done", task__name=column.task, metrics=metric, **ROBERTA))
    study(store, "roberta_base_glue", ours)
    text = store.say(capsys, "report", "--study", "roberta_base_glue")[1]
    assert row(text, "ours ").endswith(" 87.24")
    assert "+0.00" in row(text, "difference")


def test_two_groups_that_fit_a_cell_are_both_shown(store: Store, capsys: Capture) -> None:
    ours = runs(store, "rte", "accuracy", [0.86, 0.87, 0.88], **ROBERTA)
    ours += runs(store, "rte", "accuracy", [0.7], group="b", train__epochs=1, **ROBERTA)
    study(store, "roberta_base_glue", ours)
    text = store.say(capsys, "report", "--study", "roberta_base_glue")[1]
    assert "87.0 ± 1.0" in row(text, "ours ")
    assert "70.0 (1/5)" in row(text, "ours 2")
    assert "lora, rte: ours has train.epochs=3; ours 2 has train.epochs=1." in text


def test_a_study_of_which_nothing_is_trained(store: Store, capsys: Capture) -> None:
    status, text = store.say(capsys, "report", "--study", "table_gpt2_medium")
    assert status == 0
    assert "python -m lora_exp study=table_gpt2_medium" in text
    assert "ours " not in text.replace("Difference", "").split("\n")[0]


def test_gpt2(store: Store, capsys: Capture) -> None:
    medium: dict[str, Any] = {"model__name_or_path": "gpt2-medium"}
    metrics = {
        "perplexity": 3.0,
        "bleu": 0.551,
        "bleu_unseen": 0.467,
        "bleu_seen": 0.62,
        "ter": 0.392,
        "ter_unseen": 0.46,
        "meteor": 0.411,
    }
    ours = [
        store.run("done", task__name="webnlg", seed=seed, metrics=metrics, **medium)
        for seed in (1, 2, 3)
    ]
    large: dict[str, Any] = {
        "method": "adapter",
        "adapter__kind": "lin",
        "adapter__parameters": 11_090_000,
    }
    ours.append(
        store.run("done", task__name="webnlg", metrics=metrics, group="l", **large, **medium)
    )
    study(store, "table_gpt2_medium", ours)
    found = {
        (c["source"].split()[-1], c["method"], c["column"], c["parameters"]): c
        for c in cells(store, capsys, "table_gpt2_medium")
        if c["ours"] is not None
    }
    assert {(key[1], key[3]) for key in found} == {("lora", "0.35M"), ("adapter_lin", "11M")}
    cell = found["14", "lora", "bleu_u", "0.35M"]
    assert (cell["theirs"], cell["ours"], cell["statistic"]) == (46.7, pytest.approx(46.7), "mean")
    assert found["14", "lora", "ter_a", "0.35M"]["difference"] == 0, "0.392 is 0.39"
    assert found["README", "lora", "webnlg_a", "0.35M"]["difference"] == pytest.approx(-0.2)


def test_plain_report_adds_the_studies_it_has(store: Store, capsys: Capture) -> None:
    study(store, "roberta_base_glue", runs(store, "rte", "accuracy", [0.86], **ROBERTA))
    runs(store, "rte", "accuracy", [0.5], group="mine")
    text = store.say(capsys, "report")[1]
    assert text.count("roberta_base_glue: roberta-base") == 2
    assert "table_gpt2" not in text


# -- the data file ---------------------------------------------------------------------------------


def tables() -> list[Published]:
    return [table for study in studies().values() for table in study.tables]


def test_every_study_that_reproduces_a_table_is_known() -> None:
    names = {path.stem for path in (CONF / "study").glob("*.yaml")}
    reproducing = {name for name in names if re.search(r"_glue$|^table_", name)}
    assert reproducing <= {*studies()}


def test_cells_are_what_runs_can_have() -> None:
    for table in tables():
        for name, column in table.columns.items():
            assert (CONF / "task" / f"{column.task}.yaml").exists(), name
            assert column.scale in (1, 100)
            if column.scale == 100:
                assert scale(column.metric) == 100, column.metric
            if column.task in ("e2e", "dart", "webnlg"):
                bare = re.sub("_(un)?seen$", "", column.metric)
                assert bare in metrics(column.task)
        assert {*table.average} <= {*table.columns}
        for line in table.rows:
            assert {*line.scores} <= {*table.columns, "average"}
            Selector.parse([line.runs or ""])


@pytest.mark.skipif(not SHARED.exists(), reason="../shared is not here")
def test_numbers_are_those_of_the_reference() -> None:
    reference = yaml.safe_load((SHARED / "reference/published_results.yaml").read_text())
    own = yaml.safe_load(FILE.read_text())["tables"]

    def numbers(rows: Any) -> list[str]:
        return sorted(
            json.dumps([row["model"], row["method"], *sorted(map(str, row["scores"].values()))])
            for row in rows
        )

    readme, paper = reference["readme"], reference["paper"]
    for name, part in (("glue_readme", "glue"), ("nlg_readme", "nlg")):
        rows = [
            {"model": model, "method": method, **values}
            for model, methods in readme[part]["models"].items()
            for method, values in methods.items()
        ]
        assert numbers(own[name]["rows"]) == numbers(rows)
    for name in ("e2e", "dart", "webnlg"):
        assert numbers(own[name]["rows"]) == numbers(paper[name]["rows"])
    assert numbers(own["glue_paper"]["rows"]) == numbers(paper["glue"]["rows"])


def test_nothing_heavy_is_imported(tmp_path: Path) -> None:
    (tmp_path / "outputs" / "runs").mkdir(parents=True)
    command = ["-X", "importtime", "-m", "lora_exp", "report", "--study", "roberta_base_glue"]
    done = subprocess.run(
        [sys.executable, *command, "--outputs", str(tmp_path / "outputs")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    names = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "lora_exp.report.published" in names
    assert names.isdisjoint({"torch", "transformers", "scipy", "sklearn", "pandas", "hydra"})
