"""Where the shipped data lies: beside the package in a clone, inside it in a wheel."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
DATA = next(p for p in (_PACKAGE.parent / "data", _PACKAGE / "data") if p.is_dir())
TINY_MODEL = DATA / "models" / "tiny"
