"""A command without git, home folder, terminal or UTF-8, from code that is only read, among names
that are not ASCII: the run is the one that it always is."""

from __future__ import annotations

import csv
import io
import os
import shutil
import string
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from packs import outcome

from lora_exp.runs.folder import RunFolder
from lora_exp.runs.store import all_runs

CHECKOUT = Path(__file__).parents[2]
SETTINGS = ("train.max_steps=4", "train.batch_size=8", "train.log_every=1", "device=cpu")
BARE = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
AS_AN_OWNER = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
"""Whom the permissions of files hold for, even if it is root."""


def lora_exp(
    environment: Mapping[str, str],
    *words: str,
    checkout: Path = CHECKOUT,
    before: Sequence[str] = (),
) -> subprocess.CompletedProcess[str]:
    """A command that gets this environment and no more, and runs the code of a checkout."""
    path = {"PYTHONPATH": f"{checkout}:{checkout / 'launch'}", "PYTHONSAFEPATH": "1"}
    return subprocess.run(
        [*before, sys.executable, "-m", "lora_exp", *words],
        env={**BARE, **path, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
    )


def of(model: Path, outputs: Path) -> list[str]:
    """What a short run is asked for; quoted, as names may have any letters."""
    return [f'model.name_or_path="{model}"', f'outputs="{outputs}"', *SETTINGS]


def only_run(outputs: Path) -> RunFolder:
    [run] = all_runs(outputs)
    return run


@pytest.fixture(scope="module")
def plain(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The run in an environment such as most have."""
    outputs = tmp_path_factory.mktemp("plain")
    done = lora_exp(os.environ, *of(tiny, outputs))
    assert done.returncode == 0, done.stderr
    return only_run(outputs)


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A folder whose name has a blank and letters that are not ASCII."""
    folder = tmp_path / "ä ж b"
    folder.mkdir()
    return folder


def check_equal(run: RunFolder, plain: RunFolder) -> None:
    assert run.status["state"] == "done"
    assert run.signature == plain.signature
    found, expected = outcome(run.path), outcome(plain.path)
    for each in (found, expected):
        each["adapter"].pop("adapter_config.json")  # names the model's folder
    assert found == expected


def latin1(folder: Path) -> dict[str, str]:
    """What makes Latin-1 the encoding of a process: a locale that is made for it."""
    if shutil.which("localedef") is None:
        pytest.skip("needs localedef")
    every = {f"<U{number:04X}>": chr(number) for number in range(256)}
    codes = "\n".join(f"{name} /x{ord(letter):02x} one" for name, letter in every.items())
    head = "<code_set_name> ISO-8859-1\n<comment_char> %\n<escape_char> /\nCHARMAP\n"
    (folder / "charmap").write_text(f"{head}{codes}\nEND CHARMAP\n")
    kinds = {"upper": str.isupper, "lower": str.islower, "alpha": str.isalpha}
    kinds |= {"digit": string.digits.__contains__, "space": "\t\n\v\f\r ".__contains__}
    lines = [
        f"{kind} {';'.join(name for name, letter in every.items() if holds(letter))}\n"
        for kind, holds in kinds.items()
    ]
    head = "comment_char %\nescape_char /\nLC_CTYPE\n"
    (folder / "source").write_text(f"{head}{''.join(lines)}END LC_CTYPE\n")
    sources = ["-f", folder / "charmap", "-i", folder / "source"]
    subprocess.run(["localedef", "-c", *sources, folder / "latin1"], capture_output=True)
    environment = {"LOCPATH": str(folder), "LC_ALL": "latin1"}
    asked = [sys.executable, "-c", "import sys; print(sys.getfilesystemencoding())"]
    asked = subprocess.run(asked, env=environment, capture_output=True, text=True)
    assert asked.stdout == "iso8859-1\n"
    return environment


@pytest.mark.parametrize("locale", ["C", "Latin-1"])
def test_no_git_no_home_no_terminal_no_utf8(
    locale: str, plain: RunFolder, tiny: Path, foreign: Path, tmp_path: Path
) -> None:
    model, outputs = foreign / "tïny bert", foreign / "outputs"
    shutil.copytree(tiny, model)
    nothing = foreign / "nothing"
    nothing.mkdir()
    bare = {"PATH": str(nothing), "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    bare |= {"LC_ALL": "C"} if locale == "C" else latin1(tmp_path)
    bare |= {"COLUMNS": "20", "TERM": "dumb"}
    done = lora_exp(bare, *of(model, outputs))
    assert done.returncode == 0, done.stderr
    run = only_run(outputs)
    check_equal(run, plain)
    assert run.provenance["git"] is None
    for words in (["status"], ["show", run.signature], ["logs", run.signature]):
        said = lora_exp(bare, *words, "--outputs", str(outputs))
        assert said.returncode == 0, said.stderr
        assert run.name in said.stdout or "trained parameters" in said.stdout
    table = lora_exp(bare, "report", "--csv", "-", "--outputs", str(outputs))
    [row] = csv.DictReader(io.StringIO(table.stdout))
    assert row["model"] == "tïny bert"
    assert run.result is not None
    assert float(row["mean"]) == run.result["metrics"]["matthews_correlation"]
    refused = lora_exp(bare, *of(foreign / "t\udcefny", outputs))  # a byte of Latin-1
    assert refused.returncode == 2
    assert "has the character '\\udcef', which is no text" in refused.stderr


def test_code_that_is_only_read_and_a_home_that_is_not_there(
    plain: RunFolder, tiny: Path, foreign: Path
) -> None:
    """A grid, with W&B and no account there: workers of their own, and a snapshot of the code."""
    if shutil.which("setpriv") is None:
        pytest.skip("needs setpriv")
    checkout, outputs = foreign / "checkout", foreign / "outputs"
    for name in ("lora_exp", "launch", "conf"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(CHECKOUT / name, checkout / name, ignore=ignored)
    for path in [*checkout.rglob("*"), checkout]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    environment = {"HOME": str(checkout / "home"), "PATH": os.environ["PATH"], "LC_ALL": "C"}
    given = [*of(tiny, outputs), "tracker=wandb", "tracker.mode=offline"]
    done = lora_exp(environment, "-m", *given, checkout=checkout, before=AS_AN_OWNER)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in checkout.iterdir()} == {"lora_exp", "launch", "conf"}
    assert not [*checkout.rglob("__pycache__")]
    check_equal(only_run(outputs), plain)
