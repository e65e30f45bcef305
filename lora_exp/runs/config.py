"""What a run is, as one typed tree: the schema that the values in YAML (`conf/`) must fit.

Every default here is part of a signature's meaning (`runs/signature.py` leaves out fields that hold
their default), so a default never changes: a value that should evolve belongs in YAML.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING

PACKAGE = Path(__file__).parents[1]
CONF = next(folder for folder in (PACKAGE / "conf", PACKAGE.parent / "conf") if folder.is_dir())
"""The folder of the YAML files."""


@dataclass
class ModelConfig:
    """The pre-trained backbone."""

    name_or_path: str = MISSING
    """Hub id, local folder, or `package:MODULE/FOLDER` for weights in a Python package."""
    revision: str | None = None
    """Branch, tag or commit on the hub; null is the default branch."""
    dropout: float | None = None
    """Dropout of the backbone, hidden states and attention alike; null keeps the model's own."""
    head_dropout: float | None = None
    """Dropout before the classification head; null keeps the model's own (often the backbone's)."""
    init_from: str | None = None
    """Start from an adapter: a finished run (name or signature); `best:FILTER`, the best of those
    that match and have this backbone, method and placement; a folder of PEFT; or a file of loralib.
    A head of another size is left out."""


@dataclass
class TaskConfig:
    """What is learned, and on which data."""

    name: str = MISSING
    """Name in tables and run folders; also the task's folder inside `data_dir`."""
    kind: str = "classification"
    """`classification` (tables of text and label, GLUE included), `agreement` (generated) or
    `generation` (sources and the texts to write for them)."""
    data_dir: str | None = None
    """Folder with the data, or with a folder NAME that has it; null takes the data from the hub."""
    hub: str | None = None
    """Data set id on the hub."""
    subset: str | None = None
    """Configuration of the data set on the hub."""
    text: list[str] = field(default_factory=list)
    """The one or two columns that hold the text, in the order the model reads them."""
    label: str = "label"
    """The column that holds the label."""
    labels: list[str] | None = None
    """Label names in the order of their numbers; null takes those of the training data, sorted."""
    regression: bool = False
    """The label is a number to predict, not a class."""
    metrics: list[str] | None = None
    """Metrics on the validation set, the one that decides the best epoch first; null: accuracy and
    F1 for two classes, accuracy for more, Pearson and Spearman for regression."""
    validation: list[str] = field(default_factory=lambda: ["validation"])
    """Validation splits; the first decides the best epoch, the others are only measured."""
    data_seed: int = 0
    """Seed of generated data (`agreement`); the run's own seed does not touch the data."""
    train_examples: int | None = None
    """Train on the first so many examples; null is all."""
    corpus: str | None = None
    """`generation`: `e2e`, `webnlg` or `dart`, read as their makers wrote them; null: a table."""
    format: str | None = None
    """`generation`: the format of the files (`csv`, `txt`, `xml`, ...) where a folder has several.
    Of E2E, `txt` is the text of microsoft/LoRA, tokenised with blanks; no other format is."""
    source: str = "source"
    """`generation`: the column that the model reads."""
    template: str | None = None
    """`generation`: what the model reads instead, made of columns: `{question} {context}`."""
    references: list[str] = field(default_factory=lambda: ["references"])
    """`generation`: the columns of what it should write, each with a text or a list of texts."""
    test: str | None = None
    """`generation`: the split that is generated and measured at the end; null is the first
    validation split."""


@dataclass
class PlacementConfig:
    """Which weights get LoRA."""

    preset: str = "qv"
    """`qv`, `attention`, `mlp`, `all_linear`, `embedding` or `convolution`: a set of weights, known
    for each architecture that has them."""
    targets: list[str] | None = None
    """Patterns of module names, used instead of the preset: `query`, `layer.0.*.dense`; slices of a
    fused projection after a colon: `c_attn:query,value`."""
    layers: str | None = None
    """Numbers of the layers that get LoRA: `0-5`; null is all. On the command line, several are
    quoted twice: `'lora.placement.layers="0,2,6-11"'`."""
    rank_pattern: dict[str, int] = field(default_factory=dict)
    r"""Ranks other than `lora.r`, by patterns as in `targets`; 0 leaves these layers as they are.
    On the command line with a backslash before each of `:,[]{}` in a pattern:
    `'lora.placement.rank_pattern={layer.0.**.query:4,c_attn\:value:16}'`."""
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    """Alphas other than `lora.alpha`, given in the same way."""


@dataclass
class LoraConfig:
    """Low-rank adaptation: W + (alpha / r) B A (Hu et al. 2021, section 4.1)."""

    r: int = 8
    """Rank."""
    alpha: float = 16.0
    """Scaling numerator; the update is scaled by alpha / r."""
    dropout: float = 0.0
    """Dropout on the input of A."""
    init: str = "kaiming_uniform"
    """How A starts: `kaiming_uniform` (loralib) or `normal` with the model's initializer_range (the
    published DeBERTa runs), with B zero; or `pissa`: both from the weight's largest singular values
    (Meng et al. 2024)."""
    rslora: bool = False
    """Rank-stabilised scaling: alpha / sqrt(r) (Kalajdzievski 2023)."""
    dora: bool = False
    """DoRA: a trained magnitude for each output (Liu et al. 2024); linear layers only."""
    lr_ratio: float = 1.0
    """Learning rate of B, and of vectors, over that of other matrices (LoRA+, Hayou et al. 2024,
    advise 16)."""
    bias: str = "none"
    """Biases trained as well: `none`, `lora_only` (of the layers with LoRA) or `all`."""
    train_head: bool = True
    """The head is trained in full; false leaves it as it starts."""
    placement: PlacementConfig = field(default_factory=PlacementConfig)
    """Which weights get LoRA."""


@dataclass
class FullTopConfig:
    """Fine-tuning of the top layers (FT-Top2 of Li and Liang 2021)."""

    layers: int = 2
    """Number of layers, counted from the top; the final norm and the pooler are trained as well."""


@dataclass
class AdapterConfig:
    """Bottleneck networks between the frozen parts of each layer."""

    kind: str = "houlsby"
    """`houlsby`: after attention and after the MLP (2019); `pfeiffer`: after the MLP (2021); `lin`:
    on the output of each layer, behind a LayerNorm of its own (2020; Adapter^L of the LoRA
    paper)."""
    size: int = 64
    """Units of each bottleneck."""
    parameters: int | None = None
    """Parameters of all adapters together, about; if given, `size` follows from it."""


@dataclass
class PrefixConfig:
    """Trained keys and values in front of every sequence, in each layer (Li and Liang 2021)."""

    length: int = 5
    """Number of positions."""
    hidden: int | None = 512
    """Hidden units of the network that makes the keys and values while training; only these are
    kept. null trains them directly."""


@dataclass
class PromptConfig:
    """Trained embeddings in front of every text (Lester et al. 2021; the LoRA paper's PreEmbed)."""

    length: int = 20
    """Number of positions."""


@dataclass
class TrainConfig:
    """The optimisation and its bookkeeping."""

    lr: float = MISSING
    """Peak learning rate."""
    epochs: int = 3
    """Passes over the training data."""
    max_steps: int | None = None
    """Number of updates; if given, `epochs` does not count."""
    batch_size: int = 32
    """Sequences per update, over all devices."""
    micro_batch_size: int | None = None
    """Sequences per forward pass; smaller saves memory. The update stays that of `batch_size`, but
    for rounding and which units are dropped. null: all."""
    max_length: int = 512
    """Tokens per example; longer ones are cut, the longer text first."""
    precision: str = "fp32"
    """`fp32`, or `bf16`: frozen matrices and activations in bf16, everything trained in fp32."""
    warmup_ratio: float = 0.0
    """Share of the updates in which the learning rate rises from zero."""
    warmup_steps: int | None = None
    """Number of warm-up updates; if given, `warmup_ratio` does not count."""
    weight_decay: float = 0.0
    """Decoupled weight decay; none on biases and norms."""
    decay_after_update: bool = False
    """Decay what an update has made, as AdamW of microsoft/LoRA does; false: decay before the
    update, as in the paper (Loshchilov and Hutter 2019) and in torch."""
    adam_beta1: float = 0.9
    """Decay of AdamW's first moment."""
    adam_beta2: float = 0.999
    """Decay of AdamW's second moment."""
    adam_epsilon: float = 1e-8
    """AdamW's epsilon."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this global norm; 0 does not clip."""
    label_smoothing: float = 0.0
    """Share of the training loss that is the mean over all classes, or all tokens of the
    vocabulary, instead of the right one. Evaluation is without."""
    drop_last: bool = False
    """Leave out the last, incomplete batch of each epoch; the schedule counts it all the same, as
    in microsoft/LoRA, so the learning rate does not quite reach 0."""
    select: str = "best"
    """Which evaluation the result is of, with the adapter and the texts that belong to it: `best`
    by the task's first metric (of text: by perplexity), or `last`."""
    eval_every: int | None = None
    """Evaluate every so many updates (and at the end); null: at the end of each epoch."""
    log_every: int = 10
    """Updates between two lines of training loss in metrics.jsonl."""
    checkpoint_seconds: float = 60.0
    """Seconds between two checkpoints; each evaluation ends with one as well."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, about a
    third more time."""
    devices: int = 1
    """GPUs (or, without any, processes) of a machine that train the run together; each has its
    share of every batch."""
    nodes: int = 1
    """Machines that do so, with `devices` each."""


@dataclass
class DecodingConfig:
    """How text is generated, at the end of a run of `generation`, from the test split."""

    examples: int | None = None
    """Generate for the first so many sources; null is all, 0 none."""
    beam_size: int = 1
    """Hypotheses kept for each source; 1 is greedy decoding."""
    length_penalty: float = 1.0
    """A hypothesis is worth its log probability / its length ** length_penalty."""
    no_repeat_ngram: int = 0
    """No n-gram of this size occurs twice in a text; 0 allows it."""
    repetition_penalty: float = 1.0
    """Logits of generated tokens: divided by it where positive, multiplied where negative."""
    min_length: int = 0
    """Tokens before a text may end."""
    max_new_tokens: int = 64
    """Tokens after which a text ends, whatever it says."""
    stop: list[str] = field(default_factory=list)
    """Where a text is cut off; one that is a single token for the model also ends the search, as
    the model's own end does. microsoft/LoRA: the blank line, `"\\n\\n"`."""
    banned: list[str] = field(default_factory=list)
    """Never generated, as far as they are single tokens for the model."""
    sample: bool = False
    """Draw each token, by the run's seed, instead of searching; needs beam_size=1."""
    temperature: float = 1.0
    """Sampling: logits are divided by it."""
    top_k: int = 0
    """Sampling: only the k most probable tokens; 0 for all."""
    top_p: float = 1.0
    """Sampling: only the most probable tokens that together have this probability."""
    batch_size: int = 16
    """Sources at a time; decides speed and memory only."""


@dataclass
class TrackerConfig:
    """Who watches, besides metrics.jsonl, which is always written."""

    name: str = "none"
    """`none`, `wandb`, `tensorboard`, `trackio` or `mlflow`."""
    also: list[str] = field(default_factory=list)
    """Others of them that watch as well."""
    mode: str = "online"
    """W&B: `online`, `offline` or `disabled`."""
    project: str = "lora-exp"
    """Project of W&B and Trackio, experiment of MLflow."""
    entity: str | None = None
    """W&B user or team; null is your default."""
    tags: list[str] = field(default_factory=list)
    """Tags besides those of the grid and the study."""
    artifact: bool = False
    """W&B and MLflow: keep the adapter there as an artifact, too."""


@dataclass
class PackConfig:
    """Which runs of a grid train together."""

    size: int | None = None
    """Most runs that train together over one backbone; 1 turns it off, null chooses by memory and
    tokens."""


@dataclass
class Config:
    """One run."""

    task: TaskConfig = field(default_factory=TaskConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    method: str = "lora"
    """How the model is adapted: `lora`, `full`, `full_top`, `bitfit`, `adapter`, `prefix` or
    `prompt`."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    full_top: FullTopConfig = field(default_factory=FullTopConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    prefix: PrefixConfig = field(default_factory=PrefixConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    seed: int = 1
    """Decides initial values, data order and dropout."""
    device: str = "auto"
    """`auto` (a GPU if there is one), `cpu` or `cuda`."""
    outputs: str = "outputs"
    """Folder of all runs."""
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    pack: PackConfig = field(default_factory=PackConfig)
    """Which runs of a grid train together."""
    rerun: bool = False
    """Train a finished run again; its result is kept under `outputs/superseded`."""
    grid: str | None = None
    """Name of the grid of `-m`, under which `status` and the like find its runs; null: that of the
    study, or the time."""
    dry_run: bool = False
    """Only show what a grid comes to: its runs, jobs and resources."""
    detach: bool = False
    """Leave a grid on this machine to a process of its own, and return."""
