"""Where the shipped data lies: beside the package in a clone, inside it in a wheel."""

import json
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
DATA = next(p for p in (_PACKAGE.parent / "data", _PACKAGE / "data") if p.is_dir())
TINY_MODEL = DATA / "models" / "tiny"


def model_source(model: str) -> str:
    """What transformers loads: the folder of "tiny", the embedded model; else the name as it is."""
    return str(TINY_MODEL) if model == "tiny" else model


def model_folder(model: str) -> Path:
    """Where a local model lies."""
    return Path(model_source(model))


def learned_tasks(model: str) -> frozenset[str] | None:
    """The tasks that an embedded model was pre-trained on; None for any other model."""
    recipe = model_folder(model) / "pretrain.json"
    if not recipe.is_file():
        return None
    return frozenset(json.loads(recipe.read_text(encoding="utf-8"))["tasks"])
