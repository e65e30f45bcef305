"""The backbone: which pre-trained model, where it lies, and whether all of it was really loaded."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections import OrderedDict
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_exp.errors import UserError, nearest
from lora_exp.runs.config import ModelConfig

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

DROPOUTS = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "resid_pdrop",
    "embd_pdrop",
    "attn_pdrop",
    "hidden_dropout",
    "attention_dropout",
    "dropout",
    "embedding_dropout",
    "mlp_dropout",
)
"""What architectures call the dropout of their hidden states and attention."""

HEAD_DROPOUTS = {
    "albert": "classifier_dropout_prob",
    "deberta": "cls_dropout",
    "deberta-v2": "cls_dropout",
    "distilbert": "seq_classif_dropout",
}
"""What architectures call the dropout before the head, where it is not `classifier_dropout`."""

CONSTANTS = ("position_ids", "masked_bias", "inv_freq")
"""What old checkpoints hold besides weights: the architecture computes it."""


@dataclass(frozen=True)
class Backbone:
    """A pre-trained model with a head for a task, and its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    head: frozenset[str]
    """Names of the head's parameters: all outside the pre-trained part, and all that are new. None
    of a language model, whose head is pre-trained as well."""
    new: frozenset[str]
    """Names of the parameters that the checkpoint does not have."""
    weights: str = ""
    """Hash of the pre-trained weights, for adapters to know their backbone by."""

    @property
    def writes(self) -> bool:
        """It is a language model."""
        return not self.head

    @property
    def head_modules(self) -> set[str]:
        """The head's modules: whole ones outside the pre-trained part, single layers inside it."""
        modules = set()
        for parameter in self.head:
            part, _, rest = parameter.partition(".")
            inside = part == self.model.base_model_prefix
            modules.add(f"{part}.{rest.rsplit('.', 1)[0]}" if inside else part)
        return modules

    @property
    def longest(self) -> int:
        """Most tokens that the model has positions for."""
        table = getattr(self.model.base_model, "embeddings", None)
        positions = getattr(table, "position_embeddings", None)
        limits = [self.tokenizer.model_max_length]
        if positions is not None:
            limits.append(positions.num_embeddings - first_position(self.model))
        elif getattr(self.model.config, "max_position_embeddings", None):
            limits.append(self.model.config.max_position_embeddings)
        return min(limits) - getattr(self.model.base_model, "in_front", 0)


def sharing(backbone: Backbone) -> Backbone:
    """Another model around the very same pre-trained weights, with a head of its own."""
    model = backbone.model
    shared = {id(p): p for name, p in model.named_parameters() if name not in backbone.head}
    shared |= {id(buffer): buffer for buffer in model.buffers()}
    for module in model.modules():  # most of their many tables are empty: quicker to make anew
        tables = [one for one in vars(module).values() if type(one) in (dict, OrderedDict)]
        shared |= {id(one): type(one)() for one in tables if not one}
    return replace(backbone, model=deepcopy(model, shared))


def share(backbone: Backbone, other: Backbone) -> None:
    """Let a backbone have another one's pre-trained weights instead of its own equal ones."""
    theirs = dict(other.model.named_parameters())
    for name, parameter in backbone.model.named_parameters():
        if name not in backbone.head and name not in other.head:
            parameter.data = theirs[name].data


def first_position(model: PreTrainedModel) -> int:
    """The number of the first token's position: behind the padding index in RoBERTa and its kin."""
    table = getattr(model.base_model, "embeddings", None)
    padding = getattr(getattr(table, "position_embeddings", None), "padding_idx", None)
    return 0 if padding is None else padding + 1


def load_tokenizer(model: ModelConfig) -> PreTrainedTokenizerBase:
    """The model's tokenizer.

    Raises:
        UserError: if it cannot be found, or knows no words.
    """
    import transformers

    transformers.logging.set_verbosity_error()
    place = locate(model)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(place, **_origin(model, place))
    except Exception as error:  # each format of tokenizer has its own
        raise UserError(_cannot_load(model, error)) from error
    _check_tokenizer(model, tokenizer)
    if tokenizer.pad_token_id is None:  # GPT-2: batches are padded only where nothing looks
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load(
    model: ModelConfig, outputs: int | None, tokenizer: PreTrainedTokenizerBase | None = None
) -> Backbone:
    """The pre-trained model in fp32 with a head of `outputs` values, new parts left as they come.

    Args:
        model: which one.
        outputs: number of classes; 1 for regression; None for a causal language model with the
            head it was pre-trained with.
        tokenizer: the model's, if it is loaded already.

    Raises:
        UserError: if it cannot be found, needs code of its own, or its weights do not fit.
    """
    import torch
    import transformers

    from lora_exp.lora import backbone_hash

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    # For weights without safetensors it would ask a bot to add them to the owner's repository.
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
    place = locate(model)
    config = load_config(model, outputs)
    auto: Any = (
        transformers.AutoModelForCausalLM
        if outputs is None
        else transformers.AutoModelForSequenceClassification
    )
    try:
        loaded, report = auto.from_pretrained(
            place,
            config=config,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **_origin(model, place),
        )
    except Exception as error:  # each format of weights has its own
        raise UserError(_cannot_load(model, error)) from error
    tokenizer = tokenizer or load_tokenizer(model)
    prefix = loaded.base_model_prefix + "."
    mismatched = {_first(key) for key in report["mismatched_keys"]}
    new = frozenset(report["missing_keys"]) | mismatched
    _check_weights(model, loaded, new, set(report["unexpected_keys"]), mismatched)
    names = [name for name, _ in loaded.named_parameters()]
    head = {name for name in names if not name.startswith(prefix)} | (new & set(names))
    if outputs is None:
        _check_language_model(model, loaded, head & new)
        head = set()
    padding = loaded.config.pad_token_id
    if padding is None or padding < 0:  # else it stays: RoBERTa's positions start behind it
        loaded.config.pad_token_id = tokenizer.pad_token_id
    weights = backbone_hash(loaded)
    return Backbone(loaded, tokenizer, frozenset(head), new & frozenset(names), weights)


def load_config(model: ModelConfig, outputs: int | None) -> PreTrainedConfig:
    """The architecture, with what `model.dropout` and `model.head_dropout` change in it.

    Raises:
        UserError: if there is none, or it has no such dropout.
    """
    import transformers

    place = locate(model)
    try:
        config = transformers.AutoConfig.from_pretrained(place, **_origin(model, place))
    except Exception as error:
        raise UserError(_cannot_load(model, error)) from error
    if outputs is not None:
        config.num_labels = outputs
    if outputs == 1:
        config.problem_type = "regression"
    if model.dropout is not None:
        names = [name for name in DROPOUTS if hasattr(config, name)]
        if not names:
            raise UserError(f"model.dropout: {config.model_type} has no dropout to change.")
        for name in names:
            setattr(config, name, model.dropout)
    if model.head_dropout is not None:
        name = HEAD_DROPOUTS.get(config.model_type, "classifier_dropout")
        if not hasattr(config, name) and config.model_type not in HEAD_DROPOUTS:
            raise UserError(f"model.head_dropout: the head of {config.model_type} has no dropout.")
        setattr(config, name, model.head_dropout)
    return config


def locate(model: ModelConfig) -> str:
    """The local folder, or the id on the hub, that `model.name_or_path` stands for.

    Raises:
        UserError: for a package that is not installed or a folder that does not exist.
    """
    name = model.name_or_path
    if name.startswith("package:"):
        path = _in_package(name)
        if not path.is_dir():
            raise UserError(f"model.name_or_path={name}: there is no folder {path}.")
    else:
        path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(
                f"model.name_or_path={name}: this folder has no config.json. A model's "
                "folder holds config.json, model.safetensors and the tokenizer's files."
            )
        return str(path)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        parent = path.parent
        siblings = [entry.name for entry in parent.glob("[!.]*/")] if parent.is_dir() else []
        hint = nearest(path.name, siblings, kind=f"folders in {parent}") if siblings else ""
        raise UserError(f"model.name_or_path={name}: there is no such folder. {hint}".rstrip())
    return name


def _in_package(name: str) -> Path:
    """The folder that `package:MODULE/FOLDER` names, whether it exists or not."""
    package, _, folder = name.removeprefix("package:").partition("/")
    try:  # to find one inside another would import, and so run, the outer one
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
    except ValueError:  # it has no place of its own, as __main__
        spec = None
    if spec is None or not spec.submodule_search_locations:
        distribution = package.replace("_", "-")
        raise UserError(
            f"model.name_or_path={name}: the package {distribution} is not installed. "
            f"Install it (pip install {distribution}), or choose another model."
        )
    return Path(spec.submodule_search_locations[0]) / folder


def fingerprint(model: ModelConfig) -> str:
    """What identifies the backbone in a run's signature: its content, or its id on the hub."""
    place = Path(locate(model))
    if not place.is_dir():
        return f"hub:{model.name_or_path}@{model.revision or 'main'}"
    files = sorted(
        file
        for file in place.iterdir()
        if file.suffix in (".json", ".txt", ".safetensors", ".bin", ".model")
    )
    states = tuple((str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files)
    return "files:" + _content(states)


@cache
def _content(states: tuple[tuple[str, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for path, size, _ in states:
        digest.update(f"{Path(path).name}:{size}:".encode())
        with Path(path).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _origin(model: ModelConfig, place: str) -> dict[str, Any]:
    """What transformers is told of where to look. Without network into the cache only: the hub's
    retries take half a minute."""
    from lora_exp.hub import unreachable

    return {
        "revision": model.revision or "main",
        "trust_remote_code": False,
        "local_files_only": not Path(place).is_dir() and unreachable(),
    }


def _check_weights(
    model: ModelConfig,
    loaded: PreTrainedModel,
    new: frozenset[str],
    unexpected: set[str],
    mismatched: set[str],
) -> None:
    """A head may be new or another task's; the pre-trained part must be there, all of it."""
    prefix = loaded.base_model_prefix + "."
    missing = {name for name in new if name.startswith(prefix) and ".pooler." not in f".{name}"}
    # A checkpoint of the bare backbone has no prefix; one of another task has other heads.
    own = {name.split(".")[0] for name, _ in loaded.base_model.named_parameters()}
    foreign = {
        name
        for name in unexpected
        if name.removeprefix(prefix).split(".")[0] in own
        and ".pooler." not in f".{name}"
        and not name.endswith(CONSTANTS)
    }
    if not missing and not foreign:
        return
    lines = [f"model.name_or_path={model.name_or_path}: the weights do not fit the architecture."]
    for names, what in (
        (missing - mismatched, "missing from the checkpoint"),
        (missing & mismatched, "of another shape in the checkpoint"),
        (foreign, "in the checkpoint but not in the architecture"),
    ):
        if names:
            shown = ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")
            lines.append(f"  {len(names)} tensors {what}: {shown}")
    lines.append("Check that config.json and the weights belong together.")
    raise UserError("\n".join(lines))


def _check_language_model(model: ModelConfig, loaded: PreTrainedModel, new: set[str]) -> None:
    """Its head must be pre-trained, and no more than the matrix that the loss applies to the hidden
    states (`train/vocabulary.py`)."""
    import torch

    if new:
        raise UserError(
            f"model.name_or_path={model.name_or_path}: the checkpoint has no head of a language "
            f"model ({', '.join(sorted(new))}). Choose one that was trained to write text."
        )
    head = loaded.get_output_embeddings()
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        loaded.eval()
        given = loaded(input_ids=ids).logits
        hidden = loaded.base_model(input_ids=ids).last_hidden_state
        fits = isinstance(head, torch.nn.Linear) and torch.allclose(
            head(hidden), given, rtol=1e-3, atol=1e-3
        )
        alone = loaded(input_ids=ids[:, :1]).logits
    if not fits or not torch.allclose(alone, given[:, :1], rtol=1e-3, atol=1e-3):
        raise UserError(
            f"model.name_or_path={model.name_or_path}: {loaded.config.model_type} is not a causal "
            "language model with a plain head, such as GPT-2, Llama or Qwen. Choose one."
        )


def _check_tokenizer(model: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Without the tokenizer's files transformers makes one for which every word is unknown."""
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise UserError(
            f"model.name_or_path={model.name_or_path}: there is no tokenizer with words in it. "
            "The model's folder must hold the tokenizer's files as well: tokenizer.json, or those "
            "of its kind (vocab.txt, vocab.json and merges.txt, spm.model)."
        )


def end_of_text(model: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends a text.

    Raises:
        UserError: if the tokenizer has none.
    """
    if not isinstance(tokenizer.eos_token_id, int):
        raise UserError(
            f"model.name_or_path={model.name_or_path}: its tokenizer has no eos_token, so no text "
            "could end. Give eos_token in the folder's tokenizer_config.json."
        )
    return tokenizer.eos_token_id


def _own_code(model: ModelConfig) -> str:
    return (
        f"model.name_or_path={model.name_or_path}: this model brings code of its own (auto_map), "
        "which lora_exp never runs. Choose one whose architecture is part of transformers."
    )


def _cannot_load(model: ModelConfig, error: Exception) -> str:
    name, kind = model.name_or_path, type(error).__name__
    text = str(error)
    if "trust_remote_code" in text or "custom code" in text:
        return _own_code(model)
    if kind == "UnpicklingError":  # torch's own text tells how to run what is in there
        text = (
            "its weights are a pickle that is damaged or holds more than tensors; lora_exp runs "
            "no code from it. Take the model's model.safetensors instead."
        )
    elif kind == "SafetensorError":
        text = f"its safetensors file is damaged or incomplete ({text}). Copy it again."
    elif not isinstance(error, (OSError, ValueError, ImportError)):
        text = f"{kind}: {text}"
    if Path(locate(model)).is_dir():
        return f"model.name_or_path={name}: cannot be loaded from {locate(model)}: {text}"
    return (
        f"model.name_or_path={name}: not in the local cache, and the hub did not give it: "
        f"{_first_line(text)}\n"
        "Check the spelling (ORGANISATION/NAME) and the network; for a private model, log in with "
        "`hf auth login`.\n"
        "Without network: on a machine that has one, `hf download "
        f"{name} --local-dir DIR`, bring DIR here (config.json, model.safetensors, tokenizer "
        "files) and give model.name_or_path=DIR."
    )


def _first(key: Any) -> str:
    return key if isinstance(key, str) else key[0]


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else "no reason given"
