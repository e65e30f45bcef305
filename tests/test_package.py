"""What is installed is what was written: as a wheel, as an editable install, with a light door."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# What takes seconds to import, and what no answer without a run needs.
HEAVY = {"torch", "transformers", "datasets", "wandb", "sklearn", "scipy", "pandas"}


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command to success, with nothing in its environment that leads to the checkout."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module", params=["wheel", "editable"])
def installed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """A new environment with lora_exp: its `bin`, and where the package and its conf have to be.

    Dependencies come through a path file from the environment that runs the tests. Path files in
    that one (its own editable lora_exp) are not read through ours: nothing leads to the checkout.
    """
    folder = tmp_path_factory.mktemp(request.param)
    venv = folder / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv, cwd=folder)
    libraries = Path(sysconfig.get_path("purelib", vars={"base": str(venv)}))
    (libraries / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")

    if request.param == "wheel":
        build = (sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder)
        run(*build, ROOT, cwd=folder)
        package = [next(folder.glob("*.whl"))]
        places = libraries / "lora_exp", libraries / "lora_exp" / "conf"
    else:
        package = ["--no-build-isolation", "--editable", ROOT]
        places = ROOT / "lora_exp", ROOT / "conf"
    pip = (sys.executable, "-m", "pip", "--python", venv / "bin" / "python", "install")
    run(*pip, "--no-index", "--no-deps", *package, cwd=folder)
    return venv / "bin", *places


def test_the_code_and_the_conf_are_the_installed_ones(installed, tmp_path):
    binaries, package, conf = installed
    where = "import lora_exp.cli as cli; print(cli.__file__, cli.CONF)"
    printed = run(binaries / "python", "-c", where, cwd=tmp_path).stdout.split()
    assert printed == [str(package / "cli.py"), str(conf)]


def test_the_command_composes_a_config_from_anywhere(installed, tmp_path):
    binaries, *_ = installed
    command = ("task=mnli", "lora.r=4", "--cfg", "job")
    printed = run(binaries / "lora-exp", *command, cwd=tmp_path).stdout
    assert "name: mnli" in printed
    assert re.search(r"^lora:\n(?:  .*\n)*?  r: 4$", printed, re.MULTILINE)
    assert list(tmp_path.iterdir()) == []


def test_the_launcher_is_found(installed, tmp_path):
    binaries, *_ = installed
    command = ("hydra/launcher=local", "--cfg", "hydra", "--package", "hydra.launcher")
    printed = run(binaries / "lora-exp", *command, cwd=tmp_path).stdout
    (target,) = re.findall(r"^_target_: (.*)\.(\w+)$", printed, re.MULTILINE)
    code = "import {0}; print({0}.{1})".format(*target)
    assert "LocalLauncher" in run(binaries / "python", "-c", code, cwd=tmp_path).stdout


def test_the_report_page_is_whole(installed, tmp_path):
    binaries, package, _ = installed
    code = (
        "from lora_exp.report.page import document as d; "
        "read = [(d.FOLDER / name).read_text() for name in (*d.SCRIPTS, d.LIBRARY, 'page.css')]; "
        "print(d.FOLDER)"
    )
    assert run(binaries / "python", "-c", code, cwd=tmp_path).stdout.split() == [
        str(package / "report" / "page")
    ]


@pytest.mark.parametrize(
    "command",
    [
        ["--help"],
        ["--cfg", "job"],
        ["task=mnli", "lora.r=4", "--cfg", "job"],
        ["status", "--help"],
        ["show", "--help"],
        ["logs", "--help"],
        ["report", "--help"],
        ["compare", "--help"],
        ["export", "--help"],
        ["import", "--help"],
        ["sync", "--help"],
        ["dashboard", "--help"],
    ],
    ids=" ".join,
)
def test_what_runs_nothing_imports_nothing_heavy(command):
    traced = (sys.executable, "-X", "importtime", "-m", "lora_exp")
    names = re.findall(
        r"^import time: +\d+ \| +\d+ \| +(\w+)",
        run(*traced, *command, cwd=ROOT).stderr,
        re.MULTILINE,
    )
    assert "lora_exp" in names
    assert HEAVY.isdisjoint(names)


def test_the_lora_library_stands_alone(tmp_path):
    code = (
        "import sys, lora_exp.lora; "
        "own = [m for m in sys.modules if m.startswith('lora_exp.')]; "
        "print(*(m for m in own if not m.startswith('lora_exp.lora')), "
        "*({'transformers', 'peft', 'hydra', 'omegaconf'} & {*sys.modules}))"
    )
    assert run(sys.executable, "-c", code, cwd=tmp_path).stdout.split() == []
