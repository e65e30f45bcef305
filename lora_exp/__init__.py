"""lora_exp: LoRA experiments, from one command to a number one can trust."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load(
    run: str | Path,
    *,
    outputs: str | Path = "outputs",
    backbone: str | Path | None = None,
    merge: bool = False,
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """The tokenizer and the model of a finished run, with what it trained, ready to be used.

    Args:
        run: its folder, name or signature, or the beginning of one.
        outputs: the folder that holds the runs.
        backbone: folder or hub id of the pre-trained model, if it is no longer where it was.
        merge: add LoRA's update into the weights, which makes the model as fast as the plain one;
            other methods have nothing to merge.

    Returns:
        The tokenizer, and a classifier or causal language model of transformers in evaluation mode,
        in fp32 on the CPU. The names of classes are in its `config.id2label`.

    Raises:
        lora_exp.errors.UserError: if there is no such run, it is not done, or its backbone cannot
            be found or is another one.
    """
    from pathlib import Path

    from lora_exp.finished.restored import finished, restore
    from lora_exp.lora import lora_layers

    found = restore(finished(Path(outputs), str(Path(run).expanduser())), backbone)
    for _, layer in lora_layers(found.model) if merge else ():
        layer.merge()
    return found.tokenizer, found.model.eval()
