"""What the user reads after a mistake: status 2, one message, no traceback, nothing started."""

from __future__ import annotations

import shutil
from pathlib import Path

import forked
import pytest

from lora_exp import cli

MISTAKES = {
    # a key
    "lora.rr=4": "lora.rr: there is no such key. Did you mean lora.r",
    "lr=1e-4": "lr: there is no such key. Did you mean train.lr?",
    "+train.foo=1": "train.foo: there is no such key.",
    "tsk=rte": "tsk: there is no such key. Did you mean task",
    # a choice
    "task=mnl": "task=mnl: Did you mean mnli?",
    "lora/placement=qvv": "lora/placement=qvv: Did you mean qv?",
    "experiment=roberta_base/mnlii": "Did you mean roberta_base/mnli",
    "method=loar": "method=loar: Did you mean lora?",
    "train.precision=fp8": "train.precision=fp8: must be one of fp32, bf16.",
    "device=gpu": "device=gpu: must be one of auto, cpu, cuda.",
    "task.metrics=[acuracy]": "task.metrics=acuracy: must be one of accuracy, f1,",
    # a type
    "train.lr=fast": "train.lr: Value 'fast' of type 'str' could not be converted to Float.",
    "seed=1.5": "seed: Value '1.5' of type 'float' could not be converted to Integer.",
    "lora.placement.targets=query": "lora.placement.targets: Invalid value assigned",
    "train=3": "train: Invalid type assigned",
    # a value
    "lora.r=0": "lora.r=0: must be greater than 0.",
    "lora.r=-1": "lora.r=-1: must be greater than 0.",
    "lora.alpha=0": "lora.alpha=0.0: must be greater than 0.",
    "lora.dropout=1": "lora.dropout=1.0: must be at least 0 and below 1.",
    "train.lr=-1e-4": "train.lr=-0.0001: must be greater than 0.",
    "train.lr=nan": "train.lr=nan: must be a finite number.",
    "train.lr=inf": "train.lr=inf: must be a finite number.",
    "train.epochs=0": "train.epochs=0: must be greater than 0.",
    "train.batch_size=0": "train.batch_size=0: must be greater than 0.",
    "train.warmup_ratio=1.5": "train.warmup_ratio=1.5: must lie between 0 and 1",
    "train.weight_decay=-1": "train.weight_decay=-1.0: cannot be negative.",
    "train.max_length=1": "train.max_length=1: must be greater than 2.",
    "seed=-1": "seed=-1: must lie between 0 and",
    "task=classification": "task.text=[]: name one or two columns of text.",
    "task.data_dir=somewhere": "task=agreement generates its data; for your own: task=",
    "model.name_or_path=???": "model.name_or_path",
    # a place
    "model.name_or_path=./nowhere": "model.name_or_path=./nowhere: there is no such folder.",
    "model.name_or_path=package:nowhere_at_all/x": "package nowhere-at-all is not installed",
    "lora.placement.targets=[qury]": "'qury' matches no layer of this model. Did you mean query?",
    # the line itself
    "stauts": "stauts: neither an override (KEY=VALUE) nor a verb. Did you mean status?",
    "lora.r=1,2": "Ambiguous value for argument 'lora.r=1,2'",
    "task.text=[a": "task.text=[a: cannot be read",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_in_one_message(mistake: str, tiny: Path, tmp_path: Path) -> None:
    given = [mistake, f"outputs={tmp_path / 'outputs'}"]
    if "model" not in mistake:
        given.append(f"model.name_or_path={tiny}")
    ended = forked.run(*given)
    assert MISTAKES[mistake] in ended.output
    assert ended.status == 2
    assert ended.output.startswith("lora_exp: ")
    assert "Traceback" not in ended.output
    assert not (tmp_path / "outputs" / "runs").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--resolve", "can only be used in conjunction with --cfg"),
        ("-m status", "status: a verb stands first, before any option"),
        ("--config-name nowhere", "nowhere: there is no such config file in"),
    ],
)
def test_options_that_do_not_fit(line: str, message: str) -> None:
    ended = forked.run(*line.split())
    assert message in ended.output
    assert ended.status == 2
    assert "Traceback" not in ended.output


GRIDS = {
    "lora.r=0,1 seed=1,2": "lora.r=0: must be greater than 0.\n"
    "  at lora.r=0 seed=1; lora.r=0 seed=2",
    "lora.r=a,1,0": "lora.r: Value 'a' of type 'str' could not be converted to Integer.\n"
    "  at lora.r=a\nlora.r=0: must be greater than 0.\n  at lora.r=0",
    "lora.rr=1,2": "lora.rr: there is no such key. Did you mean lora.r",
    "task=mnlx,agreement": "task=mnlx: Did you mean mnli?\n  at task=mnlx",
    "task=classification,agreement": "task.text=[]: name one or two columns of text.",
    "model.name_or_path=./nowhere seed=1,2": "./nowhere: there is no such folder.",
    "device=cpu,cuda seed=1,2": "device=cpu,cuda: one grid has one kind of device.",
    "pack.size=0,1": "pack.size=0: must be greater than 0.\n  at pack.size=0",
    "hydra/launcher=loca seed=1,2": "hydra/launcher=loca: Did you mean local?",
    "hydra/launcher=zzz seed=1,2": "hydra/launcher=zzz: There are choices: basic, local, slurm",
}


@pytest.mark.parametrize("mistake", GRIDS)
def test_mistakes_in_a_grid_are_told_at_once_before_anything_is_queued(
    mistake: str, tiny: Path, tmp_path: Path
) -> None:
    given = [*mistake.split(), f"outputs={tmp_path / 'outputs'}"]
    if "model" not in mistake:
        given.append(f"model.name_or_path={tiny}")
    ended = forked.run("-m", *given)
    assert GRIDS[mistake] in ended.output
    assert ended.status == 2
    assert ended.output.startswith("lora_exp: ")
    assert "Traceback" not in ended.output
    assert not (tmp_path / "outputs" / "runs").exists()


@pytest.mark.parametrize("launcher", ["local", "basic"])
def test_a_folder_of_outputs_that_cannot_be_is_told_for_a_grid(launcher: str) -> None:
    ended = forked.run("-m", "seed=1,2", f"hydra/launcher={launcher}", "outputs=/dev/null/x")
    assert ended.status == 2
    assert "name another" in ended.output or "is not a folder" in ended.output
    assert "Traceback" not in ended.output


def test_an_option_of_verbs_is_no_option_of_runs() -> None:
    ended = forked.run("seed=2", "--outputs", "there")
    assert ended.status == 2
    assert ended.output == ("lora_exp: --outputs is an option of verbs; a run takes outputs=DIR.\n")


def test_advice_is_given_once_for_a_grid(tiny: Path, tmp_path: Path) -> None:
    ended = forked.run(
        "-m",
        "experiment=roberta_base/rte",
        "method=bitfit",
        f"model.name_or_path={tiny}",
        f"outputs={tmp_path}",
        "task.data_dir=nowhere",
        "seed=1,2,3",
    )
    assert ended.status == 2
    assert ended.output.count("is that of the experiment's own method") == 1


def test_a_grid_may_be_asked_for_between_the_overrides(tiny: Path, tmp_path: Path) -> None:
    given = [f"model.name_or_path={tiny}", f"outputs={tmp_path}", "-m", "seed=1,2", "dry_run=true"]
    ended = forked.run(*given)
    assert ended.status == 0, ended.output
    assert "2 runs: 2 new" in ended.output


def test_all_impossible_values_are_told_at_once() -> None:
    ended = forked.run("lora.r=0", "train.lr=-1", "train.precision=fp8")
    assert ended.status == 2
    assert [line.split("=")[0].split()[-1] for line in ended.output.splitlines()] == [
        "lora.r",
        "train.lr",
        "train.precision",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task:\n  nme: x\n", "In conf/task/mine.yaml: task.nme: there is no such key. Did you"),
        ("train:\n  lr: fast\n", "In conf/task/mine.yaml: train.lr: Value 'fast'"),
        ("train:\n  lr: ${train.lrr}\n", "train.lr: Interpolation key 'train.lrr' not found"),
        ("train:\n  lr: [\n", "not valid YAML"),
        ("task:\n  kind: agreement\n  name: x\ntrain:\n  lr: 0\n", "train.lr=0.0: must be greater"),
    ],
)
def test_a_mistake_in_a_file_is_told_with_the_file(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conf = tmp_path / "conf"
    shutil.copytree(cli.CONF, conf)
    (conf / "task" / "mine.yaml").write_text("# @package _global_\n" + text)
    monkeypatch.setattr(cli, "CONF", conf)
    ended = forked.run("task=mine")
    assert message in ended.output
    assert ended.status == 2
    assert "Traceback" not in ended.output


def test_a_traceback_comes_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "_tracebacks", True)
    assert "Traceback" in forked.run("lora.r=0").output


def test_a_learning_rate_of_another_method_is_pointed_out(tiny: Path, tmp_path: Path) -> None:
    arguments = [
        "experiment=roberta_base/rte",
        "method=bitfit",
        f"model.name_or_path={tiny}",
        f"outputs={tmp_path}",
        "task.data_dir=nowhere",
    ]
    warning = "The learning rate 0.0005 is that of the experiment's own method"
    assert warning in forked.run(*arguments).output
    assert warning not in forked.run(*arguments, "train.lr=1e-5").output
    assert warning not in forked.run(*arguments, "method=full").output, "it has its own recipe"


def test_verbs(tiny: Path, tmp_path: Path) -> None:
    assert "There are no runs" in forked.run("status", "--outputs", str(tmp_path)).output
    trained = forked.run(
        f"model.name_or_path={tiny}", f"outputs={tmp_path}", "train.max_steps=2", "seed=3"
    )
    assert trained.status == 0, trained.output
    name = forked.folder_of(tmp_path).name
    status = forked.run("status", "--outputs", str(tmp_path)).output
    assert name in status
    assert "done" in status
    assert "2/2" in status
    signature = name.rsplit("-", 1)[-1]
    for called in (name, signature, signature[:5], name[:20], str(tmp_path / "runs" / name)):
        shown = forked.run("show", called, "--outputs", str(tmp_path)).output
        assert "seed: 3" in shown
        assert "max_steps: 2" in shown
    assert (
        "trained parameters by part"
        in forked.run("logs", signature, "--outputs", str(tmp_path)).output
    )
    wrong = forked.run("show", name[:-3] + "zzz", "--outputs", str(tmp_path))
    assert wrong.status == 2
    assert f"Did you mean {name}?" in wrong.output
