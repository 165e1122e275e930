"""FrozenLake maps: checked, drawn at random, walked in Gymnasium's own environment, and pictured.

Nothing of the environment's dynamics is copied here: steps, rewards and ends come from it, and so
do the distances, which are searched in its transition table.
"""

from __future__ import annotations

import random
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from rftkit.config import CONSTRAINTS
from rftkit.errors import UserError
from rftkit.tasks.base import Prompt

if TYPE_CHECKING:
    from gymnasium.envs.toy_text.frozen_lake import FrozenLakeEnv
    from matplotlib.axes import Axes

Rows = tuple[str, ...]

# Gymnasium's action number, and the (row, column) step, of each word.
ACTION = {"left": 0, "down": 1, "right": 2, "up": 3}
STEP = {"left": (0, -1), "down": (1, 0), "right": (0, 1), "up": (-1, 0)}
BACK = {"left": "right", "right": "left", "up": "down", "down": "up"}


def map_of(prompt: Prompt) -> Rows:
    """The prompt's map. Raises UserError that names the field and row of what is wrong with it."""
    rows = prompt.columns.get("map")
    if not isinstance(rows, list | tuple) or not all(isinstance(row, str) for row in rows):
        raise UserError("field 'map' must be a list of strings such as ['SFF', 'FHF', 'FFG']")
    return _checked(tuple(rows))


@lru_cache(maxsize=4096)
def _checked(rows: Rows) -> Rows:
    height, width = len(rows), len(rows[0]) if rows else 0
    if not (2 <= height <= 8 and 2 <= width <= 8):
        raise UserError(f"field 'map' has {height} rows of {width} cells; use 2x2 to 8x8 cells")
    for n, row in enumerate(rows, 1):
        if len(row) != width:
            raise UserError(
                f"field 'map': row {n} has {len(row)} cells and row 1 has {width}; "
                "make all rows equally long"
            )
        for cell in row:
            if cell not in "SFHG":
                raise UserError(f"field 'map': row {n} has {cell!r}; use the letters S, F, H and G")
    for cell in "SG":
        count = sum(row.count(cell) for row in rows)
        if count != 1:
            raise UserError(f"field 'map' has {count} cells {cell!r}; it needs exactly one")
    if start_of(rows) not in _Lake(rows, is_slippery=False).distance:
        raise UserError("field 'map' has no way from S to G; turn an H in between into F")
    return rows


def start_of(rows: Rows) -> int:
    """Number of the cell S; cells count from 0, row by row, as Gymnasium's observations do."""
    return "".join(rows).index("S")


class _Lake:
    """One map's environment, and its cells' distances to the goal in steps (none: no way)."""

    def __init__(self, rows: Rows, is_slippery: bool):
        gym = _gymnasium()
        self.env = gym.make(
            "FrozenLake-v1", desc=list(rows), is_slippery=is_slippery, disable_env_checker=True
        )
        lake: FrozenLakeEnv = self.env.unwrapped
        # after[cell][action] = the cells that it may lead to
        self.after = {
            cell: {action: [out[1] for out in outcomes] for action, outcomes in actions.items()}
            for cell, actions in lake.P.items()
        }
        self.distance = self._distances("".join(rows).index("G"))

    def _distances(self, goal: int) -> dict[int, int]:
        before = defaultdict(set)
        for cell, actions in self.after.items():
            for cells in actions.values():
                for after in cells:
                    before[after].add(cell)
        distance, ring = {goal: 0}, {goal}
        while ring:
            ring = {b for cell in ring for b in before[cell]} - distance.keys()
            distance |= dict.fromkeys(ring, max(distance.values()) + 1)
        return distance

    def nearer(self, a: int, b: int) -> bool:
        far = len(self.after)
        return self.distance.get(b, far) < self.distance.get(a, far)


_lake = lru_cache(maxsize=1024)(_Lake)


def _gymnasium() -> Any:
    try:
        import gymnasium
    except ImportError:
        raise UserError("the game needs Gymnasium: pip install 'rftkit[gym]'") from None
    return gymnasium


@dataclass(frozen=True)
class Walk:
    """What the environment made of a response.

    reward: its return, 1.0 where the goal was reached. nearer: steps that came nearer to the goal.
    cells: numbers of the cells stood on, the start included.
    """

    reward: float
    nearer: int
    cells: tuple[int, ...]


@lru_cache(maxsize=8192)
def play(rows: Rows, response: str, is_slippery: bool = False) -> Walk:
    """Walk a response until the episode ends, or up to the first word that is no move.

    On slippery ice the luck is drawn from the response, so the same response fares the same.
    """
    lake = _lake(rows, is_slippery)
    cell, _ = lake.env.reset(seed=zlib.crc32(response.encode()))
    cells, total = [int(cell)], 0.0
    for word in response.split():
        if word not in ACTION:
            break
        cell, reward, terminated, truncated, _ = lake.env.step(ACTION[word])
        cells.append(int(cell))
        total += float(reward)
        if terminated or truncated:
            break
    nearer = sum(map(lake.nearer, cells, cells[1:]))
    return Walk(total, nearer, tuple(cells))


def loop_free(words: Iterable[str]) -> list[str]:
    """The moves among `words`, every loop cut out in the order walked (loop erasure).

    Needs no map: walls and holes are ignored, the place is the sum of the moves. A list that comes
    back as it was stands on no place twice.
    """
    kept: list[str] = []
    trail = [(0, 0)]
    for word in words:
        if word not in STEP:
            continue
        place = (trail[-1][0] + STEP[word][0], trail[-1][1] + STEP[word][1])
        if place in trail:
            first = trail.index(place)
            del trail[first + 1 :], kept[first:]
        else:
            trail.append(place)
            kept.append(word)
    return kept


def random_map(size: int, frozen: float, rng: random.Random) -> Rows:
    """A map of Gymnasium's generator with a way through; each cell is ice with chance `frozen`."""
    _gymnasium()
    from gymnasium.envs.toy_text.frozen_lake import generate_random_map

    return tuple(generate_random_map(size, frozen, rng.getrandbits(32)))


def shortest_route(rows: Rows, rng: random.Random) -> list[str]:
    """One of the shortest ways from S to G, at random."""
    lake = _lake(rows, False)
    cell, words = start_of(rows), []
    while lake.distance[cell]:
        ways = [word for word in ACTION if lake.nearer(cell, lake.after[cell][ACTION[word]][0])]
        words.append(rng.choice(ways))
        cell = lake.after[cell][ACTION[words[-1]]][0]
    return words


def winding_route(rows: Rows, rng: random.Random) -> list[str]:
    """A way from S to G that stands on no cell twice, at random; seldom the shortest."""
    lake = _lake(rows, False)
    while True:
        cell, words = start_of(rows), []
        seen = {cell}
        while lake.distance[cell]:
            ways = {w: lake.after[cell][a][0] for w, a in ACTION.items()}
            ways = {w: c for w, c in ways.items() if c not in seen and c in lake.distance}
            if not ways:
                break
            words.append(rng.choice(list(ways)))
            cell = ways[words[-1]]
            seen.add(cell)
        else:
            return words


_CELL_COLOURS = {"S": "#E8F1F8", "F": "#E8F1F8", "G": "#F0E442", "H": "#5A6B7B"}


def draw_paths(
    prompt: Prompt, paths: Mapping[str, str], axes: Sequence[Axes] | None = None
) -> list[Axes]:
    """One panel a path: the map, and the way that a response takes over it until the episode ends.

    `paths` maps a panel's title to a response, say {"policy": ..., "reference": ..., "refined
    response": ...}; a title that names a constraint gives the walk its colour. Later visits of a
    cell are drawn a little lower and to the right, so that to and fro shows. Without `axes` (one a
    path) a new figure is made.
    """
    from matplotlib import pyplot as plt

    from rftkit.plots import COLOURS

    rows = map_of(prompt)
    if axes is None:
        size = (2.6 * len(paths), 2.6 * len(rows) / len(rows[0]) + 0.7)
        _, grid = plt.subplots(1, len(paths), figsize=size, squeeze=False, layout="constrained")
        axes = list(grid[0])
    for ax, (title, response) in zip(axes, paths.items(), strict=True):
        walk = play(rows, response)
        _draw_map(ax, rows)
        _draw_walk(ax, rows, walk, COLOURS[title] if title in CONSTRAINTS else "#333333")
        ax.set_title(f"{title}\n{_outcome(rows, walk)}", fontsize=10)
    return list(axes)


def _outcome(rows: Rows, walk: Walk) -> str:
    end = {"G": "goal", "H": "hole"}.get("".join(rows)[walk.cells[-1]], "not at the goal")
    moves = len(walk.cells) - 1
    return f"{moves} move{'' if moves == 1 else 's'}: {end}"


def _draw_map(ax: Axes, rows: Rows) -> None:
    from matplotlib.patches import Rectangle

    for y, row in enumerate(rows):
        for x, cell in enumerate(row):
            colour = _CELL_COLOURS[cell]
            ax.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fc=colour, ec="white", lw=2))
            if cell != "F":
                ink = "white" if cell == "H" else "black"
                ax.text(x - 0.42, y - 0.4, cell, color=ink, fontsize=9, ha="left", va="top")
    ax.set(xlim=(-0.5, len(rows[0]) - 0.5), ylim=(len(rows) - 0.5, -0.5), xticks=[], yticks=[])
    ax.set_aspect("equal")
    ax.set_frame_on(False)


def _draw_walk(ax: Axes, rows: Rows, walk: Walk, colour: str) -> None:
    visits: Counter[int] = Counter()
    xs, ys = [], []
    for cell in walk.cells:
        y, x = divmod(cell, len(rows[0]))
        shift = min(0.07 * visits[cell], 0.35)
        visits[cell] += 1
        xs.append(x + shift)
        ys.append(y + shift)
    ax.plot(xs, ys, color=colour, lw=2, marker="o", ms=3)
    arrived = {"G": "*", "H": "X"}.get("".join(rows)[walk.cells[-1]], "s")
    ax.plot(xs[-1:], ys[-1:], color=colour, marker=arrived, ms=13, mec="white", ls="none")
