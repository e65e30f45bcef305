"""Verbs with arguments that do not fit, runs that there are not, files that are not theirs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import commands
import pytest
from stores import Store

VERBS = {
    # arguments
    "status --nope": "No such option: --nope. See: python -m lora_exp status --help",
    "status --by nothing": "--by nothing: There are grid, group, state.",
    "show": "Missing argument",
    "show a b": "extra argument",
    "logs": "Missing argument",
    "logs a b": "extra argument",
    "report --rows nothing": "--rows nothing: nothing: there is no such key.",
    "report --columns seed,nothing": "--columns seed,nothing: nothing: there is no such key.",
    "report --rows seed --columns seed": "--columns seed: seed is among the rows already.",
    "report --study nothing": "nothing",
    "report --csv nowhere/at/all.csv": "--csv nowhere/at/all.csv: there is no folder",
    "report --json .": "--json .: is a folder",
    "compare": "Missing argument",
    "cancel": "cancel: say which runs",
    "retry": "retry: say which runs",
    "rerun": "Missing argument",
    "clean --yes": "No such option: --yes",
    "export": "Missing",
    "export RUN": "Missing option '--to'",
    "export RUN --to peft": "Missing option '--out'",
    "export RUN --to pefft --out x": "--to pefft: Did you mean peft?",
    "import": "Missing argument",
    "import x --model minilm": "Missing option '--out'",
    "import x --model minilm --out y --alpha high": "Invalid value for '--alpha'",
    "import nowhere.pt --model minilm --out y --alpha 1": "nowhere.pt",
    # filters
    "status stat=done": "stat=done: there is no such key. Did you mean state",
    "status state=don": "state=don: Did you mean done?",
    "status lora.r=high": "lora.r=high: high is no number, and lora.r is one.",
    "status task>3": "task>3: task is no number; compare it with = or !=.",
    "status rte": "rte: a filter is KEY=VALUE",
    "status task=rtt": "task=rtt: there is no such run. Did you mean rte?",
    "status task=": "a filter is KEY=VALUE",
    "status =rte": "a filter is KEY=VALUE",
    "status task==": "there is no such run.",
    'status task="rte': "a filter is KEY=VALUE",
    "cancel task=rtt": "task=rtt: there is no such run.",
    "retry seed=9": "seed=9: there is no such run.",
    "report state=don": "state=don: Did you mean done?",
    "clean stat=failed": "stat=failed: there is no such key.",
    # runs
    "show nothing": "nothing: no such run in",
    "logs nothing": "nothing: no such run in",
    "rerun nothing": "nothing: no such run in",
    "export nothing --to peft --out x": "nothing: no such run in",
    "compare RUN nothing": "nothing: no such run in",
    "compare RUN": "name two to 6 different runs",
    "compare RUN RUN": "name two to 6 different runs",
    "show rte": "2 runs begin so; which one?",
    "show ../../etc/passwd": "no such run in",
    # what a run is to be changed in
    "rerun RUN lora.rr=3": "lora.rr",
    "rerun RUN lora.r=0": "lora.r=0: must be greater than 0.",
    "rerun RUN lora.r=1,2": "rerun takes one value for each key.",
    "rerun RUN task=mrpc": "rerun changes single values, and this chooses a file.",
    "rerun RUN +x=1": "rerun takes KEY=VALUE.",
    "rerun RUN ~seed": "rerun takes KEY=VALUE.",
    "rerun RUN seed": "neither an override (KEY=VALUE) nor a verb.",
    "rerun RUN seed=[": "cannot be read",
    "rerun RUN task.name=../x": "a name is made of letters",
    "retry state=failed hydra/launcher=loca": "hydra/launcher=loca: Did you mean local?",
    "retry state=failed hydra.launcher.time=1": "hydra/launcher=local has no settings.",
    "retry state=failed hydra/launcher=slurm hydra.launcher.tme=1": "hydra.launcher.tme",
    "retry state=failed hydra/launcher=slurm hydra.launcher.gpus=-1": "must be at least 0",
    "retry state=failed hydra/launcher=basic": "retry takes hydra/launcher=local or slurm.",
}


@pytest.mark.parametrize("line", VERBS)
def test_a_verb_that_does_not_fit_changes_nothing(store: Store, line: str) -> None:
    run = store.run("failed", seed=1)
    store.run("done", seed=2)
    before = sorted(store.outputs.rglob("*"))
    words = [run.name if word == "RUN" else word for word in line.split()]
    ended = commands.run(*words, "--outputs", str(store.outputs))
    assert VERBS[line] in ended.message
    assert ended.output == ""
    assert sorted(store.outputs.rglob("*")) == before
    assert store.states() == {"1": "failed", "2": "done"}


EMPTY = {
    "show x": "there are no runs in",
    "logs x": "there are no runs in",
    "rerun x": "there are no runs in",
    "compare x y": "there are no runs in",
    "report": "There are no runs in",
    "export x --to peft --out y": "there are no runs in",
}


@pytest.mark.parametrize("line", EMPTY)
def test_there_are_no_runs_at_all(tmp_path: Path, line: str) -> None:
    outputs = tmp_path / "nowhere"
    assert EMPTY[line] in commands.run(*line.split(), "--outputs", str(outputs)).message
    assert not outputs.exists()


LINES = {
    "task=": "task=",
    "=3": "=3: names no key; expected KEY=VALUE.",
    "seed=${seed}": "seed: Recursive interpolation detected.",
    "seed=${train.epochs} train.epochs=${seed}": "Recursive interpolation detected.",
    "seed=${nothing}": "seed: Interpolation key 'nothing' not found.",
    "seed=${oc.env:NO_SUCH_VARIABLE}": "Environment variable 'NO_SUCH_VARIABLE' not found",
    "seed=${nothing:1}": "seed: Unsupported interpolation type nothing.",
    "seed=${": "seed=${: cannot be read",
    "~task": "~task: give the name of one choice.",
    "~seeed": "seeed",
    "task=null": "task=null: give the name of one choice.",
    "task=[rte]": "task=[rte]: give the name of one choice. Did you mean rte?",
    "model=7": "model=7: give the name of one choice.",
    "method=[1]": "method=[1]: give the name of one choice.",
    "model={a:1}": "model.a: there is no such key.",
    "tsk@x=rte": "tsk",
    "task@model=rte": "task@model",
    "+task=rte": "task",
    "++nothing=1": "nothing: there is no such key.",
    "seed=choice(1,2)": "seed",
    "seed=range(1,3)": "seed",
    "seed=glob(*)": "seed",
    "grid=../x": "grid=../x: a name is made of letters, digits, and - _ .",
    "task.name=../x": "task.name=../x: a name is made of letters, digits, and - _ .",
    "task.validation=[../x]": "task.validation=../x: a name is made of",
    "train.devices=1000 device=cpu": "train.devices=1000: without a GPU these are processes",
    "train.nodes=9": "train.nodes is 9, but 1 processes were started.",
    "outputs=/dev/null/x": "outputs=/dev/null/x",
    "outputs=": "outputs=: is empty.",
    "--nope": "unrecognized arguments: --nope.",
    "--cfg nope": "invalid choice: 'nope'",
    "--config-dir /no/where": "/no/where",
    "--config-name nothing": "nothing: there is no such config file in",
    "--experimental-rerun x": "would run code from a pickle",
    "--experimental-rerun=x": "would run code from a pickle",
    "plan -m seed=1,2": "plan: tells of one run.",
    "plan lora.r=0": "lora.r=0: must be greater than 0.",
    "plan nothing": "nothing: neither an override (KEY=VALUE) nor a verb.",
    "-m seed=1,2 hydra/launcher=nothing": "hydra/launcher=nothing: There are choices:",
    "-m seed=1,2 hydra.launcher.time=3": "only hydra/launcher=slurm has it",
    "-m seed=1,2 hydra/launcher=slurm hydra.launcher.gpus=x": "hydra.launcher.gpus",
    "-m seed=1,2 hydra/launcher=slurm hydra.launcher.setup=x": "hydra.launcher.setup",
    "-m seed=1,x": "seed: Value 'x' of type 'str'",
    "-m seed=1,2 grid=a/b": "grid=a/b: a name is made of",
    "-m seed=1,2 rerun=7.5": "rerun",
    "dry_run=true": "dry_run and detach are for grids",
    "hydra/launcher=slurm": "hydra/launcher=slurm is for grids",
    "model.init_from=nothing": "model.init_from=nothing: neither a folder",
    "model.init_from='best:stat=done'": "stat=done: there is no such key.",
    "model.name_or_path=/no/where": "there is no such folder",
    "model.name_or_path=package:os.path/x": "the package os.path is not installed",
    "lora.placement.targets=[qury]": "matches no layer of this model",
    "lora.placement.layers='9-99'": "layers=9-99: there is no layer 9; there are 0, 1.",
    "task=rte task.data_dir=/no/where": "task.data_dir=/no/where does not exist.",
    "task=rte task.data_dir=/dev/null": "task.data_dir=/dev/null is not a folder.",
    "task=e2e task.data_dir=/proc/self": "task e2e: no file for the split 'train'",
    "study=nothing": "study=nothing: ",
    "experiment=nothing": "experiment=nothing: ",
}


@pytest.mark.parametrize("line", LINES)
def test_a_run_that_does_not_fit_is_not_begun(tiny: Path, tmp_path: Path, line: str) -> None:
    words = line.split()
    places = {word.split("=")[0] for word in words}
    if "model.name_or_path" not in places:
        words.append(f"model.name_or_path={tiny}")
    if "outputs" in places:
        told = commands.run(*words).message
    elif words[0] == "plan":
        told = commands.run(*words, f"outputs={tmp_path / 'outputs'}").message
    else:
        told = commands.refused(tmp_path / "outputs", *words)
    assert LINES[line] in told


@pytest.mark.parametrize("line", ["status --nope", "lora.r=0", "--nope", "seed=${seed}"])
def test_a_process_of_its_own(tmp_path: Path, line: str) -> None:
    """What the others do in this one."""
    before = sorted(tmp_path.iterdir())
    command = [sys.executable, "-m", "lora_exp", *line.split()]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert ended.returncode == 2
    assert ended.stderr.startswith("lora_exp: ")
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""
    assert sorted(tmp_path.iterdir()) == before
