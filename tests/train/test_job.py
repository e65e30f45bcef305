"""From a command to a run folder: done, done again, failed, busy, bit-equal."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from safetensors.torch import load_file

from lora_exp import lora
from lora_exp.errors import UserError
from lora_exp.runs import predictions
from lora_exp.runs.folder import RunFolder
from lora_exp.runs.signature import signature
from lora_exp.train import checkpoint


def short(tiny: Path, outputs: Path, *more: str) -> list[str]:
    return [f"model.name_or_path={tiny}", f"outputs={outputs}", "train.max_steps=6", *more]


def result(outputs: Path) -> dict[str, Any]:
    return json.loads((forked.folder_of(outputs) / "result.json").read_text())


def test_the_folder_of_a_finished_run(tiny: Path, tmp_path: Path) -> None:
    ended = forked.run(*short(tiny, tmp_path, "train.log_every=2", "train.eval_every=3"))
    assert ended.status == 0, ended.output
    assert "lora              2,048" in ended.output
    folder = RunFolder(forked.folder_of(tmp_path))
    dirty = (folder.provenance["git"] or {}).get("dirty", False)
    assert (folder.path / "code.patch").exists() == dirty
    assert {path.name for path in folder.path.iterdir()} - {"code.patch"} == {
        "adapter",
        "config.yaml",
        "log.txt",
        "metrics.jsonl",
        "predictions",
        "result.json",
        "run.json",
        "status.json",
    }
    assert folder.config.train.max_steps == 6
    assert folder.status["state"] == "done"
    assert folder.status["step"] == 6
    assert folder.name.endswith(folder.provenance["signature"])
    assert folder.provenance["overrides"][-1] == "train.eval_every=3"
    content = folder.provenance["content"]
    assert signature(folder.config, **content) == folder.signature
    lines = [(line["step"], line["split"]) for line in folder.metrics()]
    assert lines == [
        (2, "train"),
        (3, "train"),
        (3, "validation"),
        (4, "train"),
        (6, "train"),
        (6, "validation"),
    ]
    done = folder.result
    assert done is not None
    assert done["trainable_parameters"] == 2_048 + 66
    assert done["labels"] == ["unacceptable", "acceptable"]
    assert done["backbone"] == lora.read(folder.adapter).backbone
    assert done["best_step"] in (3, 6)
    assert set(done["metrics"]) == {"loss", "accuracy", "matthews_correlation"}
    said = predictions.read(folder.predictions)["validation"]
    assert said.step == done["best_step"]
    right = [one == label for one, label in zip(said.predictions, said.labels, strict=True)]
    assert sum(right) / len(right) == pytest.approx(done["metrics"]["accuracy"])
    assert "trained parameters by part" in folder.log.read_text()


def test_the_same_command_shows_the_result_and_does_not_train_again(
    tiny: Path, tmp_path: Path
) -> None:
    assert forked.run(*short(tiny, tmp_path)).status == 0
    folder = forked.folder_of(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    again = forked.run(*short(tiny, tmp_path, "train.log_every=1", "tracker.tags=[x]"))
    assert again.status == 0
    assert "is done; rerun=true trains it again" in again.output
    assert "matthews_correlation" in again.output
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_rerun_trains_anew_and_keeps_the_former_result(tiny: Path, tmp_path: Path) -> None:
    assert forked.run(*short(tiny, tmp_path)).status == 0
    first = forked.folder_of(tmp_path)
    adapter = (first / "adapter" / "adapter_model.safetensors").read_bytes()
    assert forked.run(*short(tiny, tmp_path, "rerun=true")).status == 0
    (kept,) = (tmp_path / "superseded").iterdir()
    assert (kept / "result.json").exists()
    for folder in (kept, forked.folder_of(tmp_path)):
        assert (folder / "adapter" / "adapter_model.safetensors").read_bytes() == adapter


def test_a_full_disk_stops_a_run_and_it_goes_on_where_there_is_room(
    tiny: Path, tmp_path: Path
) -> None:
    def fill() -> None:
        original = checkpoint.save

        def save(*arguments: Any) -> None:
            if arguments[1] == 4:
                raise OSError(errno.ENOSPC, "No space left on device")
            original(*arguments)

        checkpoint.save = save

    run = short(tiny, tmp_path, "train.eval_every=2", "train.checkpoint_seconds=0")
    ended = forked.run(*run, before=fill)
    assert ended.status == 1
    assert "the disk is full ([Errno 28] No space left on device)" in ended.output
    assert "Traceback" not in ended.output
    folder = RunFolder(forked.folder_of(tmp_path))
    assert folder.status["state"] == "preempted"
    again = forked.run(*run)
    assert again.status == 0, again.output
    assert "going on from step 2" in again.output


def test_a_diverging_run_fails_with_its_reason_and_keeps_what_it_has(
    tiny: Path, tmp_path: Path
) -> None:
    ended = forked.run(
        *short(tiny, tmp_path, "train.eval_every=2", "train.log_every=1"), before=nan_from(4)
    )
    assert ended.status == 1
    assert "the loss is nan at step 4 of 6. Lower train.lr" in ended.output
    folder = RunFolder(forked.folder_of(tmp_path))
    assert folder.status["state"] == "failed"
    assert "the loss is nan at step 4" in folder.status["reason"]
    assert folder.result is None
    assert (folder.adapter / "adapter_model.safetensors").exists()
    assert [line["step"] for line in folder.metrics()] == [1, 2, 2, 3]


def nan_from(step: int) -> Any:
    def patch() -> None:
        from lora_exp.train.run import Run

        original = Run.loss

        def loss(self: Run, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            value = original(self, logits, labels)
            return value * math.nan if self.progress.step >= step - 1 else value

        Run.loss = loss  # type: ignore[method-assign]

    return patch


def test_an_unexpected_error_is_a_failed_run_with_its_reason(tiny: Path, tmp_path: Path) -> None:
    def broken_disk() -> None:
        def save(*arguments: object) -> None:
            raise OSError(errno.EIO, "Input/output error")

        checkpoint.save = save

    ended = forked.run(*short(tiny, tmp_path, "train.checkpoint_seconds=0"), before=broken_disk)
    assert ended.status == 1
    assert "Input/output error" in ended.output
    folder = RunFolder(forked.folder_of(tmp_path))
    assert folder.status["state"] == "failed"
    assert "Input/output error" in folder.status["reason"]
    assert "Traceback" in folder.log.read_text()
    again = forked.run(*short(tiny, tmp_path))
    assert again.status == 0
    assert "The last attempt failed: OSError" in again.output
    assert folder.status["attempt"] == 2


def test_a_run_that_is_being_trained_is_left_alone(tiny: Path, tmp_path: Path) -> None:
    interrupted = forked.run(
        *short(tiny, tmp_path),
        before=lambda: forked.kill_on_call(*optimiser_update(), 3),
    )
    assert interrupted.status == -9
    with RunFolder(forked.folder_of(tmp_path)).lock():
        ended = forked.run(*short(tiny, tmp_path))
    assert ended.status == 2
    assert "this run is being trained by process" in ended.output
    assert forked.run(*short(tiny, tmp_path)).status == 0


def optimiser_update() -> tuple[type, str]:
    from lora_exp.train.optimiser import Optimiser

    return Optimiser, "update"


@pytest.mark.parametrize("outputs", ["/proc/nowhere", "{file}/below"])
def test_outputs_that_cannot_be_written_are_told(outputs: str, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ended = forked.run(*short(tiny, Path(outputs.format(file=tmp_path / "file"))))
    assert ended.status == 2
    assert "can" in ended.output
    assert "be written to" in ended.output
    assert "Traceback" not in ended.output


def test_a_lock_refuses_a_second_holder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with folder.lock(), pytest.raises(UserError, match="being trained"), folder.lock():
        pass
    with folder.lock():
        pass


def test_the_same_seed_gives_the_same_bits_and_another_does_not(tiny: Path, tmp_path: Path) -> None:
    def adapter(name: str, *more: str) -> bytes:
        outputs = tmp_path / name
        assert forked.run(*short(tiny, outputs, "lora.dropout=0.1", *more)).status == 0
        return (forked.folder_of(outputs) / "adapter" / "adapter_model.safetensors").read_bytes()

    first = adapter("first")
    assert adapter("second") == first
    assert adapter("third", "seed=2") != first


def test_micro_batches_change_nothing_but_rounding(tiny: Path, tmp_path: Path) -> None:
    tensors = []
    for size in (32, 5):
        outputs = tmp_path / str(size)
        more = ["model.dropout=0", f"train.micro_batch_size={size}"]
        assert forked.run(*short(tiny, outputs, *more)).status == 0
        tensors.append(
            load_file(forked.folder_of(outputs) / "adapter" / "adapter_model.safetensors")
        )
    for name, tensor in tensors[0].items():
        torch.testing.assert_close(tensors[1][name], tensor, atol=1e-5, rtol=1e-3, msg=name)


def test_it_learns(tiny: Path, tmp_path: Path) -> None:
    """Regression on the number of words, from a table: something a tiny model learns at once."""
    rows = [f"{'the doctor ' * n}\t{n}\n" for n in range(1, 9) for _ in range(16)]
    (tmp_path / "train.tsv").write_text("text\tlabel\n" + "".join(rows))
    (tmp_path / "dev.tsv").write_text("text\tlabel\n" + "".join(rows))
    ended = forked.run(
        "task=classification",
        f"task.data_dir={tmp_path}",
        "task.text=[text]",
        "task.regression=true",
        f"model.name_or_path={tiny}",
        "model.dropout=0",
        "train.lr=3e-2",
        "train.max_steps=120",
        "lora/placement=all_linear",
        f"outputs={tmp_path / 'outputs'}",
    )
    assert ended.status == 0, ended.output
    assert result(tmp_path / "outputs")["metrics"]["pearson"] > 0.9


def test_a_run_that_another_process_finished_meanwhile_is_not_trained_again(
    tiny: Path, tmp_path: Path
) -> None:
    def other_process_is_faster() -> None:
        from lora_exp.train.workplace import Workplace

        original = Workplace.prepare

        def prepare(*arguments: Any) -> Any:
            Workplace.prepare = original  # type: ignore[method-assign]
            assert forked.run(*short(tiny, tmp_path)).status == 0
            return original(*arguments)

        Workplace.prepare = prepare  # type: ignore[method-assign]

    slower = forked.run(*short(tiny, tmp_path), before=other_process_is_faster)
    assert slower.status == 0, slower.output
    assert "is done; rerun=true trains it again" in slower.output
    assert not (tmp_path / "superseded").exists()


def test_a_run_that_is_cancelled_while_its_model_is_loaded_is_not_trained(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lora_exp.train.workplace import Workplace

    killed = forked.run(
        *short(tiny, tmp_path), before=lambda: forked.kill_on_call(*optimiser_update(), 3)
    )
    assert killed.status == -9
    run, prepare = RunFolder(forked.folder_of(tmp_path)), Workplace.prepare

    def somebody_cancels(*arguments: Any) -> Any:
        run.set_status("cancelled")
        return prepare(*arguments)

    with monkeypatch.context() as patched:  # as the child finds it
        patched.setattr(Workplace, "prepare", somebody_cancels)
        ended = forked.run(*short(tiny, tmp_path))
    assert (ended.status, "it was cancelled" in ended.output) == (1, True)
    assert run.status["state"] == "cancelled"
    assert forked.run(*short(tiny, tmp_path)).status == 0, "who gives it again wants it to go on"


def test_a_second_process_does_not_touch_what_the_first_is_writing(
    tiny: Path, tmp_path: Path
) -> None:
    killed = forked.run(
        *short(tiny, tmp_path), before=lambda: forked.kill_on_call(*optimiser_update(), 3)
    )
    assert killed.status == -9
    folder = RunFolder(forked.folder_of(tmp_path))
    half = folder.path / "status.json.tmp"
    with folder.lock():
        half.write_text("half")
        assert forked.run(*short(tiny, tmp_path)).status == 2
        assert half.exists()
    assert forked.run(*short(tiny, tmp_path)).status == 0
    assert not half.exists()


def test_a_run_is_known_by_its_signature_whatever_its_folder_or_model_is_called(
    tiny: Path, tmp_path: Path
) -> None:
    outputs = tmp_path / "outputs"
    assert forked.run(*short(tiny, outputs)).status == 0
    copied = shutil.copytree(tiny, tmp_path / "another-name")
    again = forked.run(*short(copied, outputs))
    assert "is done; rerun=true trains it again" in again.output
    renamed = forked.folder_of(outputs)
    renamed.rename(renamed.with_name(f"mine-{renamed.name.rsplit('-', 1)[-1]}"))
    assert "runs/mine-" in forked.run(*short(tiny, outputs)).output
    assert len(list((outputs / "runs").iterdir())) == 1


def test_points_of_a_sweep_do_not_stop_each_other(tiny: Path, tmp_path: Path) -> None:
    ended = forked.run(
        "-m",
        "hydra/launcher=basic",
        f"model.name_or_path={tmp_path / 'nowhere'},{tiny}",
        "seed=1,2",
        f"outputs={tmp_path}",
        "train.max_steps=2",
    )
    assert ended.status == 2
    assert ended.output.count("there is no such folder") >= 2
    assert len(list((tmp_path / "runs").glob("*/result.json"))) == 2

    ended = forked.run(
        "-m",
        "hydra/launcher=basic",
        "train.lr=1e-3,1e30",
        f"model.name_or_path={tiny}",
        f"outputs={tmp_path / 'other'}",
        "train.max_steps=8",
    )
    assert ended.status == 1
    states = [RunFolder(path).status["state"] for path in (tmp_path / "other/runs").iterdir()]
    assert sorted(states) == ["done", "failed"]
    (failed,) = (p for p in (tmp_path / "other/runs").iterdir() if not (p / "result.json").exists())
    assert "failed: " in (failed / "log.txt").read_text()


def test_the_second_ctrl_c_stops_at_once(tiny: Path, tmp_path: Path) -> None:
    def send_twice() -> None:
        from lora_exp.train.run import Run

        original = Run.loss

        def loss(self: Run, *arguments: torch.Tensor) -> torch.Tensor:
            if self.progress.step == 3:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)
            return original(self, *arguments)

        Run.loss = loss  # type: ignore[method-assign]

    ended = forked.run(*short(tiny, tmp_path), before=send_twice)
    assert ended.status == 128 + signal.SIGINT
    folder = RunFolder(forked.folder_of(tmp_path))
    assert folder.status["state"] == "preempted"
    assert not folder.checkpoint.exists()
    assert forked.run(*short(tiny, tmp_path)).status == 0


def test_gpt2_sees_where_the_second_text_begins(tmp_path: Path) -> None:
    from tiny import save

    from lora_exp.models import load
    from lora_exp.runs.config import ModelConfig
    from lora_exp.tasks import Examples
    from lora_exp.train.encoding import encode

    tokenizer: Any = load(ModelConfig(str(save(tmp_path, "gpt2"))), 2).tokenizer
    tokenizer.backend_tokenizer.post_processor = None  # as GPT-2's: nothing is added
    tokenizer.eos_token = "[SEP]"
    encoded = encode(tokenizer, Examples([("the doctor", "waits")], [0]), 30)
    assert tokenizer.convert_ids_to_tokens(encoded.ids.tolist()) == [
        "the",
        "doctor",
        "[SEP]",
        "waits",
    ]
