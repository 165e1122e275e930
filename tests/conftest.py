"""Nothing in the tests reaches for the network or a screen, and property tests repeat exactly."""

import os

from hypothesis import settings

# Set before any test module imports torch, transformers or matplotlib.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

settings.register_profile("rftkit", deadline=None, derandomize=True)
settings.load_profile("rftkit")
