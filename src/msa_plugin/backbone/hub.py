"""Is the hub there? Asked once and briefly, for its client would try for minutes where it is not."""

from __future__ import annotations

import logging
import threading
from functools import cache

from huggingface_hub import HfApi, constants, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from msa_plugin.errors import BackboneNotFoundError

logger = logging.getLogger(__name__)

_SECONDS = 5.0


def check_hub(name: str, offline_way: str) -> bool:
    """Whether the model `name` is to be read from the hub's cache alone, because the hub does not answer.

    Raises BackboneNotFoundError, which names `offline_way`, for a model that the hub does not have, or that is not in
    the cache while the hub does not answer.
    """
    cached = isinstance(try_to_load_from_cache(name, "config.json"), str)
    if constants.HF_HUB_OFFLINE:
        problem = "HF_HUB_OFFLINE is set"
    else:
        known, problem = _asked(name)
        if not known and not problem:
            raise BackboneNotFoundError(
                f"the hub has no model {name!r}, or it is private or gated; check the name, or log in (hf auth login)"
            )
    if problem and not cached:
        raise BackboneNotFoundError(
            f"the hub ({constants.ENDPOINT}) cannot be reached for {name!r} ({problem}), and the model is not in its "
            f"cache; without a network: {offline_way}"
        )
    if problem:
        logger.warning("the hub cannot be reached (%s); using what is in its cache of %s", problem, name)
    return bool(problem)


@cache
def _asked(name: str) -> tuple[bool, str]:
    """Whether the hub has the model, and what kept it from answering, or ""."""
    answers: list[tuple[bool, str]] = []

    def ask() -> None:
        try:
            HfApi().model_info(name, timeout=_SECONDS)
            answers.append((True, ""))
        except (RepositoryNotFoundError, GatedRepoError):
            answers.append((False, ""))
        except Exception as error:  # whichever client is below it
            answers.append((False, str(error).split("\n", 1)[0] or type(error).__name__))

    # On a thread of its own, for no timeout of the client's bounds the look-up of a host's name.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_SECONDS + 1)
    return answers[0] if answers else (False, f"no answer within {_SECONDS:.0f} seconds")
