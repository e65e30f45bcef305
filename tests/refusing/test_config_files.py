"""Config files of a user's own that cannot be read, or say what cannot be."""

from __future__ import annotations

from pathlib import Path

import commands
import pytest

GLOBAL = "# @package _global_\n"
CONTENTS: dict[str, tuple[str | bytes, str]] = {
    "no YAML": ("train:\n  lr: [\n", "theirs.yaml"),
    "a tab": ("train:\n\tlr: 1\n", "theirs.yaml"),
    "an open quote": ('task: {name: "a}\n', "theirs.yaml"),
    "two documents": ("seed: 1\n---\nseed: 2\n", "theirs.yaml"),
    "a key twice": ("seed: 1\nseed: 2\n", "theirs.yaml"),
    "aliases of aliases": (
        "a0: &a0 [1]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 16)),
        "experiment/theirs.yaml: its aliases make more than 10,000 values",
    ),
    "merges of merges": (
        "a0: &a0 {x: 1}\n"
        + "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 16)),
        "experiment/theirs.yaml: its aliases make more than 10,000 values",
    ),
    "an alias within what it means": (
        "task: &task {name: *task}\n",
        "experiment/theirs.yaml: its aliases make more than 10,000 values",
    ),
    "nested deeply": ("seed: " + "[" * 100_000, "theirs.yaml: its values are nested deeper than"),
    "an alias of nothing": ("seed: *x\n", "theirs.yaml"),
    "UTF-16": ("seed: 1\n".encode("utf-16") + b"\xd8", "theirs"),
    "Latin-1": (b"task: {name: k\xf6nig}\n", "theirs"),
    "a NUL byte": (b"seed: 1\0\n", "theirs"),
    "an escape": (b"task: {name: \x1b[31m}\n", "theirs"),
    "a text": ("seed\n", "theirs"),
    "a number": ("3\n", "theirs"),
    "a list": ("- seed: 1\n", "theirs"),
    "an unknown key": ("lora: {rr: 4}\n", "In conf/experiment/theirs.yaml: lora.rr: there is no"),
    "an unknown section": ("loar: {r: 4}\n", "loar: there is no such key. Did you mean lora"),
    "another type": ("train: {lr: fast}\n", "train.lr: Value 'fast'"),
    "a section that is a value": ("train: 3\n", "In conf/experiment/theirs.yaml: "),
    "a value that is a section": ("seed: {a: 1}\n", "seed"),
    "null": ("train: {lr: null}\n", "train.lr"),
    "a value out of range": ("lora: {r: 0}\n", "lora.r=0: must be greater than 0."),
    "no number": ("train: {lr: .nan}\n", "train.lr=nan: must be a finite number."),
    "infinity": ("train: {weight_decay: .inf}\n", "train.weight_decay=inf: must be a finite"),
    "a cycle": ("seed: ${train.epochs}\ntrain: {epochs: '${seed}'}\n", "Recursive interpolation"),
    "a reference to itself": ("seed: ${seed}\n", "Recursive interpolation"),
    "a reference to nothing": ("seed: ${nothing}\n", "Interpolation key 'nothing' not found"),
    "a broken reference": ("task: {name: '${'}\n", "task.name: no viable alternative"),
    "defaults that are missing": ("defaults: [nothing]\n", "nothing"),
    "a choice that is missing": ("defaults: [{override /task: nothing}]\n", "nothing"),
    "defaults that are a text": ("defaults: task\n", "theirs"),
    "defaults in a cycle": ("defaults: [theirs]\n", "choose each other in a circle"),
}


@pytest.mark.parametrize("how", CONTENTS)
def test_an_experiment(tmp_path: Path, tiny: Path, how: str) -> None:
    content, expected = CONTENTS[how]
    folder = tmp_path / "conf" / "experiment"
    folder.mkdir(parents=True)
    data = content if isinstance(content, bytes) else content.encode()
    mark = GLOBAL.encode("utf-16") if how == "UTF-16" else GLOBAL.encode()
    (folder / "theirs.yaml").write_bytes(mark + data)
    words = ["--config-dir", str(folder.parent), "experiment=theirs"]
    told = commands.refused(tmp_path / "outputs", *words, f"model.name_or_path={tiny}")
    assert expected in told


def test_aliases_and_merges_that_spare_some_lines(tmp_path: Path) -> None:
    folder = tmp_path / "conf" / "experiment"
    folder.mkdir(parents=True)
    content = "task: {name: mine}\nmodel: {name_or_path: &name mine}\n"
    content += "train: {<<: {lr: 0.5, epochs: 7}, epochs: 2}\ntracker: {project: *name}\n"
    (folder / "theirs.yaml").write_text(GLOBAL + content)
    ended = commands.run("--config-dir", str(folder.parent), "experiment=theirs", "--cfg", "job")
    assert ended.status == 0, ended.errors
    for line in ("  lr: 0.5\n", "  epochs: 2\n", "  project: mine\n"):
        assert line in ended.output


def test_a_folder_instead_of_a_file(tmp_path: Path, tiny: Path) -> None:
    (tmp_path / "conf" / "experiment" / "theirs.yaml").mkdir(parents=True)
    words = ["--config-dir", str(tmp_path / "conf"), "experiment=theirs"]
    told = commands.refused(tmp_path / "outputs", *words, f"model.name_or_path={tiny}")
    assert "theirs" in told


def test_a_config_dir_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "conf").write_text("seed: 1\n")
    told = commands.refused(tmp_path / "outputs", "--config-dir", str(tmp_path / "conf"))
    assert str(tmp_path / "conf") in told
