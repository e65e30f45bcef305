"""In CI a skip is a failure unless conftest.py explains it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch  # here, since pytester forgets what a test imports, and torch loads only once

pytest_plugins = ["pytester"]

CONFTEST = Path(__file__).with_name("conftest.py").read_text()


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch):
    """Runs one test that skips itself, in a checkout of its own, beside which `shared` may lie."""
    monkeypatch.setenv("CI", "true")
    tests = pytester.path / "main" / "tests"
    tests.mkdir(parents=True)
    (tests / "conftest.py").write_text(CONFTEST)

    def run(source: str) -> pytest.RunResult:
        (tests / "test_it.py").write_text(f"import pytest\n{source}\n")
        return pytester.runpytest_inprocess(str(tests))

    return run


SKIPPED = "@pytest.mark.skipif(True, reason={!r})\ndef test_it(): pass"


def test_an_unexplained_skip_fails_and_is_named(run):
    result = run(SKIPPED.format("I felt like it"))
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines("FAILED in CI: *test_it.py::test_it was skipped: I felt like it")


def test_a_module_that_cannot_import_what_it_tests_fails(run):
    result = run('pytest.importorskip("no_such_module")')
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines("FAILED in CI: *test_it.py was skipped: *no_such_module*")


def test_outside_ci_a_skip_is_a_skip(run, monkeypatch):
    monkeypatch.delenv("CI")
    assert run(SKIPPED.format("I felt like it")).ret == pytest.ExitCode.OK


@pytest.mark.parametrize("there", [False, True])
def test_a_missing_device_explains_only_while_it_is_missing(run, monkeypatch, there):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    result = run(SKIPPED.format("needs a CUDA device"))
    assert result.ret == (pytest.ExitCode.TESTS_FAILED if there else pytest.ExitCode.OK)


@pytest.mark.parametrize("there", [False, True])
def test_shared_missing_explains_only_while_it_is_missing(run, pytester, there):
    if there:
        (pytester.path / "shared").mkdir()
    result = run("def test_it(): pytest.skip('../shared/data is not here')")
    assert result.ret == (pytest.ExitCode.TESTS_FAILED if there else pytest.ExitCode.OK)
