"""Where a result came from: the command, the code, the packages, the machine."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from lora_exp.runs.files import read_json

GIT, PATCH = "git.json", "code.patch"
"""Of a snapshot, beside its code."""
PACKAGES = ("lora-exp", "torch", "transformers", "safetensors", "datasets", "tokenizers", "numpy")


def provenance(
    *,
    signature: str,
    group: str,
    overrides: list[str],
    gpu: str | None,
    content: dict[str, str],
) -> tuple[dict[str, Any], str]:
    """The content of `run.json`, and the patch of the code (`code.patch`).

    Args:
        signature: of the run.
        group: signature without the seed.
        overrides: what the user gave on the command line.
        gpu: name of the device, None on a CPU.
        content: fingerprints of the data, of the backbone and of an adapter to start from.
    """
    git, patch = git_state(Path(__file__)) or (None, "")
    record = {
        "signature": signature,
        "group": group,
        "overrides": overrides,
        "content": content,
        "command": shlex.join(["python", "-m", "lora_exp", *sys.argv[1:]]),
        "git": git,
        "packages": {"python": platform.python_version()} | _versions(),
        "host": platform.node(),
        "gpu": gpu,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    return record, patch


def git_state(file: Path) -> tuple[dict[str, Any], str] | None:
    """The commit of the checkout that a file belongs to, and the patch of what was changed since.

    Of a snapshot, what was so when it was taken. None where the file is not under version control
    (an installed package) or there is no git.
    """
    snapshot = file.parents[2]
    if (kept := read_json(snapshot / GIT)) is not None:
        return kept, (snapshot / PATCH).read_text(encoding="utf-8")

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(file.parent), *arguments]
        done = subprocess.run(command, capture_output=True, check=True)
        return done.stdout.decode("utf-8", "replace")

    try:
        git("ls-files", "--error-unmatch", file.name)
        commit = git("rev-parse", "HEAD").strip()
        patch = git("diff", "HEAD", "--binary")
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"commit": commit, "dirty": bool(patch)}, patch


def _versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions
