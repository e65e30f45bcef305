"""Small models with random weights, the same at each call, and adapters of PEFT on them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from torch import Tensor, nn

SIZES: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"intermediate_size": 32, "vocab_size": 50}
IDS = torch.randint(4, 50, (3, 7), generator=torch.Generator().manual_seed(1))
IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))

Make = Callable[[], nn.Module]


def _seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make().eval()


def bert(labels: int = 3, kind: str = "BertForSequenceClassification") -> Any:
    config = transformers.AutoConfig.for_model("bert", **SIZES, num_labels=labels)
    return _seeded(lambda: getattr(transformers, kind)(config))


def roberta(labels: int = 3, kind: str = "RobertaForSequenceClassification") -> Any:
    config = transformers.AutoConfig.for_model("roberta", **SIZES, num_labels=labels)
    return _seeded(lambda: getattr(transformers, kind)(config))


def gpt2(kind: str = "GPT2ForSequenceClassification") -> Any:
    sizes: dict[str, Any] = {
        "vocab_size": 50,
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": 20,
    }
    tokens = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    config = transformers.AutoConfig.for_model("gpt2", **sizes, **tokens, num_labels=3)
    return _seeded(lambda: getattr(transformers, kind)(config))


class _Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.plane, self.line = nn.Conv2d(3, 4, (3, 2), stride=(2, 1)), nn.Conv1d(4, 6, 3)
        self.space, self.fc = nn.Conv3d(1, 2, 2), nn.Linear(6, 2)

    def forward(self, image: Tensor) -> Tensor:
        line = self.line(self.plane(image).flatten(2))
        return self.fc(line.mean(-1)) + self.space(image[:, None]).mean((2, 3, 4))


def convolutions() -> nn.Module:
    return _seeded(_Convolutions)


@torch.no_grad()
def output(model: nn.Module) -> Tensor:
    """Logits for `IDS`, or the output for `IMAGE`."""
    reads = any(isinstance(module, nn.Embedding) for module in model.modules())
    found = model.eval()(IDS if reads else IMAGE)
    return getattr(found, "logits", found)


@torch.no_grad()
def move(model: nn.Module) -> None:
    """As training would: no trained tensor keeps its value."""
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


def trained_by_peft(make: Make, folder: Path, **config: Any) -> Tensor:
    """Let PEFT save an adapter that is not zero; what the model computes with it."""
    plain: Any = make()
    model = peft.get_peft_model(plain, peft.LoraConfig(**copy.deepcopy(config)))
    move(model)
    model.save_pretrained(str(folder))
    return output(model)


def opened_by_peft(make: Make, folder: Path) -> Tensor:
    """What the model computes with the adapter in a folder."""
    plain: Any = make()
    return output(peft.PeftModel.from_pretrained(plain, str(folder)))


def write(folder: Path, contents: dict[str, bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return folder
