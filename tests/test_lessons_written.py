"""Functions that lesson 06 writes out are the package's, as for the lessons before."""

from __future__ import annotations

import pytest
from test_lessons import written

from rftkit.metrics import bootstrap_ci


def test_lesson_06_writes_the_kits_bootstrap() -> None:
    (by_hand,) = written("06", "bootstrap_by_hand")
    for values in ([0.3, 1.2], [1.48, 1.24, 1.5], [0.0, 0.0, 0.7]):
        assert by_hand(values) == pytest.approx(bootstrap_ci(values))
