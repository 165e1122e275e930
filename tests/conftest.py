"""Nothing in the tests reaches for the network or a screen, and property tests repeat exactly."""

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from recorded import Study

# Set before any test module imports torch, transformers or matplotlib.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Exact numbers are those of fp32 on a CPU. `make gpu` has the tests of a GPU.
if os.environ.get("RFTKIT_TESTS") != "gpu":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

settings.register_profile("rftkit", deadline=None, derandomize=True)
settings.load_profile("rftkit")


@pytest.fixture
def study() -> "Study":
    """The recorded study."""
    from recorded import recorded  # it imports torch

    return recorded()


@pytest.fixture
def page() -> str:
    """The words of docs/results.md on one line."""
    from recorded import words

    return words()


@pytest.fixture(autouse=True)
def _figures_are_closed() -> Iterator[None]:
    """Pyplot keeps figures until they are closed, and warns when there are many."""
    yield
    import matplotlib.pyplot as plt

    plt.close("all")
