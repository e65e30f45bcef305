"""`report`: what stands in its table, in all its forms."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from stores import Store

Capture = pytest.CaptureFixture[str]
LOW, HIGH = (0.80, 0.81, 0.80, 0.82), (0.90, 0.92, 0.91, 0.91)


def fill(store: Store, values: tuple[float, ...], group: str, **config: Any) -> None:
    """A group of runs that are done, one for each seed."""
    name = config.pop("metric", "accuracy")
    for seed, value in enumerate(values, start=1):
        metrics = {"loss": 0.4, name: value}
        store.run("done", metrics=metrics, group=group, seed=seed, **config)


def cells(store: Store, capsys: Capture, *arguments: str) -> list[dict[str, Any]]:
    status, text = store.say(capsys, "report", *arguments, "--json", "-")
    assert status == 0, text
    return json.loads(text)["tables"][0]["cells"]


def line_of(text: str, *words: str) -> str:
    found = [line for line in text.splitlines() if all(word in line for word in words)]
    assert len(found) == 1, text
    return re.sub(r"\s+", " ", found[0]).strip()


def test_a_group_is_its_seeds_together(store: Store, capsys: Capture) -> None:
    fill(store, (0.80, 0.84, 0.82, 0.90), "a")
    text = store.say(capsys, "report")[1]
    row = line_of(text, "tiny")
    # mean 84.00, deviation sqrt((16 + 0 + 4 + 36) / 3) = 4.32, median of an even number 83.00
    assert row == "tiny lora 84.00 ± 4.32 (83.00; 4) 1,000 2 s 1.0 MiB"
    assert "4 runs in 1 group\n" in text
    (cell,) = cells(store, capsys)
    assert cell["mean"] == pytest.approx(0.84)
    assert cell["standard_deviation"] == pytest.approx(0.0432, abs=1e-4)
    assert cell["median"] == pytest.approx(0.83)
    assert cell["seeds"] == [1, 2, 3, 4]


def test_what_has_no_result_is_said(store: Store, capsys: Capture) -> None:
    fill(store, (0.8, 0.8), "a")
    store.run("failed", {"reason": "out of memory\nTraceback"}, group="a", seed=3)
    store.run("queued", group="a", seed=4)
    store.run("failed", {"reason": "nan"}, group="b", seed=1, method="full")
    text = store.say(capsys, "report")[1]
    assert "(80.00; 2) 1 queued 1 failed" in line_of(text, "tiny ", " lora ")
    assert line_of(text, "tiny ", " full ") == "tiny full 1 failed"
    assert "5 runs: 1 queued, 2 done, 2 failed." in text
    assert line_of(text, "out of memory").endswith("failed: out of memory")
    by_method = {cell["method"]: cell for cell in cells(store, capsys)}
    assert by_method["lora"]["unfinished"] == ["1 queued", "1 failed"]
    assert by_method["full"]["mean"] is None


def test_rows_columns_and_the_average(store: Store, capsys: Capture) -> None:
    fill(store, LOW, "a", task__name="rte", lora__r=1)
    fill(store, HIGH, "b", task__name="mnli", lora__r=1)
    fill(store, HIGH, "c", task__name="rte", lora__r=16)
    text = store.say(capsys, "report", "--rows", "lora.r")[1]
    assert re.search(r" mnli +rte ", text), "as the published tables order tasks"
    first, second = line_of(text, "80.75 "), line_of(text, "16 ")
    assert first.startswith("1 91.00 ± 0.82 (91.00; 4) 80.75 ± 0.96 (80.50; 4) 85.88")
    assert "\u2013 91.00" in second, "nothing was trained there"
    assert "\u2013 1,000" in second, "an average of half the tasks would mislead"


def test_only_what_is_significantly_best_is_bold(store: Store, capsys: Capture) -> None:
    fill(store, LOW, "a", lora__r=1)
    fill(store, HIGH, "b", lora__r=2)
    fill(store, HIGH, "c", lora__r=1, task__name="mrpc")
    fill(store, (0.91, 0.91, 0.91, 0.92), "d", lora__r=2, task__name="mrpc")
    best = {(c["task"], c["lora.r"]): c["significantly_best"] for c in cells(store, capsys)}
    assert best == {("rte", 1): False, ("rte", 2): True, ("mrpc", 1): False, ("mrpc", 2): False}
    text = store.say(capsys, "report", "--markdown", "-")[1]
    assert re.findall(r"\*\*([\d.]+) ±", text) == ["91.00"]
    assert "paired t-test" in text
    assert "p \\< 0.05" in text


def test_less_perplexity_is_better(store: Store, capsys: Capture) -> None:
    fill(store, (9.0, 9.5, 9.2), "a", metric="perplexity", lora__r=1)
    fill(store, (5.0, 5.6, 5.1), "b", metric="perplexity", lora__r=2)
    best = {cell["lora.r"]: cell["significantly_best"] for cell in cells(store, capsys)}
    assert best == {1: False, 2: True}
    assert "9.23 ± 0.25" in store.say(capsys, "report")[1], "no fraction, so not in percent"


def test_groups_are_never_averaged_over(store: Store, capsys: Capture) -> None:
    fill(store, LOW, "a", train__lr=1e-3)
    fill(store, HIGH, "b", train__lr=2e-3)
    fill(store, HIGH, "c", train__lr=2e-3, method="full", lora__r=99)
    fill(store, LOW, "d", train__lr=2e-3)  # of other data: no key tells
    found = cells(store, capsys, "--rows", "method")
    assert len(found) == 4
    keys = [(c["method"], c["train.lr"], c["group"]) for c in found]
    assert sorted(keys) == sorted(
        [("lora", 0.001, "a"), ("lora", 0.002, "b"), ("full", 0.002, "c"), ("lora", 0.002, "d")]
    )


def test_what_is_of_another_method_is_left_empty(store: Store, capsys: Capture) -> None:
    fill(store, LOW, "a", lora__r=1)
    fill(store, LOW, "b", lora__r=2)
    fill(store, LOW, "c", method="full", lora__r=8)
    rows = {(c["method"], c["lora.r"]) for c in cells(store, capsys, "--rows", "method,lora.r")}
    assert rows == {("lora", 1), ("lora", 2), ("full", "")}


def test_metrics_by_name(store: Store, capsys: Capture) -> None:
    for seed in (1, 2):
        metrics = {"loss": 1.0, "perplexity": 3.0, "bleu": 0.6 + seed / 100, "nist": 8.5}
        store.run("done", metrics=metrics, group="a", seed=seed)
    assert [cell["metric"] for cell in cells(store, capsys)] == ["bleu"], "not perplexity"
    text = store.say(capsys, "report", "--metric", "nist,bleu")[1]
    assert "8.50 ± 0.00 (8.50; 2) 61.50 ± 0.71" in line_of(text, "tiny")
    status, text = store.say(capsys, "report", "--metric", "bleau")
    assert status == 2
    assert "--metric bleau: no run has it. Did you mean bleu?" in text


def test_mistakes(store: Store, capsys: Capture, tmp_path: Path) -> None:
    assert "There are no runs in" in store.say(capsys, "report")[1]
    fill(store, LOW, "a")
    for arguments, message in (
        (["--rows", "methd"], "--rows methd: methd: there is no such key. Did you mean method?"),
        (["--rows", "task"], "--columns task: task is among the rows already."),
        (["task=mrpc"], "task=mrpc: there is no such run."),
        (["--csv", str(tmp_path / "no" / "a.csv")], "there is no folder"),
        (["--study", "roberta_glue"], "Did you mean roberta_"),
    ):
        status, text = store.say(capsys, "report", *arguments)
        assert status == 2, arguments
        assert message in text


def test_csv_and_several_files(store: Store, capsys: Capture, tmp_path: Path) -> None:
    fill(store, LOW, "a", lora__r=1)
    fill(store, HIGH, "b", lora__r=2)
    names = [f"--{kind}={tmp_path / kind}" for kind in ("csv", "markdown", "latex", "json")]
    status, text = store.say(capsys, "report", *names)
    assert status == 0
    assert f"{tmp_path / 'latex'}: written." in text
    rows = list(csv.DictReader(io.StringIO((tmp_path / "csv").read_text())))
    assert [row["lora.r"] for row in rows] == ["1", "2"]
    assert float(rows[1]["mean"]) == pytest.approx(0.91)
    assert rows[0]["seeds"] == "1;2;3;4"
    assert (tmp_path / "markdown").read_text().count("\n| ") == 4


NASTY = r"50%_of{a}&b #1 $x$ ~^\ <i> [z] |p| *q* ü"


def test_special_characters(store: Store, capsys: Capture) -> None:
    fill(store, LOW, "a", task__name=NASTY)
    text = store.say(capsys, "report", "--latex", "-")[1]
    body = text.split(r"\midrule")[0]
    assert r"50\%\_of\{a\}\&b \#1 \$x\$ \textasciitilde{}\textasciicircum{}" in body
    assert r"\textbackslash{} \textless{}i\textgreater{} {[}z] \textbar{}p\textbar{}" in body
    text = store.say(capsys, "report", "--markdown", "-")[1]
    assert r"\<i\> \[z\] \|p\| \*q\*" in text
    header = next(line for line in text.splitlines() if "50%" in line)
    assert len(re.findall(r"(?<!\\)\|", header)) == 7, "six columns"


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs LaTeX")
def test_latex_compiles(store: Store, capsys: Capture, tmp_path: Path) -> None:
    fill(store, LOW, "a", task__name=NASTY)
    fill(store, HIGH, "b", task__name="[b]")
    text = store.say(capsys, "report", "--latex", "-")[1]
    document = tmp_path / "t.tex"
    preamble = text.splitlines()[0].removeprefix("% ")
    document.write_text(
        rf"\documentclass{{article}}{preamble}\begin{{document}}{text}\end{{document}}"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", document.name]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout


def test_a_very_long_table_is_plain(store: Store, capsys: Capture, monkeypatch) -> None:
    from lora_exp.report import table

    fill(store, LOW, "a", lora__r=1)
    fill(store, HIGH, "b", lora__r=2)
    monkeypatch.setattr(table, "DRAWN", 1)
    text = store.say(capsys, "report")[1]
    assert "*91.00 ± 0.82 (91.00; 4)*" in text


def test_metrics_that_share_a_column_are_named(store: Store, capsys: Capture) -> None:
    fill(store, (0.6, 0.7), "a", metric="bleu", method="lora")
    fill(store, (9.0, 9.5), "b", metric="perplexity", method="full")
    text = store.say(capsys, "report")[1]
    assert "bleu 65.00 ± 7.07" in line_of(text, " lora ")
    assert "perplexity 9.25 ± 0.35" in line_of(text, " full ")
    fill(store, (0.8, 0.8), "c", task__name="mrpc", lora__r=1)
    text = store.say(capsys, "report", "--markdown", "-")[1]
    assert "mrpc accuracy" in text, "where there is one metric the heading names it"
    assert "| accuracy 80.00" not in text
