"""Every file in conf/ composes into a valid run, and every recipe holds its published values."""

import ast
import copy
import inspect
from collections.abc import Iterator
from functools import cache, reduce
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from lora_exp.cli import CONF
from lora_exp.runs import config as module
from lora_exp.runs.checks import check
from lora_exp.runs.config import Config
from lora_exp.runs.values import from_mapping, schema

ROOT = Path(__file__).parent.parent
RECIPES = ROOT.parent / "shared" / "reference" / "recipes.yaml"

ALL = sorted(
    path.relative_to(CONF / "experiment").with_suffix("").as_posix()
    for path in (CONF / "experiment").rglob("*.yaml")
)
FROM_MNLI = [name for name in ALL if name.endswith("_from_mnli")]
GPT2 = [name for name in ALL if name.startswith("gpt2")]
EXPERIMENTS = [name for name in ALL if name not in FROM_MNLI + GPT2]
VARIANTS = [name for name in EXPERIMENTS if name.endswith(("_paper", "_restricted"))]
SCRIPTS = [name for name in EXPERIMENTS if name not in VARIANTS]
CHOICES = [
    (group, path.stem)
    for group in ("task", "model", "method", "lora/placement", "tracker")
    for path in sorted((CONF / group).glob("*.yaml"))
]
OWN_DATA = {
    "classification": ("task.data_dir=DIR", "task.text=[text]"),
    "generation": ("task.data_dir=DIR",),
}

# What a recipe is: the keys that a script's file states itself, so that one file shows it whole.
WHOLE = {"lora.r", "lora.alpha"} | {
    f"train.{name}"
    for name in (
        "lr",
        "epochs",
        "batch_size",
        "max_length",
        "warmup_ratio",
        "warmup_steps",
        "weight_decay",
    )
}
WHOLE_DEBERTA = WHOLE | {"model.head_dropout", "lora.init", "train.precision", "train.eval_every"}

MODELS = {
    "roberta_base": "roberta-base",
    "roberta_large": "roberta-large",
    "deberta_v2_xxl": "microsoft/deberta-v2-xxlarge",
}
BLOCKS = {"": "script", "_paper": "paper", "_restricted": "lora_restricted_paper"}


@pytest.fixture(scope="module", autouse=True)
def conf() -> Iterator[None]:
    """Hydra, set up as the command line does."""
    ConfigStore.instance().store(name="schema", node=schema())
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def of(part: str) -> dict[str, Any]:
    if not RECIPES.exists():
        pytest.skip("../shared/reference/recipes.yaml is not beside the repository")
    return yaml.safe_load(RECIPES.read_text())[part]


@pytest.fixture(scope="module")
def recipes() -> dict[str, Any]:
    return of("glue")


def run(*overrides: str) -> Config:
    """The run that a command line describes, checked."""
    return copy.deepcopy(composed(overrides))


@cache  # composing takes 60 ms, and most experiments are looked at from several sides
def composed(overrides: tuple[str, ...]) -> Config:
    config = from_mapping(compose("config", list(overrides)))
    check(config)
    return config


def value(config: Config, key: str) -> Any:
    return reduce(getattr, key.split("."), config)


def read(choice: str) -> tuple[str, DictConfig]:
    """A file of conf/ as text, and what it states in itself."""
    text = (CONF / f"{choice}.yaml").read_text()
    values = OmegaConf.create(text)
    assert isinstance(values, DictConfig)
    values.pop("defaults", None)
    return text, values


def stated(choice: str) -> dict[str, Any]:
    """The values that a file of conf/ states in itself, by their key in the whole config."""
    text, values = read(choice)
    group = choice.rpartition("/")[0].replace("/", ".")
    found: dict[str, Any] = {}

    def visit(node: Any, prefix: str) -> None:
        for name, below in node.items():
            if isinstance(below, dict):
                visit(below, f"{prefix}{name}.")
            else:
                found[prefix + name] = below

    prefix = "" if text.startswith("# @package _global_\n") else f"{group}."
    visit(OmegaConf.to_container(values), prefix)
    return found


def published(name: str, recipes: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """An experiment's recipe, the script's values where the paper gives none; and its source."""
    folder, _, task = name.partition("/")
    task, underscore, variant = task.partition("_")
    blocks = recipes["models"][MODELS[folder]]["tasks"][task]
    script, block = blocks["script"], blocks[BLOCKS[underscore + variant]]
    recipe = script | block
    deberta = folder.startswith("deberta")
    normal = "normal" in recipes["protocol"]["lora_init"]["deberta_v2" if deberta else "roberta"]
    warmup_steps = block.get("warmup_steps")
    return {
        "lora.r": recipe["lora_r"],
        "lora.alpha": recipe["lora_alpha"],
        "lora.dropout": recipes["protocol"]["lora_dropout"],
        "lora.init": "normal" if normal else "kaiming_uniform",
        "model.head_dropout": recipe.get("cls_dropout"),
        "train.lr": recipe["learning_rate"],
        "train.epochs": recipe["epochs"],
        "train.batch_size": block.get("global_batch_size", block.get("batch_size")),
        "train.max_length": recipe["max_seq_length"],
        "train.precision": "bf16" if recipe["fp16"] else "fp32",
        "train.warmup_ratio": 0.0 if warmup_steps is not None else recipe["warmup_ratio"],
        "train.warmup_steps": warmup_steps,
        "train.weight_decay": recipe["weight_decay"],
        "train.eval_every": recipe.get("eval_every_steps"),
        "train.adam_epsilon": recipes["protocol"]["adam_epsilon"],
        "train.max_grad_norm": recipes["protocol"]["max_grad_norm"],
    }, block["source"]


@pytest.mark.parametrize(("group", "option"), CHOICES)
def test_each_choice_composes_and_what_it_states_stands(group: str, option: str) -> None:
    # Of a method where no task has a recipe for it.
    of = ("task=classification", *OWN_DATA["classification"]) if group == "method" else ()
    config = run(f"{group}={option}", *of, *OWN_DATA.get(option, ()))
    values = stated(f"{group}/{option}")
    assert {key: value(config, key) for key in values} == values


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_each_experiment_composes_with_the_model_and_task_of_its_name(name: str) -> None:
    config = run(f"experiment={name}")
    folder, _, task = name.partition("/")
    assert config.model.name_or_path == stated(f"model/{folder}")["model.name_or_path"]
    assert config.task.name == task.partition("_")[0]
    assert config.lora.placement == module.PlacementConfig("qv")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_each_experiment_begins_with_its_command(name: str) -> None:
    text, _ = read(f"experiment/{name}")
    assert text.splitlines()[:2] == [
        "# @package _global_",
        f"# python -m lora_exp experiment={name}",
    ]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_s_file_states_its_whole_recipe(name: str) -> None:
    whole = WHOLE_DEBERTA if name.startswith("deberta") else WHOLE
    assert set(stated(f"experiment/{name}")) == whole


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_states_only_what_differs_from_the_script(name: str) -> None:
    base = run(f"experiment={name.rpartition('_')[0]}")
    values = stated(f"experiment/{name}")
    assert values
    assert [key for key in values if value(base, key) == values[key]] == []


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_each_experiment_is_the_published_recipe(name: str, recipes: dict[str, Any]) -> None:
    recipe, source = published(name, recipes)
    config = run(f"experiment={name}")
    assert {key: value(config, key) for key in recipe} == recipe
    assert source in read(f"experiment/{name}")[0].splitlines()[2]


def test_each_published_recipe_has_its_experiment(recipes: dict[str, Any]) -> None:
    published_names = {
        f"{folder}/{task}{suffix}"
        for folder, model in MODELS.items()
        for task, blocks in recipes["models"][model]["tasks"].items()
        for suffix, block in BLOCKS.items()
        if block in blocks
    }
    assert set(EXPERIMENTS) == published_names


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_where_a_run_does_not_start_as_published_its_file_says_so(
    name: str, recipes: dict[str, Any]
) -> None:
    from_mnli = (
        name.partition("/")[2].removesuffix("_paper") in recipes["protocol"]["init_from_mnli"]
    )
    text, _ = read(f"experiment/{name}")
    assert ("starts from the best MNLI adapter" in text) is from_mnli


def test_those_that_start_from_mnli_differ_in_that_alone(recipes: dict[str, Any]) -> None:
    tasks = recipes["protocol"]["init_from_mnli"]
    assert set(FROM_MNLI) == {f"{folder}/{task}_from_mnli" for folder in MODELS for task in tasks}
    for name in FROM_MNLI:
        assert read(f"experiment/{name}")[0].splitlines()[1].endswith(f"experiment={name}")
        config = run(f"experiment={name}")
        assert config.model.init_from == "best:task=mnli"
        config.model.init_from = None
        assert config == run(f"experiment={name.removesuffix('_from_mnli')}")


def test_a_task_alone_is_the_script_s_recipe_for_roberta_base() -> None:
    tasks = [name for name in SCRIPTS if name.startswith("roberta_base/")]
    assert len(tasks) == 8
    for name in tasks:
        assert run(f"task={name.partition('/')[2]}") == run(f"experiment={name}")


def test_an_override_changes_its_value_and_no_other() -> None:
    expected = run("experiment=roberta_base/mnli")
    expected.lora.r = 4
    assert run("task=mnli", "lora.r=4") == expected


def test_a_task_brings_its_backbone_and_the_command_line_wins_in_any_order() -> None:
    brought, given = (
        stated(f"model/{name}")["model.name_or_path"] for name in ("roberta_base", "deberta_v2_xxl")
    )
    assert run("task=mnli").model.name_or_path == brought
    for overrides in permutations(("task=mnli", "model=deberta_v2_xxl")):
        assert run(*overrides).model.name_or_path == given


def test_the_command_line_wins_over_an_experiment_in_any_order() -> None:
    experiment = "experiment=roberta_large/mnli_paper"
    expected = run(experiment)
    expected.model.name_or_path = stated("model/minilm")["model.name_or_path"]
    expected.lora.r = 4
    for overrides in permutations((experiment, "model=minilm", "lora.r=4")):
        assert run(*overrides) == expected


def test_each_key_of_the_config_is_explained_where_it_is_declared() -> None:
    """By a docstring below it; a section by the docstring of its own dataclass."""
    classes = {
        node.name: node
        for node in ast.parse(inspect.getsource(module)).body
        if isinstance(node, ast.ClassDef)
    }
    assert Config.__name__ in classes
    silent = [name for name, node in classes.items() if not ast.get_docstring(node)]
    for name, node in classes.items():
        for statement, below in zip(node.body, [*node.body[1:], None], strict=True):
            if not isinstance(statement, ast.AnnAssign):
                continue
            explained = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
            if not explained and ast.unparse(statement.annotation) not in classes:
                silent.append(f"{name}.{ast.unparse(statement.target)}")
    assert silent == []


# -- text generation -------------------------------------------------------------------------------

SIZES = {"gpt2_medium": "gpt2-medium", "gpt2_large": "gpt2-large"}
BASELINES = {
    "full": "fine_tune",
    "full_top": "ft_top2",
    "adapter": "adapter_0.1pct",
    "adapter_large": "adapter_3pct",
    "adapter_houlsby": "adapter_3pct",
    "prefix": "prefix",
}
CELLS = [
    (model, task, method)
    for model in SIZES
    for task in ("e2e", "webnlg", "dart")
    for method in BASELINES
    if (model, method) not in {("gpt2_large", "full_top"), ("gpt2_large", "adapter_houlsby")}
]


@pytest.mark.parametrize("name", GPT2)
def test_lora_on_gpt2_is_the_published_recipe(name: str) -> None:
    nlg, config = of("nlg"), run(f"experiment={name}")
    folder, _, task = name.partition("/")
    model = nlg["models"][SIZES[folder]]["tasks"][task.removesuffix("_paper")]
    script = nlg["models"]["gpt2-medium"]["tasks"]["e2e"]["script"]
    # The script is for E2E; of the other tasks the paper says what differs.
    recipe = script if task == "e2e" else script | model["paper"]
    assert config.model.name_or_path == SIZES[folder]
    assert config.model.dropout == 0.0
    expected = {
        "lora.r": recipe["lora_r"],
        "lora.alpha": recipe["lora_alpha"],
        "lora.dropout": recipe["lora_dropout"],
        "train.lr": recipe["learning_rate"],
        "train.epochs": recipe["epochs"],
        "train.batch_size": recipe["batch_size"],
        "train.max_length": recipe["seq_len"],
        "train.warmup_steps": recipe["warmup_steps"],
        "train.weight_decay": recipe["weight_decay"],
        "train.label_smoothing": recipe["label_smoothing"],
        "train.adam_beta2": recipe["adam_beta2"],
        "train.adam_epsilon": nlg["protocol"]["adam_epsilon"],
        "train.max_grad_norm": recipe["grad_clip"],
        "train.drop_last": nlg["protocol"]["drop_last"],
        "train.decay_after_update": True,
        "decoding.beam_size": recipe["beam_size"],
        "decoding.length_penalty": recipe["length_penalty"],
        "decoding.no_repeat_ngram": recipe["no_repeat_ngram_size"],
        "decoding.max_new_tokens": recipe["eval_len"],
    }
    assert {key: value(config, key) for key in expected} == expected


@pytest.mark.parametrize(("model", "task", "method"), CELLS)
def test_each_baseline_of_gpt2_has_its_recipe(model: str, task: str, method: str) -> None:
    baselines = of("nlg")["baselines"]
    recipe, common = baselines[BASELINES[method]][task], baselines["common"]
    config = run(f"experiment={model}/{task}", f"method={method}")
    assert config.train.lr == recipe["learning_rate"]
    assert config.train.epochs == recipe["epochs"]
    assert config.train.batch_size == recipe["batch_size"]
    assert config.train.warmup_steps == common["warmup_steps"]
    assert config.train.weight_decay == common["weight_decay"]
    assert config.decoding.beam_size == common["beam_size"]
    assert config.decoding.min_length == common["min_length"]
    assert config.train.label_smoothing == 0.0
    assert not config.train.decay_after_update
    if method == "prefix":
        assert config.prefix.length == recipe["prefix_length"]
        assert config.prefix.hidden == common["prefix_mlp_mid_dim"]
    if method.startswith("adapter"):
        assert config.adapter.kind == ("houlsby" if method == "adapter_houlsby" else "lin")
        assert config.adapter.parameters is not None


def test_the_command_line_wins_over_the_recipe_of_a_cell() -> None:
    config = run("experiment=gpt2_medium/e2e", "method=prefix", "train.lr=0.5", "prefix.length=3")
    assert (config.train.lr, config.prefix.length, config.train.epochs) == (0.5, 3, 5)


# -- baselines on GLUE -----------------------------------------------------------------------------

GLUE = ("mnli", "sst2", "mrpc", "cola", "qnli", "qqp", "rte", "stsb")
ADAPTERS = {
    "adapter_pfeiffer": ("adapter_p_3m_paper", "pfeiffer"),
    "adapter_pfeiffer_small": ("adapter_p_0.8m_paper", "pfeiffer"),
    "adapter_houlsby": ("adapter_h_6m_paper", "houlsby"),
    "adapter_houlsby_small": ("adapter_h_0.8m_paper", "houlsby"),
}


@pytest.mark.parametrize("method", ADAPTERS)
@pytest.mark.parametrize("task", GLUE)
def test_each_adapter_on_roberta_large_has_its_recipe(
    task: str, method: str, recipes: dict[str, Any]
) -> None:
    block, kind = ADAPTERS[method]
    recipe = recipes["models"]["roberta-large"]["tasks"][task][block]
    config = run(f"experiment=roberta_large/{task}_restricted", f"method={method}")
    assert (config.adapter.kind, config.adapter.size) == (kind, recipe["bottleneck"])
    assert config.adapter.parameters is None
    train = config.train
    assert train.lr == recipe["learning_rate"]
    assert train.epochs == recipe["epochs"]
    assert train.batch_size == recipe["batch_size"]
    assert train.max_length == recipe["max_seq_length"]
    assert (train.warmup_ratio, train.warmup_steps) == (recipe["warmup_ratio"], None)
    assert config.model.init_from is None


@pytest.mark.parametrize("task", GLUE)
def test_fine_tuning_of_roberta_large_is_as_fairseq_suggests(
    task: str, recipes: dict[str, Any]
) -> None:
    suggested = recipes["baselines"]["full_fine_tuning"]["roberta"]["roberta_large_suggested"]
    recipe, common = suggested["tasks"][task], suggested["common"]
    train = run(f"experiment=roberta_large/{task}", "method=full").train
    assert train.lr == recipe["learning_rate"]
    assert train.batch_size == recipe["batch_size"]
    share = recipe["warmup_updates"] / recipe["total_updates"]
    assert train.warmup_ratio == pytest.approx(share, abs=1e-3)
    assert train.warmup_steps is None
    assert train.epochs == common["max_epoch"]
    assert train.adam_beta2 == common["adam_betas"][1]
    assert train.adam_epsilon == common["adam_epsilon"]
    assert train.weight_decay == common["weight_decay"]
    assert train.max_grad_norm == common["clip_norm"]


@pytest.mark.parametrize("task", GLUE)
def test_fine_tuning_of_deberta_is_within_what_its_paper_searched(
    task: str, recipes: dict[str, Any]
) -> None:
    """Or is of the scripts of microsoft/DeBERTa: CoLA at 2.5e-6, RTE in batches of 48."""
    searched = recipes["baselines"]["full_fine_tuning"]["deberta_v2_xxlarge"]["search_space"]
    config = run(f"experiment=deberta_v2_xxl/{task}", "method=full")
    rates, sizes = searched["learning_rate"], searched["batch_size"]
    assert min(rates) <= config.train.lr <= max(rates)
    assert min(sizes) <= config.train.batch_size <= max(sizes)
    assert config.train.warmup_steps in searched["warmup_steps"]
    assert config.train.epochs <= searched["max_epochs"]
    assert config.train.weight_decay == searched["weight_decay"]
    assert config.train.adam_epsilon == searched["adam_epsilon"]
    assert config.model.head_dropout in (0.2, 0.3)
