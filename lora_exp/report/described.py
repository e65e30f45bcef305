"""What is written of a run, as text: its config, and where it came from."""

from __future__ import annotations

import hashlib
import re

from lora_exp.report.pivot import NONE
from lora_exp.runs.records import RunRecord
from lora_exp.runs.selector import kinds, text_of, value_of

DIGEST = re.compile("[0-9a-f]{64}")
NOBODY_CARES = {"outputs", "grid", "dry_run", "detach", "rerun"}
"""Keys that tell nothing about a run."""


def configured(run: RunRecord) -> dict[str, str]:
    """The config by its keys, with the defaults of fields that are younger than the run."""
    return {key: text_of(value_of(run, key)) for key in kinds() if key not in NOBODY_CARES}


def origin(run: RunRecord) -> dict[str, str]:
    """Content of data and backbone, code, packages and machine."""
    written = run.origin
    told = {
        f"content of {what}": DIGEST.sub(lambda found: found[0][:12], print_)
        for what, print_ in (written.get("content") or {}).items()
    }
    told |= {"code": str((written.get("git") or {}).get("commit", NONE))[:12]}
    try:
        patch = (run.folder.path / "code.patch").read_bytes()
        told["uncommitted changes"] = hashlib.sha256(patch).hexdigest()[:12]
    except FileNotFoundError:
        told["uncommitted changes"] = "none"
    told |= {name: str(version) for name, version in (written.get("packages") or {}).items()}
    return told | {"host": str(written.get("host")), "GPU": str(written.get("gpu"))}
