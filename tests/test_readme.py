"""The README's commands do what it says they do."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import forked
import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(line, comments=True)[3:]
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.startswith("python -m lora_exp")
]
RUNS = [command for command in COMMANDS if "=" in " ".join(command)]
VERBS = [command for command in COMMANDS if "=" not in " ".join(command)]


@pytest.mark.parametrize("command", RUNS, ids=" ".join)
def test_commands_compose(command: list[str], tmp_path: Path) -> None:
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    from lora_exp.runs.checks import check
    from lora_exp.runs.values import from_mapping

    GlobalHydra.instance().clear()
    given = [word for word in command if word not in ("-m", "--cfg", "job", "plan")]
    parsed = OverridesParser.create().parse_overrides(given)
    # Of a sweep, the first point.
    points = [
        f"{o.get_key_element()}={next(iter(o.sweep_string_iterator()))}"
        if o.is_sweep_override()
        else str(o.input_line)
        for o in parsed
    ]
    ended = forked.run(*points, "--cfg", "job")
    assert ended.status == 0, ended.output
    check(from_mapping(OmegaConf.create(ended.output)))


@pytest.mark.parametrize("command", VERBS, ids=" ".join)
def test_verbs_exist(command: list[str]) -> None:
    assert forked.run(command[0], "--help").status == 0


def test_the_shown_mistake_is_answered_as_shown() -> None:
    command, answer = re.findall(r"^    \$ python -m lora_exp (.*)\n    (.*)$", README, re.M)[0]
    assert forked.run(*command.split()).output.strip() == answer


def test_files_and_folders_that_are_named_exist() -> None:
    named = re.findall(r"\]\(((?!https?:)[^)]+)\)", README)
    named += re.findall(r"`((?:lora_exp|tests|benchmarks|conf)/[\w/.]+)`", README)
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []
    folders = re.findall(r"^ +(\w+/|\w+\.py) ", README, re.M)
    assert len(folders) > 8
    for folder in folders:
        assert (ROOT / folder).exists() or (ROOT / "lora_exp" / folder).exists(), folder


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"\bmake (\w+)", README))
    makefile = (ROOT / "Makefile").read_text()
    assert {"demo", "test", "lint", "bench"} <= targets
    assert all(f"\n{target}:" in makefile for target in targets)


def test_the_examples_of_the_library_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = README.split("## The LoRA library")[1].split("\n## ")[0]
    monkeypatch.chdir(tmp_path)
    exec("\n".join(re.findall(r"```python\n(.*?)```", section, re.DOTALL)), {})
