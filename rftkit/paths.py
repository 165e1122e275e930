"""Where the shipped data lies: inside the package in a wheel, beside it in a clone."""

import json
from pathlib import Path

from rftkit.errors import UserError, reason

_PACKAGE = Path(__file__).resolve().parent
# Its own first: beside an installed package, a folder of this name is another one's.
DATA = next(p for p in (_PACKAGE / "data", _PACKAGE.parent / "data") if p.is_dir())
MODELS = DATA / "models"
TINY_MODEL = MODELS / "tiny"


def model_source(model: str) -> str:
    """What transformers loads: the folder of a shipped model, as "tiny"; else the name as it is."""
    return str(MODELS / model) if model in shipped_models() else model


def shipped_models() -> list[str]:
    """The embedded model, "tiny", and the same one stopped early in pre-training."""
    return sorted(path.name for path in MODELS.iterdir() if path.is_dir())


def model_folder(model: str) -> Path:
    """Where a local model lies."""
    return Path(model_source(model))


def exists(path: Path | str) -> bool:
    """`Path.exists`, but False also for what can be no path, as a name that is too long."""
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return False


def embedded(model: str) -> bool:
    """Whether it is the embedded model, or another one that `rftkit pretrain` made."""
    return learned_tasks(model) is not None


def learned_tasks(model: str) -> frozenset[str] | None:
    """The tasks that an embedded model was pre-trained on; None for any other model."""
    recipe = model_folder(model) / "pretrain.json"
    if not exists(recipe):
        return None
    try:
        return frozenset(json.loads(recipe.read_text(encoding="utf-8"))["tasks"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{recipe}: is broken ({reason(error)}); pretrain or copy the model again"
        ) from None
