"""Other trainers with the dynamic constraint; each module loads when it is first used."""

from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    if name == "trl":
        return import_module("rftkit.integrations.trl")
    raise AttributeError(f"module 'rftkit.integrations' has no attribute {name!r}")
