"""Runs of tiny models that have learned something, made once for each test module."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import forked
import tiny

from lora_exp.tasks import agreement

CLASSES = ("bad", "good", "so-so")
_WORDS = ("doctor", "pilot", "waits")
_MORE = [text for text, _ in agreement.generate(seed=0)[1][:20]]
ROWS = [
    (f"{word} {word} {more}", label, number - 1.0)
    for more in _MORE
    for number, (word, label) in enumerate(zip(_WORDS, CLASSES, strict=True))
]
"""Texts of unequal lengths, each with a class and a number, which their first words tell."""
TEXTS = [text for text, _, _ in ROWS]
PAIRS = [
    (f"{food} near the {place}", f"The {place} has {food}.")
    for food in ("pizza", "soup", "fish", "cake")
    for place in ("river", "market", "station", "harbour", "castle")
]
"""Sources and what to write for them."""


@dataclass
class Learned:
    """Makes runs below a folder, each only once."""

    root: Path
    _runs: dict[tuple[str, ...], Path] = field(default_factory=dict)

    def model(self, architecture: str) -> Path:
        """The folder of a tiny backbone; `writer` is a language model."""
        path = self.root / architecture
        if path.exists():
            return path
        if architecture == "writer":
            return tiny.save_writer(path, [text for pair in PAIRS for text in pair])
        return tiny.save(path, architecture, initializer_range=0.3)

    def data(self) -> Path:
        """The folder with the texts, and in it that with the pairs."""
        folder = self.root / "data"
        if not folder.exists():
            (folder / "pairs").mkdir(parents=True)
            table = "".join(f"{text}\t{label}\t{number}\n" for text, label, number in ROWS)
            lines = [json.dumps({"source": one, "references": [other]}) for one, other in PAIRS]
            for split in ("train", "validation"):
                (folder / f"{split}.tsv").write_text(f"text\tclass\tnumber\n{table}")
                (folder / "pairs" / f"{split}.jsonl").write_text("\n".join(lines))
        return folder

    def run(self, architecture: str, *overrides: str) -> Path:
        """The folder of a run that is done."""
        key = (architecture, *overrides)
        if key not in self._runs:
            outputs = self.root / f"outputs{len(self._runs)}"
            ended = forked.run(
                f"model.name_or_path={self.model(architecture)}",
                f"outputs={outputs}",
                "train.lr=1e-2",
                "train.warmup_ratio=0",
                *overrides,
                before=_without_java,
            )
            assert ended.status == 0, ended.output
            self._runs[key] = forked.folder_of(outputs)
        return self._runs[key]

    def classifying(self, architecture: str, *overrides: str) -> Path:
        """The folder of a run that tells the classes of texts."""
        return self.run(architecture, *self._texts("class"), *overrides)

    def rating(self, architecture: str, *overrides: str) -> Path:
        """The folder of a run that predicts a number for a text."""
        return self.run(architecture, *self._texts("number"), "task.regression=true", *overrides)

    def writing(self, *overrides: str) -> Path:
        """The folder of a run that writes texts."""
        data = ("task=generation", f"task.data_dir={self.data() / 'pairs'}")
        size = ("train.batch_size=4", "train.epochs=4", "decoding.max_new_tokens=12")
        size += ("decoding.min_length=4",)
        return self.run("writer", *data, *size, *overrides)

    def _texts(self, label: str) -> tuple[str, ...]:
        data = ("task=classification", f"task.data_dir={self.data()}", "task.text=[text]")
        return (*data, f"task.label={label}", "train.epochs=6", "train.batch_size=8")


def _without_java() -> None:
    """METEOR takes ten times as long as all the rest."""
    os.environ["PATH"] = ""
