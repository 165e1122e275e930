"""Explorers for the notebooks, on ipywidgets; each is a thin controller over functions that draw.

The functions (`…_figure`, `…_html`) work without a front end: they make the static picture that
stands beside a widget, and what the tests look at. `explorer.picture()` is its picture right now.
"""

from rftkit.widgets.film import TrainingFilm, film_figure
from rftkit.widgets.lab import ConstraintLab, find_sweeps, lab_figure
from rftkit.widgets.live import LiveTrainer, live_figure
from rftkit.widgets.playground import RefinerPlayground, inspect_refinement, inspection_html
from rftkit.widgets.samples import sample_html
from rftkit.widgets.toys import ToyExplorer, toy_figure

__all__ = [
    "ConstraintLab",
    "LiveTrainer",
    "RefinerPlayground",
    "ToyExplorer",
    "TrainingFilm",
    "film_figure",
    "find_sweeps",
    "inspect_refinement",
    "inspection_html",
    "lab_figure",
    "live_figure",
    "sample_html",
    "toy_figure",
]
