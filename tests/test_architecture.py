"""Arrows between packages point one way: down the table of docs/architecture.md."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "lora_exp"
TABLE = re.findall(r"^\| (`.+?) \| .+ \|$", (ROOT / "docs/architecture.md").read_text(), re.M)
LEVELS = {name: number for number, row in enumerate(TABLE) for name in re.findall(r"`(\w+)`", row)}
UNITS = sorted(
    path.stem
    for path in PACKAGE.iterdir()
    if path.suffix == ".py" or (path / "__init__.py").exists()
)


def imports(file: Path) -> set[str]:
    """The units of lora_exp that a file imports, within functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "lora_exp":
            modules = [f"lora_exp.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            modules = [node.module or ""]
        else:
            continue
        found |= {name.split(".")[1] for name in modules if name.startswith("lora_exp.")}
    return found


def test_the_table_has_every_unit() -> None:
    assert sorted(LEVELS) == UNITS


@pytest.mark.parametrize("unit", UNITS)
def test_a_unit_imports_only_from_rows_below(unit: str) -> None:
    path = PACKAGE / unit
    files = path.rglob("*.py") if path.is_dir() else [path.with_suffix(".py")]
    used = {name for file in files for name in imports(file)} - {unit}
    assert sorted(name for name in used if LEVELS[name] <= LEVELS[unit]) == []


def test_lora_stands_alone() -> None:
    assert {name for file in (PACKAGE / "lora").rglob("*.py") for name in imports(file)} <= {"lora"}
