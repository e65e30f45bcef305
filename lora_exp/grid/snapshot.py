"""The code as it is at this moment, kept for jobs that start later."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import lora_exp
from lora_exp.errors import UserError
from lora_exp.runs import files, provenance
from lora_exp.runs.config import CONF
from lora_exp.runs.provenance import GIT, PATCH, git_state


def take(outputs: Path) -> Path:
    """Copy the package, its launchers and its configs, uncommitted changes included.

    Whatever is edited afterwards, a process with the snapshot and its `launch` first in PYTHONPATH
    runs the code of now. Snapshots of equal code are one. What git says of it is kept as well.

    Returns:
        `outputs/snapshots/HASH`.
    """
    code = dict(_files())
    git, patch = git_state(Path(provenance.__file__)) or (None, "")
    digest = hashlib.sha256(json.dumps(git).encode())
    for name, source in sorted(code.items()):
        content = source.read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    snapshot = outputs / "snapshots" / digest.hexdigest()[:12]
    if not snapshot.exists():
        snapshot.parent.mkdir(parents=True, exist_ok=True)
        try:
            with files.new_folder(snapshot) as folder:
                for name, source in code.items():
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(source, folder / name)
                if git is not None:
                    files.write_json(folder / GIT, git, durable=False)
                    files.write(folder / PATCH, patch, durable=False)
        except UserError:
            if not snapshot.exists():  # else another command was quicker
                raise
    return snapshot


def python_path(snapshot: Path) -> str:
    """What comes first in PYTHONPATH of a process that is to run a snapshot; PYTHONSAFEPATH=1 keeps
    the working directory, which may be a checkout, from coming before it."""
    return f"{snapshot}:{snapshot / 'launch'}"


def _files() -> Iterator[tuple[str, Path]]:
    """Each file's name in the snapshot, and where it is."""
    launchers = Path(str(import_module("hydra_plugins.lora_exp_launch").__file__)).parent
    package = Path(lora_exp.__file__).parent
    folders = {
        "lora_exp": package,
        "launch/hydra_plugins/lora_exp_launch": launchers,
        "conf": CONF,
    }
    for name, folder in folders.items():
        for source in sorted(folder.rglob("*")):
            inside = source.relative_to(folder)
            installed = name == "lora_exp" and inside.parts[0] == "conf"
            if source.is_file() and "__pycache__" not in inside.parts and not installed:
                yield f"{name}/{inside.as_posix()}", source
