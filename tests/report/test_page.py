"""`report --html`: what is in the page, and that nothing of a run can be more than text in it."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pages
import pytest
from stores import Store

from lora_exp.errors import UserError
from lora_exp.report.page import content as contents
from lora_exp.report.page.document import SCRIPTS
from lora_exp.report.page.server import Server, follow, serving
from lora_exp.runs.folder import RunFolder

Capture = pytest.CaptureFixture[str]
HOSTILE = "</script><script>alert(1)</script><!-- \u2028 '\" &amp; {{content}}"


def page(store: Store, capsys: Capture, *arguments: str) -> str:
    status, text = store.say(capsys, "report", *arguments, "--html", str(file_of(store)))
    assert status == 0, text
    return file_of(store).read_text()


def file_of(store: Store) -> Path:
    return store.outputs.parent / "report.html"


def data(html: str) -> dict[str, Any]:
    found = re.findall(r'<script type="application/json" id="content">(.*?)</script>', html, re.S)
    assert len(found) == 1
    return json.loads(found[0])


class Elements(HTMLParser):
    """The tags of a page with their attributes, and the text of scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.inside = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside = tag

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside in ("script", "style"):
            self.texts.append((self.inside, data))


# -- the file --------------------------------------------------------------------------------------


def test_a_page_asks_nobody_and_runs_only_its_own_scripts(store: Store, capsys: Capture) -> None:
    pages.group(store, "a", (0.80, 0.84))
    found = Elements(page(store, capsys))
    policy = next(
        attributes["content"] or ""
        for tag, attributes in found.tags
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    )
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == rules["connect-src"] == "'none'"
    scripts = [
        text for tag, text in found.texts if tag == "script" and not text.startswith('{"title"')
    ]
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()) for text in scripts]
    assert rules["script-src"] == " ".join(f"'sha256-{digest.decode()}'" for digest in digests)
    assert len(scripts) == len(SCRIPTS) + 1
    for tag, attributes in found.tags:
        assert not {"src", "srcset", "onclick", "onload", "style"} & {*attributes}, tag
        assert str(attributes.get("href", "#")).startswith("#")
    assert "sourceMappingURL" not in "".join(scripts)
    assert "Permission is hereby granted" in scripts[0], "the licence goes with the library"


def test_what_a_run_holds_is_text(store: Store, capsys: Capture) -> None:
    run = store.run("failed", {"reason": HOSTILE}, task__name=HOSTILE, group=HOSTILE)
    run.log.write_text(HOSTILE)
    pages.write_texts(run, HOSTILE)
    harmless = pages.group(store, "a", (0.8,))
    html = page(store, capsys)
    assert html.count("</script>") == len(SCRIPTS) + 2
    assert "alert(1)</script>" not in html
    shown = data(html)
    (found,) = [one for one in shown["runs"] if one["name"] == run.name]
    assert found["why"] == found["details"]["log"] == HOSTILE
    assert found["details"]["texts"] == [[0, HOSTILE]]
    assert shown["sources"] == [{"source": HOSTILE, "references": [HOSTILE]}]
    assert HOSTILE in [row["task"] for row in shown["rows"]]
    assert harmless[0].name in [one["name"] for one in shown["runs"]]


def test_a_hostile_title_is_text_as_well(store: Store, capsys: Capture) -> None:
    pages.group(store, "a", (0.8,), task__name="<b>")
    html = page(store, capsys, "task!=<i>")
    assert "<title>Runs with task!=&lt;i&gt; in " in html


def test_500_runs_are_less_than_5_megabytes(
    store: Store, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # thousands of files
    for number in range(125):
        pages.group(store, f"g{number}", (0.7, 0.8, 0.75, 0.9), curve=200, train__lr=number + 1.0)
    runs = [RunFolder(path) for path in (store.outputs / "runs").iterdir()]
    for run in runs:
        run.log.write_text("".join(f"step {n} loss {1 / (n + 1):.4f}\n" for n in range(200)))
        pages.write_texts(run, "The name of it is what it is. " * 10, number=20)
    html = page(store, capsys)
    shown = data(html)
    assert len(shown["runs"]) == 500
    assert all(run["details"] for run in shown["runs"])
    assert shown["left_out"] is None
    assert len(html.encode()) < 5_000_000
    for run in runs:  # each about something else, in letters that take six bytes
        pages.write_texts(run, f"{run.name} " + "\u4e00" * 1000, number=20)
    html = page(store, capsys)
    assert len(html.encode()) < 5_000_000
    told = re.search(r"here for (\d+) of 500 runs", data(html)["left_out"])
    assert told
    assert 0 < int(told[1]) == sum(run["details"] is not None for run in data(html)["runs"])


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, lora_exp.report.page.document, lora_exp.report.page.server; "
        "print(*({'torch', 'transformers', 'numpy', 'pandas'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_watch_wants_a_file(store: Store, capsys: Capture) -> None:
    for arguments in (["--watch"], ["--watch", "--html", "-"]):
        status, text = store.say(capsys, "report", *arguments)
        assert status == 2
        assert "--watch serves the page of --html FILE" in text


# -- what it says ----------------------------------------------------------------------------------


def test_the_table_is_that_of_report(store: Store, capsys: Capture) -> None:
    pages.group(store, "a", (0.80, 0.81, 0.80, 0.82), lora__r=1)
    pages.group(store, "b", (0.90, 0.92, 0.91, 0.91), lora__r=2)
    pages.group(store, "c", (0.5,), lora__r=2, method="full", task__name="mnli")
    store.run("failed", group="c", seed=7, lora__r=2, method="full", task__name="mnli")
    shown = data(page(store, capsys))
    cells = json.loads(store.say(capsys, "report", "--json", "-")[1])["tables"][0]["cells"]
    names = [shown["groups"][row["group"]]["name"] for row in shown["rows"]]
    assert names == ["c", "a", "b"], "task by task in the order of the published tables"
    for row, name in zip(shown["rows"], names, strict=True):
        (cell,) = [one for one in cells if one["group"] == name]
        labels = dict(zip(shown["keys"], row["labels"], strict=True))
        assert labels == {key: cell[key] for key in shown["keys"]}
        assert row["summary"]["mean"] == pytest.approx(cell["mean"], rel=1e-5)
        assert row["best"] == cell["significantly_best"]
        assert shown["groups"][row["group"]]["unfinished"] == cell["unfinished"]
    assert [row["best"] for row in shown["rows"]] == [False, False, True]
    assert shown["states"] == {"done": 9, "failed": 1}


def test_curves_are_means_over_seeds(store: Store, capsys: Capture) -> None:
    pages.group(store, "a", (0.6, 0.8), curve=4)
    shown = data(page(store, capsys))
    by_name = {curve["name"]: curve for curve in shown["groups"][0]["curves"]}
    assert [*by_name] == ["accuracy", "loss", "training loss"]
    curve = by_name["accuracy"]
    assert curve["epochs"] == [1.0, 2.0, 3.0, 4.0]
    assert curve["mean"] == pytest.approx([0.175, 0.35, 0.525, 0.7])
    assert curve["deviation"] == pytest.approx(
        [0.25 * 0.2 / 2**0.5 * n for n in (1, 2, 3, 4)], 1e-4
    )


def test_long_curves_keep_their_ends(store: Store, capsys: Capture) -> None:
    pages.group(store, "a", (0.8,), curve=1000)
    for curve in data(page(store, capsys))["groups"][0]["curves"]:
        assert len(curve["epochs"]) <= contents.POINTS
        assert curve["epochs"][-1] == 1000
    (training,) = [c for c in data(page(store, capsys))["groups"][0]["curves"] if "tr" in c["name"]]
    # each point the mean of its stretch: 1 / epoch over the first 17 epochs
    assert training["mean"][0] == pytest.approx(sum(1 / n for n in range(1, 18)) / 17, rel=1e-4)


def test_details_tell_what_is_written(store: Store, capsys: Capture) -> None:
    first, _ = pages.group(store, "a", (0.8, 0.9), train__lr=2e-3)
    third = pages.group(store, "b", (0.7,))[0]
    first.log.write_text("".join(f"line {n}\n" for n in range(1000)))
    pages.write_texts(third, "short", number=10)
    shown = data(page(store, capsys))
    details = {run["name"]: run["details"] for run in shown["runs"]}
    own = details[first.name]
    assert own["log"].endswith("line 999\n")
    assert own["log"].startswith("line ")
    assert own["cut"]
    assert not details[third.name]["cut"]
    assert len(details[third.name]["texts"]) == contents.TEXTS
    assert details[third.name]["further"] == 10 - contents.TEXTS
    configs = {name: shown["config"] | one["config"] for name, one in details.items()}
    assert configs[first.name]["train.lr"] == "0.002"
    assert configs[third.name]["train.lr"] == "0.001"
    assert {configs[name]["seed"] for name in configs} == {"1", "2"}
    origin = shown["origin"] | own["origin"]
    assert origin["folder"] == str(first.path)


def test_what_is_left_out_is_said(
    store: Store, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contents, "DETAILED", 3)
    pages.group(store, "a", (0.8, 0.9, 0.8))
    pages.group(store, "b", (0.7, 0.7), train__lr=2e-3)
    failed = store.run("failed", {"reason": "nan"}, group="b", seed=9, train__lr=2e-3)
    shown = data(page(store, capsys))
    assert len(shown["groups"]) == 2
    assert len(shown["runs"]) == 6
    kept = [run for run in shown["runs"] if run["details"]]
    assert {(run["name"] == failed.name, run["seed"]) for run in kept} == {(True, 9), (False, 1)}
    assert "here for 3 of 6 runs" in shown["left_out"]


def test_numbers_that_are_none_are_left_out(store: Store, capsys: Capture) -> None:
    run = pages.group(store, "a", (0.8,))[0]
    result = json.loads((run.path / "result.json").read_text())
    result["metrics"]["loss"] = float("inf")
    (run.path / "result.json").write_text(json.dumps(result))
    (shown,) = data(page(store, capsys))["runs"]
    assert shown["metrics"] == {"loss": None, "accuracy": 0.8}


def test_runs_without_a_config_are_there_as_well(store: Store, capsys: Capture) -> None:
    run = pages.group(store, "a", (0.8,))[0]
    (run.path / "run.json").unlink()
    (run.path / "config.yaml").unlink()
    (run.path / "log.txt").unlink()
    (shown,) = data(page(store, capsys))["runs"]
    assert shown["name"] == run.name
    assert shown["details"]["log"] == ""


def test_what_is_damaged_of_a_run_hides_no_other(store: Store, capsys: Capture) -> None:
    run = pages.group(store, "a", (0.8,))[0]
    pages.write_texts(run, "short", number=2)
    with run.metrics_file.open("a") as metrics, run.texts_file.open("a") as texts:
        for split in ("train", "validation"):
            line = {"step": 9, "epoch": 9.0, "split": split, "loss": None, "accuracy": "best"}
            metrics.write(json.dumps(line) + "\n")
        texts.write("{")
    pages.group(store, "b", (0.7,), train__lr=2e-3)
    shown = data(page(store, capsys))
    assert [len(one["curves"]) for one in shown["groups"]] == [3, 3]
    assert all(9.0 not in curve["epochs"] for curve in shown["groups"][0]["curves"])
    (line,) = [line for line in shown["standing"] if line.startswith(f"{run.name} has no texts")]
    assert f"{run.texts_file}: it is damaged" in line


def test_published_tables_are_in_the_page(store: Store, capsys: Capture) -> None:
    made = pages.group(
        store, "a", (0.8, 0.9), task__name="rte", model__name_or_path="FacebookAI/roberta-base"
    )
    store.grid("glue", made, study="roberta_base_glue")
    tables = data(page(store, capsys))["tables"]
    assert tables
    told = json.loads(store.say(capsys, "report", "--json", "-")[1])["tables"][1:]
    assert [one["title"] for one in tables] == [one["title"] for one in told]


# -- the server ------------------------------------------------------------------------------------


def ask(server: Server, path: str, **headers: str) -> tuple[int, bytes, str | None]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, body, answer.headers["ETag"]


@pytest.fixture
def content(store: Store) -> contents.Content:
    from lora_exp.report.groups import grouped
    from lora_exp.report.pivot import Pivot
    from lora_exp.runs.records import Records

    pages.group(store, "a", (0.8, 0.9))
    return contents.content("Runs", Pivot(grouped(Records(store.outputs).runs)), [])


def test_what_is_new_is_served_once(content: contents.Content) -> None:
    with serving(content) as server:
        status, body, _ = ask(server, "/")
        assert status == 200
        assert b"connect-src 'self'" in body
        status, body, tag = ask(server, "/content.json")
        assert status == 200
        assert json.loads(body)["title"] == "Runs"
        assert tag is not None
        server.show(replace(content, written="later"))
        assert ask(server, "/content.json", **{"If-None-Match": tag})[:2] == (304, b"")
        server.show(replace(content, title="Others"))
        status, body, other = ask(server, "/content.json", **{"If-None-Match": tag})
        assert status == 200
        assert json.loads(body)["title"] == "Others"
        assert other != tag


def test_only_this_machine_is_answered(content: contents.Content) -> None:
    with serving(content) as server:
        assert server.server_address[0] == "127.0.0.1"
        assert ask(server, "/content.json", Host="elsewhere.example")[0] == 403
        assert ask(server, "/../secret")[0] == 404
        with serving(content) as other:  # the port is taken: another one
            assert other.server_port != server.server_port
            assert ask(other, "/")[0] == 200


def test_the_page_stays_where_no_run_is_meant_any_more(
    content: contents.Content, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lora_exp.report.page.server.REFRESH_SECONDS", 0.0)
    looks = iter(
        [UserError("None of 2 runs is meant."), UserError("None of 2 runs is meant."), None]
    )

    def look() -> contents.Content:
        problem = next(looks)
        raise KeyboardInterrupt if problem is None else problem

    with serving(content) as server:
        with pytest.raises(KeyboardInterrupt):
            follow(look, server)
        assert server.shown[0] is content
    assert caplog.messages == ["The page stays as it is. None of 2 runs is meant."]
