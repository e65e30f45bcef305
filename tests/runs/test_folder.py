"""The run folder's files, and what a crash may leave of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from stores import RESULT

from lora_exp.errors import UserError
from lora_exp.runs import files
from lora_exp.runs.config import Config, ModelConfig, TaskConfig, TrainConfig
from lora_exp.runs.folder import RunFolder


def config() -> Config:
    return Config(task=TaskConfig("t"), model=ModelConfig("m"), train=TrainConfig(lr=0.1))


def test_what_is_written_once_is_not_overwritten(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.create(config(), {"command": "first"})
    folder.create(config(), {"command": "second"})
    assert folder.provenance["command"] == "first"


@pytest.mark.parametrize("content", ["", "- task", "task: [", "nonsense: 1"])
def test_a_config_that_is_lost_is_told(content: str, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(UserError, match=r"config\.yaml: there is no such file"):
        _ = folder.config
    folder.create(config(), {})
    (folder.path / "config.yaml").write_text(content)
    with pytest.raises(UserError, match=r"config\.yaml: it is damaged \("):
        _ = folder.config


def test_what_a_loss_of_power_has_left_empty_is_written_anew(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.create(config(), {"command": "first"})
    for name in ("config.yaml", "run.json", "status.json"):
        (folder.path / name).write_text("")
    assert folder.provenance == {}
    assert folder.status["state"] == "queued"
    folder.create(config(), {"command": "second"})
    assert folder.config == config()
    assert folder.provenance["command"] == "second"


def test_states(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.create(config(), {})
    assert folder.status["state"] == "queued"
    folder.set_status("running", step=3)
    assert (folder.status["state"], folder.status["step"]) == ("running", 3)
    files.write_json(folder.path / "result.json", RESULT)
    assert folder.status["state"] == "done", "a result beats any state"


def test_metrics_are_cut_back_to_a_checkpoint(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.append_metrics({"step": 1})
    size = folder.metrics_size()
    folder.append_metrics({"step": 2})
    with folder.metrics_file.open("a") as file:
        file.write('{"step": 3')  # cut short by a crash
    assert [line["step"] for line in folder.metrics()] == [1, 2]
    folder.cut_metrics(size)
    folder.append_metrics({"step": 2})
    assert [line["step"] for line in folder.metrics()] == [1, 2]


def test_a_file_is_replaced_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    files.write(path, "old")

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        files.write(path, "new")
    assert path.read_text() == "old"
    files.remove_temporaries(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_folder_removes_what_a_process_left_that_died_while_it_wrote_it(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        with files.new_folder(tmp_path / "new") as folder:
            (folder / "half").touch()
            os._exit(9)
    os.waitpid(child, 0)
    assert [path.name for path in tmp_path.rglob("*")][1:] == ["half"]
    with files.new_folder(tmp_path / "new") as folder:
        (folder / "whole").touch()
        with files.new_folder(tmp_path / "other"):  # and nothing of those who live
            pass
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")) == [
        "new",
        "new/whole",
        "other",
    ]


def test_numbers_that_json_cannot_hold_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("line", ["[]", "null", '{"source": "a"}', '{"source": 1', "\x00"])
def test_a_damaged_line_of_texts_is_told(line: str, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.texts_file.parent.mkdir(parents=True)
    folder.texts_file.write_text('{"source": "a", "output": "b", "references": []}\n' + line)
    texts = folder.texts()
    assert next(texts)["output"] == "b"
    with pytest.raises(UserError, match=r"test\.jsonl: it is damaged \("):
        next(texts)
