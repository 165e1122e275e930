"""Where transformers finds a model: a shipped one, a folder, or a name on the Hugging Face hub.

A name is looked up once and quickly, for transformers would try each file of it for half a minute.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from huggingface_hub import model_info, snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from huggingface_hub.errors import RepositoryNotFoundError as NotFound

from rftkit.errors import UserError, reason
from rftkit.paths import exists, model_source

SECONDS = 10.0  # for the hub to answer


def locate(model: str) -> str:
    """What transformers loads: a folder, or a name that the hub knows.

    Where the hub cannot be reached, the folder of the copy that was fetched before. Raises
    UserError where there is neither.
    """
    source = model_source(model)
    return source if exists(source) else _on_hub(model)


@contextmanager
def loading(model: str, failed: str = "cannot be loaded") -> Iterator[None]:
    """Inside, whatever a broken file makes of transformers, which checks none, is a UserError.

    failed: what it says of the model. Faults of the machine stay what they are.
    """
    try:
        yield
    except (UserError, torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except Exception as error:
        raise UserError(
            f"model: {model!r} {failed} ({reason(error)}); fetch or save it again, or choose "
            "another --model"
        ) from None


@cache
def _on_hub(model: str) -> str:
    failed = f"model: {model!r} cannot be loaded: no such folder, and"
    try:
        model_info(model, timeout=SECONDS)
    except HFValidationError:
        raise UserError(f"{failed} no name of a model on the Hugging Face hub either") from None
    except NotFound:
        told = "no such model on the Hugging Face hub; one that is private needs `hf auth login`"
        raise UserError(f"{failed} {told}") from None
    except Exception:  # whatever a network throws, or the hub answers when it is down
        try:
            return str(snapshot_download(model, local_files_only=True))
        except LocalEntryNotFoundError:
            told = "the Hugging Face hub cannot be reached; check the name, or the network"
            raise UserError(f"{failed} {told}") from None
    return model
