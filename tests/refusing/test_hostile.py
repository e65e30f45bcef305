"""Files and names made by somebody who means ill; SECURITY.md lists the threats."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import pickle
import subprocess
from pathlib import Path
from typing import Any

import commands
import pytest
import torch
from stores import RESULT, Store, config

from lora_exp.errors import UserError
from lora_exp.lora import AdapterError, read
from lora_exp.report import table
from lora_exp.runs import files, provenance, secrets
from lora_exp.runs.folder import RunFolder
from lora_exp.runs.signature import slug

# -- code in files ---------------------------------------------------------------------------------


class Touch:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "was-run"


def trap(file: Path, marker: Path, form: str) -> Path:
    """A pickle that runs code, alone or as torch writes it, beside tensors."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if form == "bare":
        file.write_bytes(pickle.dumps(Touch(marker), protocol=2))
    else:
        torch.save({"lora_A": torch.zeros(2, 2), "more": Touch(marker)}, file)
    return file


FORMS = ["bare", "torch"]


@pytest.mark.parametrize("form", FORMS)
def test_the_trap_is_one(tmp_path: Path, marker: Path, form: str) -> None:
    file = trap(tmp_path / "x.pt", marker, form)
    if form == "bare":
        pickle.loads(file.read_bytes())
    else:
        torch.load(file, weights_only=False)
    assert marker.exists()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["x.pt", "x.bin", "adapter_model.bin", "x.safetensors"])
def test_no_adapter_is_unpickled(
    tmp_path: Path, tiny: Path, marker: Path, name: str, form: str
) -> None:
    file = trap(tmp_path / "adapter" / name, marker, form)
    if name.startswith("adapter_"):
        (file.parent / "adapter_config.json").write_text('{"peft_type": "LORA", "lora_alpha": 1}')
        file = file.parent
    alpha = None if file.is_dir() else 1.0
    with pytest.raises(AdapterError, match="damaged"):
        read(file, alpha=alpha)
    words = ["--model", str(tiny), "--out", str(tmp_path / "out")]
    words += ["--alpha", "1"] if alpha else []
    assert "damaged" in commands.run("import", str(file), *words).message
    given = [f"model.init_from={file}", f"model.name_or_path={tiny}"]
    assert "damaged" in commands.refused(tmp_path / "outputs", *given)
    assert not marker.exists()
    assert not (tmp_path / "out").exists()


def test_no_checkpoint_is_unpickled(tmp_path: Path, marker: Path) -> None:
    from lora_exp.train import checkpoint

    file = trap(tmp_path / "checkpoint" / "x", marker, "torch")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    file.rename(file.parent / f"000001-step-00000001-{digest}.safetensors")
    assert checkpoint.load(file.parent) is None
    assert not marker.exists()


ATTACKS: dict[str, tuple[str, str]] = {
    "a callback": (
        "# @package _global_\nhydra:\n  callbacks:\n    x:\n      _target_: os.mkdir\n"
        "      path: MARKER\n",
        "hydra.callbacks",
    ),
    "a log's handler": (
        "# @package _global_\nhydra:\n  job_logging:\n    root: {handlers: [x]}\n"
        "    handlers: {x: {(): os.mkdir, path: MARKER}}\n",
        "hydra.job_logging",
    ),
    "shell commands of a launcher": (
        "# @package _global_\nhydra: {launcher: {setup: [mkdir MARKER]}}\n",
        "hydra.launcher",
    ),
    "another launcher": (
        "# @package _global_\nhydra: {launcher: {_target_: os.mkdir, path: MARKER}}\n",
        "hydra.launcher",
    ),
    "a sweeper": (
        "# @package _global_\nhydra: {sweeper: {_target_: os.mkdir, path: MARKER}}\n",
        "hydra.sweeper._target_",
    ),
    "the environment": (
        "# @package _global_\nhydra: {job: {env_set: {LD_PRELOAD: MARKER}}}\n",
        "hydra.job",
    ),
    "a package in the header": (
        "# @package hydra.callbacks.x\n_target_: os.mkdir\npath: MARKER\n",
        "hydra.callbacks",
    ),
    "a choice among the defaults": (
        "# @package _global_\ndefaults:\n  - override /hydra/job_logging: default\n",
        "hydra/job_logging",
    ),
    "a file elsewhere among the defaults": (
        "# @package _global_\ndefaults:\n  - /task/evil@hydra.callbacks.x\n",
        "hydra.callbacks",
    ),
    "a tag": (
        "# @package _global_\nseed: !!python/object/apply:os.mkdir [MARKER]\n",
        "could not determine a constructor for the tag",
    ),
    "a target where a value is": (
        "# @package _global_\ntask: {_target_: os.mkdir, path: MARKER}\n",
        "task._target_",
    ),
    "another folder of configs": (
        "# @package _global_\nhydra: {searchpath: [/tmp]}\n",
        "hydra.searchpath",
    ),
    "a resolver": ("# @package _global_\nseed: ${eval:1}\n", "Unsupported interpolation type eval"),
}


@pytest.mark.parametrize("several", [(), ("-m", "seed=1,2")], ids=["run", "grid"])
@pytest.mark.parametrize("how", ATTACKS)
def test_a_config_file_runs_nothing(
    tmp_path: Path, marker: Path, tiny: Path, how: str, several: tuple[str, ...]
) -> None:
    text, expected = ATTACKS[how]
    shared = tmp_path / "shared"
    for group in ("experiment", "task"):
        (shared / group).mkdir(parents=True)
    (shared / "experiment" / "theirs.yaml").write_text(text.replace("MARKER", str(marker)))
    (shared / "task" / "evil.yaml").write_text(f"_target_: os.mkdir\npath: {marker}\n")
    words = ["--config-dir", str(shared), "experiment=theirs", f"model.name_or_path={tiny}"]
    if how == "a resolver" and several:
        several = ("-m", "train.lr=1e-3,1e-4")  # the seed is in question
    assert expected in commands.refused(tmp_path / "outputs", *words, *several)
    assert not marker.exists()


LINES = {
    "+hydra.callbacks.x._target_=os.mkdir +hydra.callbacks.x.path=MARKER": "hydra.callbacks",
    "hydra.launcher._target_=os.mkdir +hydra.launcher.path=MARKER": "no plugin of Hydra's",
    "hydra.sweeper._target_=os.mkdir +hydra.sweeper.path=MARKER": "no plugin of Hydra's",
    "+hydra.launcher.x={_target_:os.mkdir,path:MARKER}": "no plugin of Hydra's",
    "hydra/job_logging=default": "hydra/job_logging",
    "hydra/hydra_logging=default": "hydra/hydra_logging",
    "+hydra.job.env_set.LD_PRELOAD=x": "hydra.job.env_set",
}


@pytest.mark.parametrize("several", ["seed=1", "-m seed=1,2"])
@pytest.mark.parametrize("line", LINES)
def test_a_command_names_no_code(
    tmp_path: Path, marker: Path, tiny: Path, line: str, several: str
) -> None:
    words = [*line.replace("MARKER", str(marker)).split(), f"model.name_or_path={tiny}"]
    assert LINES[line] in commands.refused(tmp_path / "outputs", *words, *several.split())
    assert not marker.exists()


def test_what_a_file_may_say_to_hydra(tmp_path: Path, tiny: Path) -> None:
    shared = tmp_path / "shared" / "study"
    shared.mkdir(parents=True)
    text = "# @package _global_\nhydra: {mode: MULTIRUN, sweeper: {params: {seed: '1,2,3'}}}\n"
    (shared / "theirs.yaml").write_text(text)
    words = ["--config-dir", str(shared.parent), "study=theirs", "dry_run=true"]
    given = [f"model.name_or_path={tiny}", f"outputs={tmp_path / 'outputs'}"]
    ended = commands.run(*words, *given)
    assert ended.status == 0, ended.errors
    assert "3 runs: 3 new" in ended.output + ended.errors


# -- paths -----------------------------------------------------------------------------------------


PLACES = {
    "task.name": ["../x", "/etc", ".."],
    "task.validation": ["[../x]"],
    "task.test": ["../x"],
    "task.subset": ["../../x", "/etc"],
    "grid": ["../x"],
}


@pytest.mark.parametrize("value", [f"{key}={name}" for key in PLACES for name in PLACES[key]])
def test_a_name_leads_nowhere(tmp_path: Path, tiny: Path, value: str) -> None:
    told = commands.refused(tmp_path / "outputs", value, f"model.name_or_path={tiny}")
    assert "a name is made of letters, digits, and - _ ." in told


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "a\nb", "\x1b[31m", "$(x)", "é" * 300])
def test_a_folder_is_named_by_letters(name: str) -> None:
    made = slug(config(task__name=name, model__name_or_path=name))
    assert len(made) <= 120
    assert set(made) <= {*"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-"}
    assert not made.startswith(".")


def test_a_grid_leads_to_no_other_folder(store: Store, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    grid = store.grid("g", [store.run("queued")])
    record = json.loads((grid / "grid.json").read_text())
    (grid / "grid.json").write_text(json.dumps(record | {"runs": ["../../outside"]}))
    assert commands.run("cancel", "name=*", "--outputs", str(store.outputs)).status == 0
    assert not list(outside.iterdir())


def test_clean_removes_a_link_and_not_what_it_leads_to(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = store.run("failed")
    moved = run.path.rename(tmp_path / "elsewhere")
    run.path.symlink_to(moved)
    monkeypatch.setattr("sys.stdin", io.StringIO("yes\n"))
    assert commands.run("clean", "--outputs", str(store.outputs)).status == 0
    assert not run.path.is_symlink()
    assert (moved / "config.yaml").exists()


# -- what is shown ---------------------------------------------------------------------------------

EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m<script>alert(1)</script>\x7f"
ACTING = [chr(n) for n in (*range(9), *range(11, 32), *range(127, 160))]


def test_nothing_acts_on_the_terminal(store: Store) -> None:
    runs = [store.run("done", seed=seed) for seed in (1, 2)]
    failed = store.run("failed", {"reason": EVIL, "host": EVIL}, seed=3)
    for run in runs:
        result = RESULT | {"metrics": {"loss": 1.0, f"f1{EVIL}": 0.5}, "missing": {EVIL: EVIL}}
        files.write_json(run.path / "result.json", result)
        origin = files.read_json(run.path / "run.json") or {}
        origin |= {"command": EVIL, "host": EVIL, "group": EVIL, "packages": {EVIL: EVIL}}
        origin["config"]["task"]["name"] = EVIL
        files.write_json(run.path / "run.json", origin | {"git": {"commit": EVIL}})
        run.log.write_text(EVIL)
        with (run.path / "config.yaml").open("a") as file:
            file.write(f"# {EVIL}\n")
        line = {"step": 1, "epoch": 1.0, "split": EVIL, EVIL: 0.5}
        run.metrics_file.write_text(json.dumps(line) + "\n")
        run.texts_file.parent.mkdir()
        text = {"source": EVIL, "output": EVIL, "references": [EVIL], "group": EVIL}
        run.texts_file.write_text(json.dumps(text) + "\n")
    evil = failed.path.with_name(f"a{EVIL.replace('/', '')}-abc")
    failed.path.rename(evil)
    page = store.outputs / "page.html"
    for words in (
        ["status"],
        ["status", "--by", "group"],
        ["show", runs[0].name],
        ["show", "abc"],
        ["logs", runs[0].name],
        ["compare", runs[0].name, runs[1].name],
        ["report"],
        ["report", "--markdown", "-"],
        ["report", "--latex", "-"],
        ["report", "--csv", "-"],
        ["report", "--html", str(page)],
        ["status", f"name={EVIL}"],
        ["show", EVIL],
        ["cancel", f"task={EVIL}"],
    ):
        ended = commands.run(*words, "--outputs", str(store.outputs))
        shown = ended.output + ended.errors
        assert not [character for character in ACTING if character in shown], words
        assert ended.status in (0, 2), words
    assert "<script>alert(1)</script>" not in page.read_text()


def test_a_spreadsheet_computes_nothing() -> None:
    record = {"task": "=HYPERLINK(1)", "model": "@x", "value": -0.5, "group": "a", "n": ["+1", 2]}
    told = table.as_csv([table.Table("-t", [], [], [], [record])])
    (row,) = csv.DictReader(io.StringIO(told))
    assert row == {
        "table": "'-t",
        "task": "'=HYPERLINK(1)",
        "model": "'@x",
        "value": "-0.5",
        "group": "a",
        "n": "'+1;2",
    }


def test_latex_computes_nothing() -> None:
    told = table.in_latex(r"\input{/etc/passwd} $x^2_3$ %& #1 ~")
    assert "\\input" not in told
    assert told.startswith(r"\textbackslash{}input\{/etc/passwd\} \$x\textasciicircum{}2\_3\$ \%\&")


# -- secrets ---------------------------------------------------------------------------------------

SECRET = "hf_0123456789abcdef"


@pytest.fixture
def secret(monkeypatch: pytest.MonkeyPatch) -> str:
    for name in ("HF_TOKEN", "MY_PASSWORD"):
        monkeypatch.setenv(name, SECRET)
    monkeypatch.setenv("WANDB_API_KEY", SECRET[::-1])
    monkeypatch.setenv("SOME_KEY", "/a/path/as/long")
    return SECRET


@pytest.mark.parametrize(
    "override",
    [
        f"tracker.entity={SECRET}",
        "tracker.tags=['${oc.env:HF_TOKEN}']",
        f"task.name={SECRET}",
        "model.name_or_path='https://user:token@example.org/x'",
        f"grid=g-{SECRET[::-1]}",
    ],
)
def test_a_config_holds_no_secret(secret: str, tmp_path: Path, tiny: Path, override: str) -> None:
    words = [override] if "name_or_path" in override else [override, f"model.name_or_path={tiny}"]
    told = commands.refused(tmp_path / "outputs", *words)
    assert "holds a secret (" in told
    assert secret not in told
    assert secret[::-1] not in told
    assert "user:token" not in told


def test_no_file_holds_a_secret(
    secret: str, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from lora_exp import console

    monkeypatch.setattr("sys.argv", ["lora_exp", f"tracker.tags=[{secret}]"])
    record, _ = provenance.provenance(
        signature="s",
        group="g",
        overrides=[f"x={secret}"],
        gpu=f"https://u:{secret}@h/x",
        content={},
    )
    run = RunFolder(store.outputs / "runs" / "a-1")
    run.create(config(outputs=str(store.outputs)), record, f"+ token = '{secret}'\n")
    with run.lock(), console.also_to(run.log):
        run.set_status("failed", reason=f"401 for https://u:pw@hub/x with {secret}")
        console.log.error("token %s", secret, exc_info=UserError(secret))
    written = {path: path.read_bytes() for path in store.outputs.rglob("*") if path.is_file()}
    assert len(written) > 5
    for path, content in written.items():
        assert secret.encode() not in content, path
        assert b"u:pw@" not in content, path
    assert b"$HF_TOKEN" in (run.path / "run.json").read_bytes()
    assert secrets.hidden("/a/path/as/long") == "/a/path/as/long"


# -- the cluster -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a b", "a;b", "$(x)", "`x`", "a\nb", "-x/", "a&b", "a|b", "a'b"])
def test_a_job_has_no_name_that_a_shell_reads(tmp_path: Path, tiny: Path, name: str) -> None:
    words = [f'grid="{name}"', "-m", "seed=1,2", "hydra/launcher=slurm", "dry_run=true"]
    told = commands.refused(tmp_path / "outputs", *words, f"model.name_or_path={tiny}")
    assert "a name is made of letters" in told


def test_a_setting_is_one_line(tmp_path: Path, tiny: Path) -> None:
    words = ['hydra.launcher.partition="a\nmkdir x"', "hydra/launcher=slurm", "-m", "seed=1,2"]
    given = [*words, "dry_run=true", f"model.name_or_path={tiny}"]
    assert "must be one line of text" in commands.refused(tmp_path / "outputs", *given)


@pytest.mark.parametrize("name", ["a b", "a$(mkdir was-run)", "a`mkdir was-run`", "a;mkdir x"])
def test_a_folder_of_outputs_is_no_command(tmp_path: Path, name: str) -> None:
    """The script that a job runs, up to where SLURM's own commands come."""
    from lora_exp.grid import slurm
    from lora_exp.grid.submission import Shape, shapes

    run = RunFolder(tmp_path / name / "runs" / "x-1")
    (shape,) = shapes({run.path: config()})
    assert isinstance(shape, Shape)
    code = tmp_path / name / "snapshots" / "1"
    text = slurm.script(shape, slurm.SlurmSettings(gpus=0), "g", str(code))
    setup = [line for line in text.splitlines() if line.startswith("export PYTHONPATH")]
    shown = subprocess.run(
        ["bash", "-c", "\n".join([*setup, 'echo "$PYTHONPATH"'])],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"]},
    )
    assert shown.stdout == f"{code}:{code / 'launch'}\n"
    assert not (tmp_path / "was-run").exists()
