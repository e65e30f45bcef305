"""Values that no run can have, told all at once before anything is started."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from string import Formatter

from lora_exp.errors import UserError
from lora_exp.runs import bounds
from lora_exp.runs.config import Config, TaskConfig

METHODS = ("lora", "full", "full_top", "bitfit", "adapter", "prefix", "prompt")
ADAPTERS = ("houlsby", "pfeiffer", "lin")
PRECISIONS = ("fp32", "bf16")
DEVICES = ("auto", "cpu", "cuda")
INITIALISATIONS = ("kaiming_uniform", "normal", "pissa")
BIASES = ("none", "lora_only", "all")
TASK_KINDS = ("classification", "agreement", "generation")
CORPORA = ("e2e", "webnlg", "dart")
METRICS = ("accuracy", "f1", "matthews_correlation", "pearson", "spearman")
TRACKERS = {
    "wandb": ("wandb",),
    "tensorboard": ("tensorboard",),
    "trackio": ("trackio",),
    "mlflow": ("mlflow", "sqlalchemy", "alembic"),
}
"""And the modules that each needs; those beside W&B are extras of their names."""
WANDB_MODES = ("online", "offline", "disabled")
SELECTIONS = ("best", "last")


def check(config: Config) -> None:
    """Refuse impossible values.

    Raises:
        UserError: with one line for each value that cannot be, all of them at once.
    """
    problems = bounds.problems(config)
    told = {problem.split("=")[0] for problem in problems}

    def require(holds: bool, key: str, value: object, rule: str) -> None:
        if not holds and key not in told:
            problems.append(f"{key}={value}: {rule}")

    def choice(key: str, value: str, options: tuple[str, ...]) -> None:
        require(value in options, key, value, f"must be one of {', '.join(options)}.")

    def named(key: str, value: str) -> None:
        require(bounds.is_name(value), key, value, "a name is made of letters, digits, and - _ .")

    def share(key: str, value: float | None) -> None:
        require(value is None or 0 <= value < 1, key, value, "must be at least 0 and below 1.")

    def positive(key: str, value: float | None) -> None:
        require(value is None or value > 0, key, value, "must be greater than 0.")

    task, model, lora, train = config.task, config.model, config.lora, config.train
    decoding = config.decoding

    named("task.name", task.name)
    for split in (*task.validation, *([] if task.test is None else [task.test])):
        named("task.test" if split == task.test else "task.validation", split)
    if task.subset is not None:
        named("task.subset", task.subset)
    if config.grid is not None:
        named("grid", config.grid)
    require(task.data_seed >= 0, "task.data_seed", task.data_seed, "must be at least 0.")
    choice("task.kind", task.kind, TASK_KINDS)
    for metric in task.metrics or ():
        choice("task.metrics", metric, METRICS)
    require(task.metrics != [], "task.metrics", task.metrics, "name at least one metric, or null.")
    require(bool(task.validation), "task.validation", task.validation, "name at least one split.")
    positive("task.train_examples", task.train_examples)
    require(
        task.kind == "agreement" or task.data_dir is not None or task.hub is not None,
        "task.data_dir",
        "null",
        "give the folder with the data (task.data_dir=DIR), or a hub data set (task.hub=ID).",
    )
    if task.kind == "classification":
        require(
            len(task.text) in (1, 2), "task.text", task.text, "name one or two columns of text."
        )
    elif task.kind == "generation":
        _check_generation(config, require, choice)
    else:
        for key, value in (("data_dir", task.data_dir), ("text", task.text or None)):
            require(
                value is None,
                f"task.{key}",
                value,
                f"task={task.name} generates its data; for your own: task=classification.",
            )

    share("model.dropout", model.dropout)
    share("model.head_dropout", model.head_dropout)

    choice("method", config.method, METHODS)
    positive("lora.r", lora.r)
    positive("lora.alpha", lora.alpha)
    share("lora.dropout", lora.dropout)
    choice("lora.init", lora.init, INITIALISATIONS)
    require(
        lora.init != "pissa" or model.init_from is None or config.method != "lora",
        "lora.init",
        "pissa",
        "takes the start of the adapter from the weights; leave out model.init_from, or lora.init.",
    )
    positive("lora.lr_ratio", lora.lr_ratio)
    choice("lora.bias", lora.bias, BIASES)
    placement = lora.placement
    require(placement.targets != [], "lora.placement.targets", "[]", "name a module, or null.")
    require(
        placement.layers is None
        or bool(re.fullmatch(r"\d+(-\d+)?(, *\d+(-\d+)?)*", placement.layers)),
        "lora.placement.layers",
        placement.layers,
        "must be numbers and ranges, such as 0-5 or 0,2,6-11.",
    )
    for pattern, rank in placement.rank_pattern.items():
        key = f"lora.placement.rank_pattern.{pattern}"
        require(rank >= 0, key, rank, "must be at least 0, which leaves the layers as they are.")
    for pattern, alpha in placement.alpha_pattern.items():
        positive(f"lora.placement.alpha_pattern.{pattern}", alpha)
    positive("full_top.layers", config.full_top.layers)
    choice("adapter.kind", config.adapter.kind, ADAPTERS)
    positive("adapter.size", config.adapter.size)
    positive("adapter.parameters", config.adapter.parameters)
    positive("prefix.length", config.prefix.length)
    positive("prefix.hidden", config.prefix.hidden)
    positive("prompt.length", config.prompt.length)

    positive("train.lr", train.lr)
    positive("train.epochs", train.epochs)
    positive("train.max_steps", train.max_steps)
    positive("train.batch_size", train.batch_size)
    positive("train.micro_batch_size", train.micro_batch_size)
    require(train.max_length > 2, "train.max_length", train.max_length, "must be greater than 2.")
    choice("train.precision", train.precision, PRECISIONS)
    require(
        0 <= train.warmup_ratio <= 1,
        "train.warmup_ratio",
        train.warmup_ratio,
        "must lie between 0 and 1; a number of updates is train.warmup_steps.",
    )
    require(
        train.warmup_steps is None or train.warmup_steps >= 0,
        "train.warmup_steps",
        train.warmup_steps,
        "must be at least 0.",
    )
    require(
        train.weight_decay >= 0, "train.weight_decay", train.weight_decay, "cannot be negative."
    )
    share("train.adam_beta1", train.adam_beta1)
    share("train.adam_beta2", train.adam_beta2)
    positive("train.adam_epsilon", train.adam_epsilon)
    require(
        train.max_grad_norm >= 0, "train.max_grad_norm", train.max_grad_norm, "cannot be negative."
    )
    share("train.label_smoothing", train.label_smoothing)
    require(
        train.label_smoothing == 0 or not task.regression,
        "train.label_smoothing",
        train.label_smoothing,
        "is of classes; this task predicts a number.",
    )
    choice("train.select", train.select, SELECTIONS)
    positive("train.eval_every", train.eval_every)
    positive("train.log_every", train.log_every)
    require(
        train.checkpoint_seconds >= 0,
        "train.checkpoint_seconds",
        train.checkpoint_seconds,
        "cannot be negative.",
    )

    positive("train.devices", train.devices)
    positive("train.nodes", train.nodes)

    for name, least in (
        ("examples", 0),
        ("beam_size", 1),
        ("no_repeat_ngram", 0),
        ("min_length", 0),
        ("max_new_tokens", 1),
        ("top_k", 0),
        ("batch_size", 1),
    ):
        value = getattr(decoding, name)
        rule = f"must be at least {least}."
        require(value is None or value >= least, f"decoding.{name}", value, rule)
    for name in ("repetition_penalty", "temperature", "top_p"):
        positive(f"decoding.{name}", getattr(decoding, name))
    require(decoding.top_p <= 1, "decoding.top_p", decoding.top_p, "must be at most 1.")
    require(
        not decoding.sample or decoding.beam_size == 1,
        "decoding.beam_size",
        decoding.beam_size,
        "decoding.sample=true draws one text; it needs decoding.beam_size=1.",
    )
    for name in ("stop", "banned"):
        texts = getattr(decoding, name)
        require(all(texts), f"decoding.{name}", texts, "a text in it is empty.")

    positive("pack.size", config.pack.size)
    choice("device", config.device, DEVICES)
    require(0 <= config.seed < 2**32, "seed", config.seed, "must lie between 0 and 2^32 - 1.")
    choice("tracker.name", config.tracker.name, ("none", *TRACKERS))
    for name in config.tracker.also:
        choice("tracker.also", name, tuple(TRACKERS))
    for name in (config.tracker.name, *config.tracker.also):
        require(is_installed(name), "tracker", name, how_to_install(name))
    choice("tracker.mode", config.tracker.mode, WANDB_MODES)

    if problems:
        raise UserError("\n".join(problems))


@cache
def is_installed(tracker: str) -> bool:
    """Whether the packages of a tracker are there; nothing of them is imported."""
    return all(find_spec(module) is not None for module in TRACKERS.get(tracker, ()))


def how_to_install(tracker: str) -> str:
    """What brings the packages of a tracker."""
    package = tracker if tracker == "wandb" else f"'lora-exp[{tracker}]'"
    return f"it is not installed: pip install {package}"


def _check_generation(
    config: Config,
    require: Callable[[bool, str, object, str], None],
    choice: Callable[[str, str, tuple[str, ...]], None],
) -> None:
    task, head_dropout = config.task, config.model.head_dropout
    require(
        head_dropout is None,
        "model.head_dropout",
        head_dropout,
        "a language model's head has no dropout; leave it out.",
    )
    require(
        task.metrics is None,
        "task.metrics",
        task.metrics,
        "is for labels; a text is measured by the metrics of its benchmark.",
    )
    require(
        not task.text, "task.text", task.text, "is for labels; here: task.source or task.template."
    )
    require(
        task.format is None or task.data_dir is not None,
        "task.format",
        task.format,
        "is of files; give their folder (task.data_dir=DIR).",
    )
    require(bool(task.references), "task.references", task.references, "name at least one column.")
    if task.corpus is not None:
        choice("task.corpus", task.corpus, CORPORA)
        for key, value in (("source", task.source), ("template", task.template)):
            untouched = value == getattr(TaskConfig(), key)
            require(untouched, f"task.{key}", value, f"task.corpus={task.corpus} has its own.")
    elif task.template is not None:
        try:
            names = placeholders(task.template)
        except ValueError as error:
            require(False, "task.template", task.template, f"{error}.")
        else:
            rule = "name a column in braces, such as {question}."
            require(bool(names), "task.template", task.template, rule)


def placeholders(template: str) -> list[str]:
    """The columns that stand in braces in a template, in their order, each once.

    Raises:
        ValueError: for braces that hold anything but a column's name.
    """
    names = []
    for _, name, spec, conversion in Formatter().parse(template):
        if name is None:
            continue
        if not name or name.isdigit() or spec or conversion or re.search(r"[.\[\]]", name):
            raise ValueError("braces hold the name of a column and nothing else")
        names.append(name)
    return list(dict.fromkeys(names))
