"""METEOR and the Penn Treebank tokenizer: the Java programs inside the package pycocoevalcap."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lora_exp.tasks.scores.corpus import Corpus

NOTHING = "∅"
"""What stands for a text without words, which METEOR refuses: a word that matches no other."""


class JavaFailed(Exception):
    """A Java program did not do its work; the message says which and why."""


@cache
def lacking() -> str | None:
    """Why Java programs cannot run here, or None."""
    if shutil.which("java") is None:
        return "needs Java: no `java` on PATH"
    try:
        subprocess.run(["java", "-version"], capture_output=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        return f"needs Java: `java -version` fails ({error})"
    return None


def ptb_tokens(lines: list[str]) -> list[str]:
    """Tokenise as pycocoevalcap's `PTBTokenizer`: lower-cased, punctuation left out.

    Args:
        lines: texts without line breaks.

    Returns:
        As many lines, tokens separated by blanks.

    Raises:
        JavaFailed: if Java fails.
    """
    from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS

    jar = _package() / "tokenizer" / "stanford-corenlp-3.4.1.jar"
    command = ["java", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer"]
    command += ["-preserveLines", "-lowerCase", "-encoding", "UTF-8"]
    done = subprocess.run(
        command,
        input="".join(f"{_printable(line)}\n" for line in lines).encode(),
        capture_output=True,
    )
    tokens = done.stdout.decode(errors="replace").split("\n")[:-1]
    if done.returncode or len(tokens) != len(lines):
        raise JavaFailed(f"the tokenizer failed: {_last_line(done.stderr)}")
    return [" ".join(t for t in line.split() if t not in PUNCTUATIONS) for line in tokens]


def meteor(corpus: Corpus) -> float:
    """METEOR 1.5 (Denkowski and Lavie 2014) of a corpus, English, normalised; 1 is perfect.

    Raises:
        JavaFailed: if Java fails.
    """
    jar = _package() / "meteor" / "meteor-1.5.jar"
    command = ["java", "-Xmx2G", "-Dfile.encoding=UTF-8", "-jar", str(jar)]
    command += ["-", "-", "-stdio", "-l", "en", "-norm"]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with tempfile.TemporaryFile() as errors:
        try:
            with subprocess.Popen(command, **pipes, stderr=errors, encoding="utf-8") as process:
                statistics = []
                for output, references in zip(corpus.outputs, corpus.references, strict=True):
                    # The best reference counts: to repeat one changes nothing.
                    fields = [*map(_field, dict.fromkeys(references)), _field(output)]
                    statistics += _ask(process, ["SCORE", *fields], answers=1)
                # A score for each text, then that of the corpus.
                *_, value = _ask(process, ["EVAL", *statistics], answers=len(statistics) + 1)
                return float(value)
        except (OSError, ValueError) as error:  # it ended, or said something else
            errors.seek(0)
            raise JavaFailed(f"METEOR failed: {_last_line(errors.read()) or error}") from error


def _ask(process: subprocess.Popen[str], fields: list[str], answers: int) -> list[str]:
    """Write one line to METEOR and read its answers.

    Raises:
        OSError: if METEOR has ended.
    """
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(" ||| ".join(fields) + "\n")
    process.stdin.flush()
    return [process.stdout.readline().strip() for _ in range(answers)]


def _field(text: str) -> str:
    return _printable(text.replace("|||", " ")) or NOTHING


def _printable(text: str) -> str:
    """Without control characters, which untrained models generate and Java takes for line ends."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _package() -> Path:
    spec = find_spec("pycocoevalcap")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("pycocoevalcap")
    return Path(next(iter(spec.submodule_search_locations)))


def _last_line(output: bytes) -> str:
    return output.decode(errors="replace").strip().rpartition("\n")[2]
