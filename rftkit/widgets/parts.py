"""What the explorers share: a base that never raises into the notebook, figures as pictures.

Text of a model or a user enters HTML only through `escape` here or `rftkit.diff.to_html`.
"""

from __future__ import annotations

import base64
import html
import io
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ipywidgets as widgets
import matplotlib.pyplot as plt
from IPython.display import HTML
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rftkit.diff import visible
from rftkit.errors import reason
from rftkit.plots import LABELS

# The first figure made through pyplot tells the notebook how to show any figure.
plt.close(plt.figure())

_drawing = threading.RLock()  # a live trainer draws in its own thread, matplotlib in one at a time


class Explorer(widgets.VBox):
    """Controls above a view; `html` says what the view shows.

    Whatever goes wrong in a reaction to the user is shown as one line above the last good view.
    """

    def __init__(self, controls: Sequence[widgets.Widget]):
        self._quiet = False
        self.message = widgets.HTML()
        self.view = widgets.HTML()
        super().__init__([*controls, self.message, self.view])
        self.add_class(type(self).__name__)

    def html(self) -> str:
        """The view as HTML that needs no kernel."""
        raise NotImplementedError

    def picture(self) -> HTML:
        """The view as it is now, to stay on the page where no widget can run."""
        return HTML(self.view.value)

    def refresh(self, *_: Any) -> None:
        """Draw the view anew; fits ipywidgets' `observe` and `on_click`."""
        self.attempt(self._show)

    def attempt(self, action: Callable[[], None]) -> None:
        """Do `action`; say in one line what went wrong."""
        if self._quiet:
            return
        try:
            action()
            self.say("")
        except Exception as error:  # a traceback would end in a log that nobody reads
            self.say(reason(error))

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Inside, controls change without the reaction to each."""
        self._quiet = True
        try:
            yield
        finally:
            self._quiet = False

    def say(self, text: str) -> None:
        """One line above the view."""
        self.message.value = f'<div role="status">⚠ {escape(text)}</div>' if text else ""

    def _show(self) -> None:
        self.view.value = self.html()

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, str] | None:
        bundle = super()._repr_mimebundle_(**kwargs)
        return bundle and {**bundle, "text/html": self.view.value}


def escape(text: str) -> str:
    """Text for HTML: no tag, and no character that a screen would obey or hide."""
    return html.escape(visible(text))


def draw(make: Callable[[], Figure], alt: str) -> str:
    """The figure as an <img>, with `alt` for those who cannot see it."""
    buffer = io.BytesIO()
    with _drawing:
        figure = make()
        figure.savefig(buffer, format="png", dpi=120)
        width = figure.get_figwidth()
    data = base64.b64encode(buffer.getvalue()).decode()
    return (
        f'<img alt="{escape(alt)}" src="data:image/png;base64,{data}" '
        f'style="width:{100 * width:.0f}px;max-width:100%;height:auto"/>'
    )


def panels(rows: int, columns: int, width: float, height: float) -> tuple[Figure, Any]:
    """A figure of `width` x `height` inches that belongs to no notebook cell, and its axes.

    Margins are fixed: working out a layout would take as long as drawing, at each move of a slider.
    """
    figure = Figure(figsize=(width, height))
    axes = figure.subplots(rows, columns)
    left, right, top, bottom, across, down = 0.6, 0.15, 0.3, 0.5, 0.6, 0.85  # inches
    inner_width = (width - left - right - across * (columns - 1)) / columns
    inner_height = (height - top - bottom - down * (rows - 1)) / rows
    figure.subplots_adjust(
        left=left / width,
        right=1 - right / width,
        top=1 - top / height,
        bottom=bottom / height,
        wspace=across / inner_width,
        hspace=down / inner_height,
    )
    return figure, axes


def legend_below(figure: Figure, axis: Axes, bottom: float) -> None:
    """The names of an axis' lines under all panels, which end at `bottom`, a share of the height.

    Over a panel it would hide what moves there.
    """
    figure.subplots_adjust(bottom=bottom)
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=len(labels), frameon=False)


def tidy(axis: Axes, title: str, x: str = "step") -> None:
    """Title at the left, a light grid, no box."""
    axis.set_title(title, fontsize=10, loc="left")
    axis.set_xlabel(x)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)


def constraint_label(constraint: str, coef: float) -> str:
    """For people: "KL, β = 1"."""
    label = LABELS.get(constraint, constraint)
    if constraint == "none":
        return label
    return f"{label}, {'β' if constraint == 'kl' else 'λ'} = {coef:g}"


def row(*children: widgets.Widget) -> widgets.Widget:
    """Controls side by side; they wrap on a narrow page."""
    return widgets.HBox(children, layout={"flex_flow": "row wrap", "grid_gap": "0 14px"})


def button(text: str, tooltip: str, action: Callable[[], None], icon: str = "") -> widgets.Button:
    """A button that does `action`."""
    made = widgets.Button(
        description=text, tooltip=tooltip, icon=icon, layout={"width": "max-content"}
    )
    made.on_click(lambda _: action())
    return made


def slider(options: Sequence[Any], description: str, value: Any = None) -> widgets.SelectionSlider:
    """A slider over given values, which arrow keys move as well."""
    return widgets.SelectionSlider(
        options=options,
        value=_last(options) if value is None else value,
        description=description,
        style={"description_width": "initial"},
        layout={"width": "340px"},
    )


def dropdown(options: Sequence[Any], description: str, width: str = "") -> widgets.Dropdown:
    """A choice of one."""
    return widgets.Dropdown(
        options=_shown(options),
        description=description,
        style={"description_width": "initial"},
        layout={"width": width or "max-content"},
    )


def offer(control: widgets.Widget, options: Sequence[Any], otherwise: Any) -> None:
    """Change what a control offers; its value stays where it can, else it becomes `otherwise`."""
    values = [option[1] if isinstance(option, tuple) else option for option in options]
    kept = control.value if control.value in values else otherwise
    control.options = _shown(options)
    control.value = kept


def player(over: widgets.SelectionSlider, interval: int) -> widgets.Play:
    """Buttons that move a slider by themselves, one stop in `interval` milliseconds."""
    play = widgets.Play(
        min=0, max=len(over.options) - 1, value=over.index, interval=interval, show_repeat=False
    )
    widgets.jslink((play, "value"), (over, "index"))
    return play


def fit(play: widgets.Play, over: widgets.SelectionSlider) -> None:
    """Let `play` end where its slider ends now, and stand where it stands."""
    play.max = len(over.options) - 1
    play.value = over.index


def _shown(options: Sequence[Any]) -> list[Any]:
    """`options` with labels that command no screen; half a surrogate would never reach the page."""
    pairs = [(o, o) if isinstance(o, str) else o for o in options]
    return [(visible(o[0]), o[1]) if isinstance(o, tuple) else o for o in pairs]


def _last(options: Sequence[Any]) -> Any:
    return options[-1][1] if isinstance(options[-1], tuple) else options[-1]
