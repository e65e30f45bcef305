"""What is made of squeue's and sacct's answers."""

from __future__ import annotations

from pathlib import Path

import pytest
import stores

from lora_exp.runs import cluster
from lora_exp.runs.cluster import GONE, UNKNOWN, Job

SQUEUE = r"""cat <<'END'
7_4 RUNNING None
7_5 COMPLETED None
7_[6-8,10%2] PENDING Nodes required for job are DOWN, DRAINED or reserved
8 PENDING Dependency
70_1 RUNNING None
9 COMPLETED None
END"""


def answering(folder: Path, monkeypatch: pytest.MonkeyPatch, **scripts: str) -> Path:
    monkeypatch.setenv("PATH", stores.commands(folder, **scripts))
    return folder


def test_squeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answering(tmp_path, monkeypatch, squeue=SQUEUE, sacct="exit 1")
    found = cluster.states(["7", "8", "9"])
    assert {name for name in found if name.startswith("7_")} == {
        *("7_4", "7_5", "7_6", "7_7", "7_8", "7_10")
    }
    assert found["7"].state == "RUNNING", "as long as an element does"
    assert found["7_5"].ended
    assert found["7_10"] == Job("PENDING", "Nodes required for job are DOWN, DRAINED or reserved")
    assert found["8"] == Job("PENDING", "Dependency")
    assert found["9"].ended
    assert not any(name.startswith("70") for name in found)


def test_long_ended_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sacct = "echo '5_0|CANCELLED by 0'; echo '5_1|COMPLETED'; echo '6|NODE_FAIL'"
    folder = answering(tmp_path, monkeypatch, squeue=SQUEUE, sacct=sacct)
    found = cluster.states(["8", "5", "6", "4"])
    assert found["5_0"].state == "CANCELLED"
    assert found["5"].ended
    assert found["6"].state == "NODE_FAIL"
    assert found["4"] == Job(GONE)
    assert found["4"].ended
    assert (folder / "sacct.calls").read_text().strip().endswith("-j 5,6,4")


def test_without_accounting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answering(tmp_path, monkeypatch, squeue=SQUEUE, sacct="echo disabled >&2; exit 1")
    assert cluster.states(["5"]) == {"5": Job(GONE)}


@pytest.mark.parametrize("there", [True, False])
def test_without_an_answer_nothing_has_ended(
    there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if there:
        answering(tmp_path, monkeypatch, squeue="exit 1", sacct="exit 1")
    else:
        monkeypatch.setenv("PATH", str(tmp_path))
    found = cluster.states(["7", "7_4"])
    assert found == {"7": Job(UNKNOWN), "7_4": Job(UNKNOWN)}
    assert not found["7"].ended
    assert not found["7"].known


def test_only_what_waits_is_cancelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = answering(tmp_path, monkeypatch, squeue=SQUEUE, sacct="exit 1", scancel="exit 0")
    assert cluster.cancel_waiting(["7", "8", "9"]) == ["7", "8"]
    assert (folder / "scancel.calls").read_text() == "--state=PENDING 7 8\n"
    assert cluster.cancel_waiting(["9"]) == []
    assert len((folder / "scancel.calls").read_text().splitlines()) == 1
