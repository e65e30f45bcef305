"""Models and data from a hub that is on this machine, and from one that does not answer."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hub
import pytest
import tiny
import torch
from safetensors.torch import load_file

REPOSITORY = Path(__file__).resolve().parents[1]
MODEL, PICKLED, DATA = "org/tiny-roberta", "org/pickled-roberta", "nyu-mll/glue"
NAMES = ["entailment", "not_entailment"]
ROWS = [(f"The king {verb}.", "The nurse smiles.", verb == "sings") for verb in tiny.words()]
SPLITS = {
    "train": [(first, second, int(label)) for first, second, label in ROWS],
    "validation": [("The king smiles.", "The nurse sings.", 1), ("A b.", "C d.", 0)],
}
TASK = (
    "import json, sys, time\n"
    "from lora_exp import tasks\n"
    "from lora_exp.errors import UserError\n"
    "from lora_exp.runs.config import TaskConfig\n"
    "task = TaskConfig(name='rte', hub='nyu-mll/glue', text=['sentence1', 'sentence2'])\n"
)
LOAD = """
import json, time
import torch
from lora_exp import models
from lora_exp.errors import UserError
from lora_exp.runs.config import ModelConfig

def told(name):
    try:
        models.load(ModelConfig(name), 2)
    except UserError as error:
        return str(error)

def loaded(name, other):
    own = models.load(ModelConfig(name), 2).model.base_model.state_dict()
    return all(torch.equal(tensor, own[key])
               for key, tensor in other.base_model.state_dict().items())

"""


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("hub")
    hub.write_glue(folder / "datasets" / DATA, SPLITS)
    saved = tiny.save(folder / "models" / MODEL, "roberta")
    pickled = shutil.copytree(saved, folder / "models" / PICKLED)
    (pickled / "model.safetensors").unlink()
    torch.save(load_file(saved / "model.safetensors"), pickled / "pytorch_model.bin")
    with hub.serve(folder) as address:
        yield address


def run(arguments: list[str], endpoint: str, home: Path) -> subprocess.CompletedProcess[str]:
    """A Python of its own: the libraries read where the hub is only once, on import."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=REPOSITORY,
        env=hub.environment(endpoint, home),
        capture_output=True,
        text=True,
    )


def told(code: str, endpoint: str, home: Path) -> Any:
    """What the code prints, which must be JSON."""
    result = run(["-c", code], endpoint, home)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_transformers_loads_a_model_and_the_hub_is_never_asked_to_convert_one(endpoint, tmp_path):
    code = f"""{LOAD}
from transformers import AutoModelForSequenceClassification, AutoTokenizer, modeling_utils
plain = AutoModelForSequenceClassification.from_pretrained("{MODEL}")
words = AutoTokenizer.from_pretrained("{MODEL}")("the king sings")["input_ids"]
asked = []
modeling_utils.auto_conversion = lambda *_, **__: asked.append("a bot")
pickled = models.load(ModelConfig("{PICKLED}"), 2).model
same = [loaded("{MODEL}", plain), loaded("{MODEL}", pickled)]
print(json.dumps([type(plain).__name__, len(words), same, asked, told("org/tiny-robrta")]))
"""
    name, words, same, asked, wrong = told(code, endpoint, tmp_path)
    assert (name, words, same) == ("RobertaForSequenceClassification", 5, [True, True])
    assert asked == []
    assert wrong.startswith("model.name_or_path=org/tiny-robrta: not in the local cache, and the h")
    assert f"{endpoint} cannot be reached" not in wrong


def test_a_model_is_downloaded_and_later_found_in_the_cache_without_a_word(endpoint, tmp_path):
    code = LOAD + (
        f"backbone = models.load(ModelConfig('{MODEL}'), 2)\n"
        "digest = backbone.model.base_model.state_dict()['encoder.layer.1.output.dense.weight']\n"
        "print(json.dumps([type(backbone.model).__name__, backbone.model.num_labels, "
        "len(backbone.tokenizer), sorted(backbone.new), digest.double().sum().item()]))"
    )
    nowhere = hub.nowhere()
    online, offline = (run(["-c", code], place, tmp_path) for place in (endpoint, nowhere))
    assert online.returncode == offline.returncode == 0, online.stderr + offline.stderr
    assert online.stderr == offline.stderr == ""
    assert online.stdout == offline.stdout
    name, outputs, words, new, _ = json.loads(offline.stdout)
    assert (name, outputs, words) == ("RobertaForSequenceClassification", 2, len(tiny.words()))
    assert {parameter.split(".")[0] for parameter in new} == {"classifier"}


def test_without_network_a_model_that_is_not_in_the_cache_is_told_at_once(tmp_path):
    code = LOAD + (
        "start = time.monotonic()\n"
        f"message = told('{MODEL}')\n"
        "print(json.dumps([message, time.monotonic() - start]))"
    )
    message, seconds = told(code, hub.nowhere(), tmp_path)
    first, *cure = message.splitlines()
    assert first.startswith(f"model.name_or_path={MODEL}: not in the local cache, and the hub did ")
    assert f"`hf download {MODEL} --local-dir DIR`" in "\n".join(cure)
    assert cure[-1].endswith("and give model.name_or_path=DIR.")
    assert seconds < 20


def test_a_data_set_is_downloaded_and_later_found_in_the_cache(endpoint, tmp_path):
    code = TASK + (
        "found = []\n"
        "for task.subset, task.labels in (('rte', None), ('rte', ['yes', 'no']),\n"
        f"                                 ('rte', {NAMES[::-1]})):\n"
        "    data = tasks.load(task)\n"
        "    split = data.validation['validation']\n"
        "    found.append([data.labels, split.labels, split.texts, len(data.train)])\n"
        "print(json.dumps(found))"
    )
    texts = [list(row[:2]) for row in SPLITS["validation"]]
    expected = [
        [NAMES, [1, 0], texts, len(ROWS)],
        [["yes", "no"], [1, 0], texts, len(ROWS)],
        # The data set says which number is which name, so the order of task.labels decides nothing.
        [NAMES[::-1], [0, 1], texts, len(ROWS)],
    ]
    assert told(code, endpoint, tmp_path) == expected
    assert told(code, hub.nowhere(), tmp_path) == expected


def test_what_the_hub_does_not_have(endpoint, tmp_path):
    code = TASK + (
        "messages = []\n"
        "for changes in ({'hub': 'nyu-mll/gleu'}, {'subset': 'rtte'},\n"
        "                {'validation': ['validaton']}, {'text': ['sentense1']},\n"
        "                {'label': 'idx', 'labels': ['yes', 'no']}):\n"
        "    try:\n"
        "        tasks.load(TaskConfig(**(vars(task) | {'subset': 'rte'} | changes)))\n"
        "    except UserError as error:\n"
        "        messages.append(str(error))\n"
        "print(json.dumps(messages))"
    )
    repo, subset, split, column, label = told(code, endpoint, tmp_path)
    assert repo.startswith(
        f"task.hub=nyu-mll/gleu (rte): the hub ({endpoint}) has no such data set, or it is private."
    )
    assert "task.data_dir=DIR, where DIR/rte holds train.tsv and validation.tsv" in repo
    assert subset.startswith(
        "task.hub=nyu-mll/glue (rtte): it cannot be loaded: BuilderConfig 'rtt"
    )
    assert split == "nyu-mll/glue (rte): no split 'validaton'. Did you mean validation?"
    assert column == (
        "nyu-mll/glue (rte): no column 'sentense1'. Did you mean sentence1 or sentence2?"
    )
    assert label == (
        "nyu-mll/glue (rte), split train, row 3: unknown label '2'. Known are: yes, no, 0, 1."
    )


def test_without_network_the_error_comes_at_once_and_says_what_to_do(tmp_path):
    code = TASK + (
        "start = time.monotonic()\n"
        "try:\n"
        "    tasks.load(task)\n"
        "except UserError as error:\n"
        "    print(json.dumps([str(error), time.monotonic() - start]))"
    )
    nowhere = hub.nowhere()
    message, seconds = told(code, nowhere, tmp_path)
    assert message.splitlines() == [
        f"task.hub=nyu-mll/glue: the hub ({nowhere}) cannot be reached, and the cache "
        f"({tmp_path / 'datasets'}) does not have it.",
        "Instead, bring the files: task.data_dir=DIR, where DIR/rte holds train.tsv and "
        "validation.tsv (or .csv, .jsonl, .parquet) with the columns sentence1, sentence2, label.",
        "Or set HF_ENDPOINT to a mirror of the hub, or HF_HOME to a cache that was filled on a "
        "machine with network.",
    ]
    assert seconds < 20  # the library's own retries take 23


def test_a_run_whose_model_and_data_come_from_the_hub(endpoint, tmp_path):
    outputs = tmp_path / "outputs"
    overrides = ["task=rte", f"model.name_or_path={MODEL}", f"outputs={outputs}", "device=cpu"]
    limits = ["train.max_steps=2", "train.batch_size=4", "train.max_length=32"]
    result = run(["-m", "lora_exp", *overrides, *limits], endpoint, tmp_path / "home")
    assert result.returncode == 0, result.stderr
    (written,) = outputs.glob("runs/rte-tiny-roberta-lora-*/result.json")
    assert 0 <= json.loads(written.read_text())["metrics"]["accuracy"] <= 1
