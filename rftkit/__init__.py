"""rftkit: reinforcement learning fine-tuning with an online refiner as dynamic constraint.

Names and modules load when they are first used, so that `import rftkit` stays light.
"""

import logging
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rftkit.comparison import compare as compare
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
    "compare": "rftkit.comparison",
    "load_policy": "rftkit.models",
    "load_task": "rftkit.tasks",
}

__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name.isidentifier() and find_spec(f"rftkit.{name}"):
        return import_module(f"rftkit.{name}")
    raise AttributeError(f"module 'rftkit' has no attribute {name!r}")
