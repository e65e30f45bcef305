"""A run's adapter on the Hugging Face hub: the verb `push`."""

from __future__ import annotations

import logging
from pathlib import Path

from lora_exp import hub
from lora_exp.errors import UserError
from lora_exp.finished import card
from lora_exp.finished.restored import finished

PUSHED = [card.CARD, "adapter_*"]

log = logging.getLogger("lora_exp")


def push(outputs: Path, wanted: str, repo: str, *, private: bool) -> str:
    """Put a finished run's `adapter/` in a repository, with a card, which is made if there is none.

    What the repository holds already stays in its history.

    Args:
        outputs: the folder that holds the runs.
        wanted: the run, as in `find_run`.
        repo: ORGANISATION/NAME, made if there is none.
        private: make it so that others do not see it.

    Returns:
        Where it is, for the user.

    Raises:
        UserError: if there is no such run, nobody is logged in, or the hub refuses.
    """
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    run = finished(outputs, wanted)
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"push: {error} Expected ORGANISATION/NAME.") from error
    token = get_token()
    if token is None:
        raise UserError(
            "push: nobody is logged in to the hub. `hf auth login` asks for a token that may "
            f"write ({constants.ENDPOINT}/settings/tokens); or set HF_TOKEN."
        )
    if hub.unreachable():
        raise UserError(f"push: {constants.ENDPOINT} cannot be reached, or HF_HUB_OFFLINE is set.")
    if not (run.adapter / card.CARD).exists():
        card.write(outputs, wanted)
    api = HfApi(token=token)
    try:
        place = api.create_repo(repo, private=private or None, exist_ok=True)
        commit = api.upload_folder(
            repo_id=place.repo_id,
            folder_path=run.adapter,
            allow_patterns=PUSHED,
            commit_message=run.name,
        )
    except Exception as error:  # of the hub's library, of HTTP below it, of the file system
        told = str(error).strip().replace(token, "TOKEN")
        raise UserError(f"push: the hub did not take {repo}: {told}") from None
    return f"{place}: {commit.oid}"
