"""A run through the front door with W&B watching: what it sees, and that it decides nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import forked
import hub
from wandb_files import history, stored, summary, values

from lora_exp import track
from lora_exp.runs.folder import RunFolder

FRONT_DOOR = ("-m", "lora_exp")
IMPATIENT = (
    "-c",
    "from lora_exp.track import background; background.FINISH_SECONDS = 2.0\n"
    "from lora_exp.cli import main; main()",
)


def overrides(model: Path, outputs: Path) -> list[str]:
    limits = ["train.max_steps=6", "train.log_every=2", "train.eval_every=3", "device=cpu"]
    return [f"model.name_or_path={model}", f"outputs={outputs}", *limits]


def watched(
    program: tuple[str, str], arguments: list[str], folder: Path, **variables: str
) -> subprocess.CompletedProcess[str]:
    """A process of its own, in a folder of its own, with W&B's variables and no others of its."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    return subprocess.run(
        [sys.executable, *program, "tracker=wandb", *arguments],
        cwd=folder,
        env=env | {"HOME": str(folder), "OMP_NUM_THREADS": "1"} | variables,
        capture_output=True,
        text=True,
        timeout=60,
    )


def without_times(run: RunFolder) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k != "seconds"} for line in run.metrics()]


def test_the_offline_file_holds_the_run_and_nothing_else(tiny: Path, tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    arguments = ["tracker.mode=offline", "tracker.project=p", "tracker.tags=[a,b]"]
    ended = watched(FRONT_DOOR, [*arguments, *overrides(tiny, outputs)], tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "wandb" not in ended.stderr + ended.stdout
    folder = RunFolder(forked.folder_of(outputs))
    signature = folder.provenance["signature"]
    (file,) = (outputs / "wandb").glob("offline-*/*.wandb")
    assert file.name == f"run-{signature}.wandb"
    records = stored(file)

    merged: dict[int, dict[str, Any]] = {}
    lines = list(folder.metrics())
    assert [line["step"] for line in lines] == [2, 3, 3, 4, 6, 6]
    for line in lines:
        step, epoch, split = (line.pop(name) for name in ("step", "epoch", "split"))
        named = {f"{split}/{name}": value for name, value in line.items()}
        merged.setdefault(step, {}).update(named, epoch=epoch)
    assert history(records) == merged

    run = next(r.run for r in records if r.HasField("run"))
    assert (run.run_id, run.display_name) == (signature, folder.name)
    assert (run.run_group, run.job_type) == (folder.provenance["group"], "lora")
    assert (run.project, list(run.tags)) == ("p", ["a", "b"])
    assert values(run.config.update) == json.loads(json.dumps(asdict(folder.config)))

    assert folder.result is not None
    told = summary(records)
    result = track.summary(folder.result)
    assert result["accuracy"] == folder.result["metrics"]["accuracy"]
    assert result["trainable_parameters"] == folder.result["trainable_parameters"]
    assert told.items() >= result.items()
    assert told.keys() == result.keys() | {k for step in merged.values() for k in step}
    assert [r.exit.exit_code for r in records if r.HasField("exit")] == [0]


def test_a_run_that_wandb_cannot_follow_is_the_same_run(tiny: Path, tmp_path: Path) -> None:
    plain = forked.run(*overrides(tiny, tmp_path / "plain"))
    assert plain.status == 0, plain.output
    ended = watched(
        IMPATIENT,
        ["tracker.mode=online", *overrides(tiny, tmp_path / "online")],
        tmp_path,
        WANDB_BASE_URL=hub.nowhere(),
        WANDB_API_KEY="c0ffee" * 7,
    )
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stderr.count("wandb does not follow") == 1
    alone, followed = (RunFolder(forked.folder_of(tmp_path / n)) for n in ("plain", "online"))
    assert followed.name == alone.name
    assert without_times(followed) == without_times(alone)
    assert len(without_times(alone)) == 6
    assert followed.status["state"] == "done"
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (followed.adapter / file).read_bytes() == (alone.adapter / file).read_bytes()
