"""The Hugging Face hub: can it be reached?"""

from __future__ import annotations

import time
from functools import cache

TIMEOUT_SECONDS = 5.0
PAUSE_SECONDS = 0.5


@cache
def unreachable() -> bool:
    """Whether the hub gave no answer at all, or HF_HUB_OFFLINE=1 forbids to ask; asked once.

    The hub's own libraries repeat a request that found no network for half a minute, and most of
    what they do is many requests. Where this is true, let them look into their caches only.
    """
    from huggingface_hub import constants, get_session

    if constants.is_offline_mode():
        return True
    for pause in (PAUSE_SECONDS, 0.0):
        try:
            get_session().head(constants.ENDPOINT, timeout=TIMEOUT_SECONDS)
            return False
        except Exception:  # which one depends on the HTTP library underneath, which has changed
            time.sleep(pause)
    return True
