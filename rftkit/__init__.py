"""rftkit: reinforcement learning fine-tuning with an online refiner as dynamic constraint.

Names load when they are first used, so that `import rftkit` stays light.
"""

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rftkit.compare import compare as compare
    from rftkit.config import RunConfig as RunConfig
    from rftkit.errors import UserError as UserError
    from rftkit.models import Policy as Policy
    from rftkit.models import load_policy as load_policy
    from rftkit.refiner import OnlineRefiner as OnlineRefiner
    from rftkit.tasks import load_task as load_task
    from rftkit.trainer import Trainer as Trainer

__version__ = "0.1.0"

# On import it warns of optional CPU kernels; `rftkit doctor` tells whether 4-bit works.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

_HOMES = {
    "OnlineRefiner": "rftkit.refiner",
    "Policy": "rftkit.models",
    "RunConfig": "rftkit.config",
    "Trainer": "rftkit.trainer",
    "UserError": "rftkit.errors",
    "load_policy": "rftkit.models",
    "load_task": "rftkit.tasks",
}

__all__ = [*_HOMES, "compare"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name == "compare":  # the function; `rftkit.compare` the module is found by import alone
        value = import_module("rftkit.compare").compare
        globals()["compare"] = value
        return value
    raise AttributeError(f"module 'rftkit' has no attribute {name!r}")
