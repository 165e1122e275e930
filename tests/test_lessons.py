"""What holds for every lesson: its parts, its size, its outputs; and that its code is the kit's."""

from __future__ import annotations

import ast
import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import nbformat
import pytest
import torch
from transformers import AutoConfig

from rftkit import lessons
from rftkit.cli import _parser
from rftkit.estimate import _base
from rftkit.exercises import exercises
from rftkit.metrics import edit_ratio, rep_3
from rftkit.objectives import group_advantages, kl_k3, policy_gradient_loss, sft_loss
from rftkit.shape import shape_of
from rftkit.toy import cafe, push_forward, refiner_matrix

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
LESSONS = sorted(FOLDER.glob("[0-9]*.ipynb"))
SOLUTIONS = sorted((FOLDER / "solutions").glob("*.ipynb"))
MEASURED = json.loads((FOLDER / "measured.json").read_text(encoding="utf-8"))
WITH_EXERCISES = [path for path in LESSONS if not path.name.startswith("00_")]
WITH_WIDGETS = {"02_degeneration", "03_kl_leash", "04_online_refiner", "05_dynamic_constraints"}
each_lesson = pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)
each_notebook = pytest.mark.parametrize(
    "path", LESSONS + SOLUTIONS, ids=lambda p: f"{p.parent.name}/{p.stem}"
)


def read(path: Path) -> Any:
    notebook: Any = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def code(path: Path) -> list[Any]:
    return [cell for cell in read(path).cells if cell.cell_type == "code" and cell.source.strip()]


def prose(path: Path) -> str:
    return "\n\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")


def outputs(path: Path) -> list[Any]:
    return [output for cell in code(path) for output in cell.outputs]


@each_lesson
def test_the_box_says_what_one_learns_and_needs_and_what_it_took(path: Path) -> None:
    box = read(path).cells[0].source
    assert re.match(rf"# {path.stem[:2]} · \S", box)
    assert "> **After this lesson you can** " in box
    assert "> **You need** " in box
    assert re.search(r"> \*\*It takes\*\* <!-- measured -->\S.*GB on .*<!-- end -->", box)
    assert lessons.fill(box, MEASURED[path.stem]) == box


@each_lesson
def test_a_lesson_has_all_its_parts(path: Path) -> None:
    text = prose(path)
    for part in ("## What can go wrong", "## Recap", "Five questions", "**Next:**"):
        assert part in text, part
    assert len(re.findall(r"\*\*Predict", text)) >= 3
    assert len(re.findall(r"^[1-5]\. ", text.split("Five questions")[1], re.MULTILINE)) == 5


@each_lesson
def test_something_works_within_three_code_cells(path: Path) -> None:
    assert any(output.output_type != "stream" for cell in code(path)[:3] for output in cell.outputs)


@pytest.mark.parametrize("path", WITH_EXERCISES, ids=lambda p: p.stem)
def test_exercises_are_asked_in_the_lesson_and_solved_beside_it(path: Path) -> None:
    own = [name for name in exercises() if name.startswith(path.stem[:2])]
    assert len(own) >= 3
    assert "## Exercises" in prose(path)
    solution = FOLDER / "solutions" / path.name
    verdicts = [str(o.data["text/plain"]) for o in outputs(solution) if "data" in o]
    for name in own:
        assert f"**{name}**" in prose(path)
        assert f'check("{name}"' in "".join(cell.source for cell in code(path))
        assert any(verdict.startswith(f"{name} right, because ") for verdict in verdicts)


@each_notebook
def test_cells_are_small(path: Path) -> None:
    lines = [len(cell.source.splitlines()) for cell in code(path)]
    assert median(lines) < 10
    assert max(lines) <= 40


@each_notebook
def test_outputs_are_committed_in_order_and_none_is_an_error(path: Path) -> None:
    cells = code(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert any(cell.outputs for cell in cells)
    assert not [o for o in outputs(path) if o.output_type == "error" or o.get("name") == "stderr"]


@each_notebook
def test_nothing_is_kept_that_only_one_machine_knows(path: Path) -> None:
    notebook = read(path)
    assert set(notebook.metadata) == {"kernelspec", "language_info", "made_with"}
    assert not re.search(r"/(home|Users|root|tmp|work)/\w|[A-Z]:\\\\", path.read_text("utf-8"))
    assert not re.search(r"!\[[^]]*\]\(\w+://|<img[^>]+src=.?\w+://", path.read_text("utf-8"))


@each_notebook
def test_every_picture_has_a_text(path: Path) -> None:
    for output in outputs(path):
        if "image/png" in output.get("data", {}):
            assert len(output.metadata["image/png"]["alt"]) > 30


@each_notebook
def test_a_widget_is_kept_as_its_picture(path: Path) -> None:
    """Without the state of a widget, its view would be an error message on the page."""
    for output in outputs(path):
        assert lessons._WIDGET not in output.get("data", {})
    if path.stem in WITH_WIDGETS and path.parent == FOLDER:
        html = [o.data["text/html"] for o in outputs(path) if "text/html" in o.get("data", {})]
        assert any("data:image/png;base64" in h or "Token by token" in h for h in html)


@each_lesson
def test_every_command_of_a_lesson_is_one_of_the_kits(path: Path) -> None:
    for block in re.findall(r"```sh\n(.*?)```", prose(path), re.DOTALL):
        for line in block.strip().splitlines():
            program, *arguments = shlex.split(line)
            if program == "rftkit":
                _parser().parse_args(arguments)


# Functions that a lesson writes out are the package's


def written(lesson: str, *names: str) -> list[Any]:
    """Functions that cells of a lesson define, run with the imports of all its cells."""
    (path,) = FOLDER.glob(f"{lesson}_*.ipynb")
    statements = [s for cell in code(path) for s in ast.parse(cell.source).body]
    imports = [s for s in statements if isinstance(s, ast.Import | ast.ImportFrom)]
    functions = [s for s in statements if isinstance(s, ast.FunctionDef) and s.name in names]
    space: dict[str, Any] = {}
    exec(compile(ast.Module([*imports, *functions], []), str(path), "exec"), space)
    return [space[name] for name in names]


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_lesson_01_writes_the_kits_advantages(rng: torch.Generator) -> None:
    (by_hand,) = written("01", "advantages_by_hand")
    rewards = torch.randn(5, 6, generator=rng, dtype=torch.float64)
    close(by_hand(rewards), group_advantages(rewards, "grpo"))


def test_lesson_01_writes_the_kits_policy_gradient(rng: torch.Generator) -> None:
    (token_gain,) = written("01", "token_gain")
    logp, old = torch.randn(2, 5, 6, generator=rng, dtype=torch.float64)
    advantages = torch.randn(5, generator=rng, dtype=torch.float64)
    mask = torch.ones(5, 6)
    expected = policy_gradient_loss(logp, old, advantages, mask, 0.2, 0.3).loss
    close(-token_gain((logp - old).exp(), advantages, 0.2, 0.3).mean(), expected)


def test_lesson_02_writes_the_kits_rep_3(rng: torch.Generator) -> None:
    (by_hand,) = written("02", "rep_3_by_hand")
    for length in range(12):
        tokens = torch.randint(2, (length,), generator=rng).tolist()
        assert by_hand(tokens) == pytest.approx(rep_3(tokens))


def test_lesson_03_writes_the_kits_k3(rng: torch.Generator) -> None:
    (k3_by_hand,) = written("03", "k3_by_hand")
    logp, ref_logp = torch.randn(2, 5, 6, generator=rng, dtype=torch.float64)
    close(k3_by_hand(logp, ref_logp), kl_k3(logp, ref_logp))


def test_lesson_04_writes_the_kits_edit_ratio(rng: torch.Generator) -> None:
    (by_hand,) = written("04", "edit_ratio_by_hand")
    for length in range(9):
        a, b = torch.randint(3, (2, 8), generator=rng).tolist()
        assert by_hand(a[:length], b) == pytest.approx(edit_ratio(a[:length], b))


def test_lesson_05_writes_the_kits_sft_loss(rng: torch.Generator) -> None:
    (sft_by_hand,) = written("05", "sft_by_hand")
    logp = torch.randn(5, 6, generator=rng, dtype=torch.float64)
    mask = torch.arange(6) < torch.randint(1, 7, (5, 1), generator=rng)
    close(sft_by_hand(logp, mask), sft_loss(logp, mask))


def test_lesson_05_writes_the_kits_push_forward(rng: torch.Generator) -> None:
    (by_hand,) = written("05", "push_forward_by_hand")
    policy = cafe().reference
    targets = torch.randint(0, 15, (15,), generator=rng).tolist()
    ys = policy.sequences()
    refiner = refiner_matrix(policy, lambda y: ys[targets[ys.index(y)]])
    close(by_hand(policy.probs().detach(), targets), push_forward(policy, refiner))


def test_lesson_09_counts_four_bits_as_the_kit_does() -> None:
    (by_hand,) = written("09", "nf4_gb")
    shape = shape_of(AutoConfig.for_model("qwen2", num_hidden_layers=4))
    expected = _base(replace(shape, other=0), 2, "nf4") / 1e9
    assert by_hand(shape.weights) == pytest.approx(expected, rel=1e-3)


def test_lesson_09_accepts_what_the_kit_accepts() -> None:
    (accept,) = written("09", "accept")
    response = list("abcdefgh")
    for refined in ("abcdefgh", "abcd", "abcdxxxx", "abc", "xyz", ""):
        ratio = edit_ratio(response, list(refined))
        assert accept(response, list(refined)) == (bool(refined) and ratio <= 0.5)


# Running them


@each_notebook
def test_outputs_are_of_this_code_this_model_and_these_records(path: Path) -> None:
    """Else `make lessons`: pictures of what was recorded before are no error, and wrong."""
    notebook = read(path)
    assert notebook.metadata.get("made_with") == lessons.made_with(notebook)


def test_a_notebook_is_run_in_its_folder_tidied_and_measured(tmp_path: Path) -> None:
    path = tmp_path / "07_x.ipynb"
    (tmp_path / "near.txt").write_text("here")
    head = nbformat.v4.new_markdown_cell("# 07\n<!-- measured -->old<!-- end -->")
    folded = {"jupyter": {"source_hidden": True}}
    cell = nbformat.v4.new_code_cell("open('near.txt').read()", metadata={"trusted": True} | folded)
    notebook = nbformat.v4.new_notebook(cells=[head, cell], metadata={"widgets": {"x": 1}})
    nbformat.write(notebook, path)
    lessons.run(path)
    result = read(path)
    assert result.cells[1].outputs[0].data["text/plain"] == "'here'"
    assert "widgets" not in result.metadata
    assert result.cells[1].metadata == folded
    assert re.search(r"-->\d+ s and [\d.]+ GB on .+<!--", result.cells[0].source)
    made_with = result.metadata["made_with"]
    assert made_with == lessons.made_with(result)
    result.cells[1].source += " "
    assert made_with != lessons.made_with(result)


def test_the_course_map_knows_every_lesson_and_what_it_took() -> None:
    course = (FOLDER / "README.md").read_text(encoding="utf-8")
    for path in LESSONS:
        assert f"[{path.stem[:2]}]({path.name})" in course
        assert f"<!-- measured {path.stem} -->" in course
        assert f"\n**{path.stem[:2]}** 1. " in course  # the five questions, answered
    assert not re.search(r"--><!-- end", course)
    assert lessons.fill_map(course, MEASURED) == course


def test_the_box_names_every_measured_device() -> None:
    text = "It takes <!-- measured -->?<!-- end -->."
    cost = {"2 CPU cores": {"seconds": 31, "gb": 0.5}, "A GPU": {"seconds": 190, "gb": 1.0}}
    filled = "<!-- measured -->31 s and 0.5 GB on 2 CPU cores; 3 min and 1 GB on A GPU<!-- end -->"
    assert lessons.fill(text, cost) == f"It takes {filled}."


def test_the_link_to_colab_is_one_line_and_leaves_the_box_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / LESSONS[0].name
    path.write_bytes(LESSONS[0].read_bytes())
    for owner in ("first/kit", "second/kit"):
        lessons.link_colab(path, owner)
    box = read(path).cells[0].source
    link = f"https://colab.research.google.com/github/second/kit/blob/main/notebooks/{path.name}"
    assert box.count("**On Colab:**") == box.count(link) == 1
    assert "first/kit" not in box
    assert lessons.fill(box, MEASURED[path.stem]) == box
    assert box.startswith(read(LESSONS[0]).cells[0].source.split("\n>\n> **On Colab")[0])
