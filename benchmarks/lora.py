"""How fast is the LoRA library? The same work by lora_exp, loralib and PEFT, in turn.

    python benchmarks/lora.py            # every section, a few minutes
    python benchmarks/lora.py layers save --repeats 31

All in one process with one thread, A B C A B C; memory in a process for each. Printed: our time,
and the others' over ours as a ratio (median, tenth and ninetieth percentile of the rounds; memory:
least and most): above 1, we are faster.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import loralib
import peft
import torch
from torch import nn

from lora_exp import lora

R, ALPHA = 8, 16
OURS, LORALIB, PEFT, PLAIN = "lora_exp", "loralib", "PEFT", "plain"
Work = Callable[[], object]


def compare(title: str, works: Mapping[str, Work], repeats: int) -> None:
    """Time each work in turn, and print a line."""
    for work in works.values():
        work()
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            begun = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - begun)
    own = statistics.median(seconds[OURS]) * 1e3
    parts = [f"{title:<44} {own:8.2f} ms"]
    for name in works:
        if name != OURS:
            ratios = [b / a for a, b in zip(seconds[OURS], seconds[name], strict=True)]
            middle = statistics.median(ratios)
            low, *_, high = statistics.quantiles(ratios, n=10)
            parts.append(f"{name} {middle:5.2f} ({low:.2f} to {high:.2f})")
    print("   ".join(parts), flush=True)


# -- layers --------------------------------------------------------------------------------------


def layers(repeats: int) -> None:
    """Forward and backward of each kind of layer."""
    tokens = torch.randn(8, 128, 768, requires_grad=True)
    numbers = torch.randint(0, 10_000, (8, 128))
    image = torch.randn(8, 64, 28, 28, requires_grad=True)
    plain = nn.Linear(768, 768)
    kinds: list[tuple[str, nn.Module, Any, torch.Tensor, dict[str, Any]]] = [
        ("Linear 768 -> 768", plain, loralib.Linear, tokens, {}),
        ("Linear, dropout 0.1", plain, loralib.Linear, tokens, {"lora_dropout": 0.1}),
        ("Embedding 10000 x 768", nn.Embedding(10_000, 768), loralib.Embedding, numbers, {}),
        ("Conv2d 64 -> 64, 3 x 3", nn.Conv2d(64, 64, 3, padding=1), loralib.Conv2d, image, {}),
        ("Conv2d 64 -> 64, 1 x 1", nn.Conv2d(64, 64, 1), loralib.Conv2d, image, {}),
    ]
    for title, module, theirs, input, more in kinds:
        ours = getattr(lora, type(module).__name__).wrap(module, r=R, lora_alpha=ALPHA, **more)
        works = {
            OURS: ours,
            LORALIB: _loralib_of(theirs, module, more),
            PEFT: _peft_of(module, more),
        }
        works = {name: partial(_step, layer, input) for name, layer in works.items()}
        compare(f"{title}, forward and backward", works, repeats)
    fused = nn.Linear(768, 2304)
    enabled = [True, False, True]
    works = {
        OURS: lora.MergedLinear.wrap(fused, r=R, lora_alpha=ALPHA, enable_lora=enabled),
        LORALIB: loralib.MergedLinear(768, 2304, r=R, lora_alpha=ALPHA, enable_lora=enabled),
    }
    works = {name: partial(_step, layer, tokens) for name, layer in works.items()}
    compare("MergedLinear 768 -> 3 x 768, forward and backward", works, repeats)
    kind = lora.DoraLinear.wrap(plain, r=R, lora_alpha=ALPHA)
    works = {OURS: kind, PEFT: _peft_of(plain, {}, use_dora=True)}
    works = {name: partial(_step, layer, tokens) for name, layer in works.items()}
    compare("DoRA 768 -> 768, forward and backward", works, repeats)


def _loralib_of(kind: Any, module: nn.Module, more: dict[str, Any]) -> nn.Module:
    if isinstance(module, nn.Conv2d):
        size, padding = module.kernel_size[0], module.padding
        return kind(64, 64, size, r=R, lora_alpha=ALPHA, padding=padding, **more)
    rows, columns = module.get_parameter("weight").shape
    sizes = (rows, columns) if isinstance(module, nn.Embedding) else (columns, rows)
    return kind(*sizes, r=R, lora_alpha=ALPHA, **more)


def _peft_of(module: nn.Module, more: dict[str, Any], **options: Any) -> nn.Module:
    config = peft.LoraConfig(
        r=R,
        lora_alpha=ALPHA,
        target_modules=["0"],
        lora_dropout=more.get("lora_dropout", 0.0),
        **options,
    )
    return peft.get_peft_model(nn.Sequential(module), config)  # type: ignore[arg-type]


def _step(layer: nn.Module, input: torch.Tensor) -> None:
    output = layer(input)
    output.backward(torch.ones_like(output))
    layer.zero_grad(set_to_none=True)
    input.grad = None


# -- RoBERTa-base --------------------------------------------------------------------------------


def backbone() -> Any:
    """RoBERTa-base with a head, random weights."""
    import transformers

    config = transformers.RobertaConfig(
        vocab_size=50265, max_position_embeddings=514, type_vocab_size=1
    )
    return transformers.RobertaForSequenceClassification(config).eval()


def with_lora() -> nn.Module:
    """By us, on query and value."""
    model = backbone()
    lora.place(model.roberta, lora.preset("roberta", "qv"), r=R, alpha=ALPHA, merge_weights=True)
    lora.mark_only_lora_as_trainable(model, also=["classifier"])
    return model


def with_loralib() -> nn.Module:
    """By loralib: as its examples do, with layers of its own in the model."""
    model = backbone()
    for name, module in list(model.named_modules()):
        if name.endswith(("self.query", "self.value")):
            layer = loralib.Linear(768, 768, r=R, lora_alpha=ALPHA)
            layer.load_state_dict(module.state_dict(), strict=False)
            model.set_submodule(name, layer)
    loralib.mark_only_lora_as_trainable(model)
    model.classifier.requires_grad_(True)
    return model


def with_peft() -> Any:
    """By PEFT."""
    config = peft.LoraConfig(
        task_type="SEQ_CLS", r=R, lora_alpha=ALPHA, target_modules=["query", "value"]
    )
    return peft.get_peft_model(backbone(), config)


MAKERS: dict[str, Callable[[], Any]] = {OURS: with_lora, LORALIB: with_loralib, PEFT: with_peft}


def merge(repeats: int) -> None:
    """Merging and unmerging the 24 matrices."""
    models = {name: make() for name, make in MAKERS.items()}

    def cycle(model: nn.Module) -> None:
        model.eval()
        model.train()

    def peft_cycle(model: Any) -> None:
        model.merge_adapter()
        model.unmerge_adapter()

    works = {name: partial(cycle, model) for name, model in models.items()}
    works[PEFT] = partial(peft_cycle, models[PEFT])
    compare("merge and unmerge 24 matrices", works, repeats)


def switch(repeats: int) -> None:
    """From one adapter to another and back, 24 matrices each."""
    ours, theirs, third = with_lora().train(), with_loralib().train(), with_peft()
    adapters = lora.Adapters(ours)
    adapters.add("a")
    adapters.add("b")
    state = {n: t.clone() for n, t in loralib.lora_state_dict(theirs).items()}
    third.add_adapter("b", third.peft_config["default"])

    def both(act: Callable[[Any], object], first: object, second: object) -> None:
        act(first)
        act(second)

    works: dict[str, Work] = {
        OURS: partial(both, adapters.switch, "a", "b"),
        LORALIB: partial(both, partial(theirs.load_state_dict, strict=False), state, state),
        PEFT: partial(both, third.set_adapter, "default", "b"),
    }
    compare("switch there and back (in place; PEFT: by name)", works, repeats)


def save(repeats: int) -> None:
    """Adapter with head, to files and from files."""
    models = {name: make() for name, make in MAKERS.items()}
    ours, theirs, third = models[OURS], models[LORALIB], models[PEFT]
    with tempfile.TemporaryDirectory() as folder:
        own, file, other = Path(folder, "own"), Path(folder, "adapter.pt"), Path(folder, "peft")
        own.mkdir()

        def write() -> None:
            files = lora.peft_files(ours, base_model="roberta-base", modules_to_save=["classifier"])
            for name, content in files.items():
                (own / name).write_bytes(content)

        def dump() -> None:
            head = {f"classifier.{n}": t for n, t in theirs.classifier.state_dict().items()}
            torch.save(loralib.lora_state_dict(theirs) | head, file)

        compare(
            "save adapter and head",
            {OURS: write, LORALIB: dump, PEFT: lambda: third.save_pretrained(other)},
            repeats,
        )
        size = (own / "adapter_model.safetensors").stat().st_size
        print(f"  adapter_model.safetensors: {size:,} bytes")
        compare(
            "load adapter and head",
            {
                OURS: lambda: lora.load(ours, lora.read(own)),
                LORALIB: lambda: theirs.load_state_dict(torch.load(file), strict=False),
                PEFT: lambda: peft.set_peft_model_state_dict(
                    third, peft.load_peft_weights(str(other), device="cpu")
                ),
            },
            repeats,
        )


def inference(repeats: int) -> None:
    """Merged, against the plain backbone."""
    ids = torch.randint(5, 50_000, (4, 64))
    models = {OURS: with_lora().eval(), PLAIN: backbone()}

    def read(model: nn.Module) -> None:
        with torch.no_grad():
            model(input_ids=ids)

    works = {name: partial(read, model) for name, model in models.items()}
    compare("merged inference, 4 x 64 tokens", works, max(5, repeats // 2))


# -- memory --------------------------------------------------------------------------------------


def memory(repeats: int) -> None:
    """Peak memory of training steps, beyond that of the model; each in a process of its own."""
    context = multiprocessing.get_context("spawn")
    found = {name: [_in_process(context, name) for _ in range(3)] for name in MAKERS}
    own = statistics.median(found[OURS])
    parts = [f"{'memory of a training step, 16 x 128 tokens':<44} {own:8.1f} MiB"]
    for name in (LORALIB, PEFT):
        ratios = sorted(b / a for a, b in zip(found[OURS], found[name], strict=True))
        parts.append(f"{name} {ratios[1]:5.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")
    print("   ".join(parts), flush=True)


def _in_process(context: Any, name: str) -> float:
    with context.Pool(1) as pool:
        return pool.apply(_memory_of, (name,))


def _memory_of(name: str) -> float:
    torch.set_num_threads(1)
    model = MAKERS[name]().train()
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    ids, labels = torch.randint(5, 50_000, (16, 128)), torch.zeros(16, dtype=torch.int64)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(2):
        model(input_ids=ids, labels=labels).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


SECTIONS = (layers, merge, switch, save, inference, memory)


def main() -> None:
    """Run the sections that are named, or all."""
    names = [section.__name__ for section in SECTIONS]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("sections", nargs="*", choices=[*names, []], help="all, if none is named")
    parser.add_argument("--repeats", type=int, default=21)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, PEFT {peft.__version__}, loralib, one thread")
    for section in SECTIONS:
        if section.__name__ in (options.sections or names):
            section(options.repeats)


if __name__ == "__main__":
    sys.exit(main())
