"""What holds for every test: no network, and in CI no skip that CI cannot explain."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

# Before any test imports transformers, which reads them once. A test that talks to a hub of its
# own does so from a subprocess with its own environment.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# One thread: some tests fork, and on few cores several processes would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

SHARED = Path(__file__).resolve().parents[2] / "shared"


def _no_cuda() -> bool:
    import torch

    return not torch.cuda.is_available()


def _no_bf16() -> bool:
    import torch

    return not torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _cannot_mount() -> bool:
    from integration.storage import can_mount

    return not can_mount()


# The reasons (as they begin) for which a test may be skipped in CI, and what must be true then.
EXPLAINED: dict[str, Callable[[], bool]] = {
    "needs a CUDA device": _no_cuda,
    "needs a CPU with bf16": _no_bf16,
    "needs root": lambda: os.geteuid() != 0,
    "needs the right to mount": _cannot_mount,
    "../shared": lambda: not SHARED.exists(),
    "needs localedef": lambda: shutil.which("localedef") is None,
    "needs LaTeX": lambda: shutil.which("pdflatex") is None,
    "needs Java": lambda: shutil.which("java") is None,
    "needs Chromium": lambda: not (shutil.which("chromium") and shutil.which("chromedriver")),
    "needs a SLURM cluster": lambda: "SLURM_CONF" not in os.environ,
}


def _skips(config: pytest.Config) -> list[tuple[str, str]]:
    """(test, reason) of everything skipped, modules skipped as a whole included."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    reports = reporter.stats.get("skipped", []) if reporter else []
    return [
        (report.nodeid, re.sub(r"^Skipped: ", "", report.longrepr[2]))
        for report in reports
        if isinstance(report.longrepr, tuple)
    ]


def _explained(reason: str) -> bool:
    return any(reason.startswith(start) and holds() for start, holds in EXPLAINED.items())


def _unexplained(config: pytest.Config) -> list[tuple[str, str]]:
    if not os.environ.get("CI"):
        return []
    return [(test, reason) for test, reason in _skips(config) if not _explained(reason)]


def pytest_sessionfinish(session: pytest.Session) -> None:
    if _unexplained(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for test, reason in _unexplained(terminalreporter.config):
        terminalreporter.line(f"FAILED in CI: {test} was skipped: {reason}", red=True)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny BERT and its tokenizer."""
    from tiny import save

    return save(tmp_path_factory.mktemp("models") / "tiny-bert")
