"""Only the top layers are trained, and what stands above them."""

from __future__ import annotations

from pathlib import Path

import pytest
from attaching import attached, batch, config_of, move, on_paper, write
from passes import logits_of
from safetensors.torch import load_file
from tiny import save
from transformers import GPT2Config

from lora_exp import methods
from lora_exp.errors import UserError


def test_published_number_of_trained_parameters() -> None:
    medium = GPT2Config(n_embd=1024, n_layer=24, n_head=16)
    backbone = on_paper(medium, config_of("gpt2-medium", "full_top"), writes=True)
    # 25.19M in Table 3 of Hu et al. 2021: two layers and the final norm.
    assert methods.parameter_counts(backbone, "full_top")["full_top"] == 25_194_496


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("bert", {"bert.encoder.layer.1", "bert.pooler", "classifier"}),
        ("roberta", {"roberta.encoder.layer.1", "classifier"}),
        ("deberta-v2", {"deberta.encoder.layer.1", "pooler", "classifier"}),
        ("gpt2", {"transformer.h.1", "transformer.ln_f", "score"}),
        ("llama", {"model.layers.1", "model.norm", "score"}),
    ],
)
def test_the_top_is_trained_and_saved(
    architecture: str, expected: set[str], tmp_path: Path
) -> None:
    folder = save(tmp_path / "model", architecture)
    backbone = attached(folder, "full_top", layers=1)
    trained = methods.trained(backbone.model)
    everything = dict(backbone.model.named_parameters())
    below = {n for n in everything if not n.startswith(tuple(f"{part}." for part in expected))}
    assert trained.keys() == everything.keys() - below
    logits_of(backbone, batch()).sum().backward()
    assert all(everything[name].grad is None for name in below)
    move(backbone)
    adapter = write(backbone, config_of(folder, "full_top", layers=1), tmp_path / "adapter")
    saved = load_file(adapter / "adapter_model.safetensors")
    assert saved.keys() == trained.keys()
    assert all(trained[name].equal(value) for name, value in saved.items())


def test_no_more_layers_than_there_are(tiny: Path) -> None:
    with pytest.raises(UserError, match=r"full_top\.layers=3: the model has 2 layers"):
        attached(tiny, "full_top", layers=3)
