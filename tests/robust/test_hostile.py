"""A model's or a user's text shows as text wherever the kit shows it: page, figure, terminal, log.

The browser's share is in tests/browser; roles and ends of turn are in test_fuzz.py.
"""

import json
import logging
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hostile import ATTACKS, record
from small import model_folder

from rftkit import OnlineRefiner, RunConfig, UserError, load_policy
from rftkit import cli as cli_module
from rftkit import widgets as explorers
from rftkit.chat import encode_text
from rftkit.errors import BadStepError
from rftkit.figures import bars, canvas, lines
from rftkit.health import Health
from rftkit.refiner import Refinement
from rftkit.runs import RunFolder
from rftkit.side_by_side import block
from rftkit.widgets.parts import dropdown, escape

each_attack = pytest.mark.parametrize("text", ATTACKS.values(), ids=ATTACKS)
# What a terminal obeys. Our own marks are SGR sequences, which `terminal` takes away first.
COMMANDS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def terminal(shown: str) -> str:
    """What is left without our own colours; no command is among it."""
    bare = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    assert not COMMANDS.search(bare), ascii(bare)
    bare.encode()
    return bare


class Page(HTMLParser):
    """Reads HTML as a browser does: the tags, and the text that a reader sees."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.typeset: list[str] = []  # text that Jupyter would look through for LaTeX
        self._ignored: list[bool] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        attrs = dict(attributes)
        self.tags.append((tag, attrs))
        if tag not in ("br", "img"):
            before = bool(self._ignored) and self._ignored[-1]
            self._ignored.append(before or "mathjax_ignore" in (attrs.get("class") or ""))

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("br", "img"):
            self._ignored.pop()

    def handle_data(self, data: str) -> None:
        self.text += data
        if not (self._ignored and self._ignored[-1]):
            self.typeset.append(data)


def page(html: str) -> Page:
    """The page, after a look at its tags."""
    read = Page(html)
    for tag, attributes in read.tags:
        assert tag in {"b", "br", "del", "div", "img", "ins", "span", "table", "td", "th", "tr"}
        assert set(attributes) <= {"alt", "class", "role", "scope", "src", "style"}
        assert (attributes.get("src") or "data:image/png;").startswith("data:image/png;")
    terminal(read.text)
    return read


def shows(where: str, text: str) -> bool:
    """Whether a page or a terminal has every printable word of `text`, in its order."""
    words = [re.escape(w) for w in re.findall(r"[\x21-\x7e]+", text)]
    return re.search(".*?".join(words), where, re.DOTALL) is not None


@pytest.fixture(scope="module")
def policy():
    return load_policy(model_folder(), "fp32")


@each_attack
def test_in_the_widgets(tmp_path: Path, text: str) -> None:
    record(tmp_path / "run", text)
    for kind in (explorers.TrainingFilm, explorers.ConstraintLab):
        explorer = kind(tmp_path)
        assert explorer.message.value == ""
        shown = page(explorer.view.value)
        assert shows(shown.text, text)
        assert not any(set("$\\`") & set(piece) for piece in shown.typeset)
        (label,) = (label for label, _ in explorer.prompt.options)
        assert terminal(label)
        assert page(explorer.picture().data).text == shown.text
        json.dumps(explorer.prompt.get_state()).encode()


@each_attack
def test_in_the_playground(policy, text: str) -> None:
    from rftkit.tasks import Prompt, load_task

    prompt = Prompt(
        ({"role": "user", "content": text},), load_task("dialogue").prompts("heldout")[0].columns
    )
    found = explorers.inspect_refinement(policy, load_task("dialogue"), prompt, text)
    shown = page(explorers.inspection_html(found))
    assert not shown.typeset


@each_attack
def test_in_what_goes_wrong(text: str) -> None:
    explorer = explorers.ToyExplorer.__mro__[1]([])  # the bare base of all explorers

    def fail() -> None:
        raise ValueError(text)

    explorer.attempt(fail)
    assert "ValueError" in page(explorer.message.value).text
    assert terminal(str(UserError(text))).count("\n") == 0
    assert shows(page(f"<b>{escape(text)}</b>").text, text)


def test_a_choice_is_made_by_what_it_is_and_shown_as_what_it_says() -> None:
    box = dropdown(["\x1b[31mred", ("\u202etwo", 2)], "choice")
    assert [(terminal(label), value) for label, value in box.options] == [
        ("␛[31mred", "\x1b[31mred"), ("\\u202etwo", 2),
    ]  # fmt: skip


@each_attack
def test_in_figures(text: str) -> None:
    figure, axis = canvas()
    bars(axis, [text.replace("\ud83d", "")], {"policy": ([1.0], "dynamic")}, "probability")
    lines(axis, [0, 1], {text.replace("\ud83d", ""): ([0, 1], "kl")}, "step", "reward")
    figure.canvas.draw()  # mathtext that does not parse would raise here


@each_attack
def test_in_the_terminal(policy, monkeypatch, capsys, text: str) -> None:
    monkeypatch.setattr("rftkit.models.load_policy", lambda *_: policy)
    words = ["refine", "--prompt", text, "--response", text]
    assert cli_module.main(words) == 0
    assert shows(terminal(capsys.readouterr().out), text)
    assert cli_module.main([*words, "--json"]) == 0
    out = capsys.readouterr().out
    assert terminal(out).isascii()
    readable = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert "".join(t for op, t in json.loads(out)["diff"] if op != "insert") == readable


@each_attack
def test_in_chat(text: str) -> None:
    diff = [["equal", text], ["delete", text], ["insert", text]]
    shown = terminal(block(text, Refinement([1, 2], [1], text, text, diff), width=4000))
    assert shows(shown, text)
    refused = Refinement([1], [1], text, text, [["equal", text]], fallback="cut off")
    assert shows(terminal(block(text, refused, width=4000)), text)


@each_attack
def test_in_records_and_log_lines(tmp_path: Path, caplog, text: str) -> None:
    run = record(tmp_path / "run", text)
    raw = (tmp_path / "run/samples.jsonl").read_text()
    assert terminal(raw).isascii(), "so that `cat` and `less` show it"
    assert raw.count("\n") == 2
    assert run.samples()[0]["response"] == f"{text} a", "and nothing is lost"
    with caplog.at_level(logging.WARNING, "rftkit"):
        Health(RunConfig()).bad(3, BadStepError("task_reward not finite", text))
    assert terminal(caplog.messages[0]).count("\n") == 0


@each_attack
def test_in_a_cell_of_a_notebook(policy, text: str) -> None:
    """The repr of what the kit returns is text, with no other form that Jupyter would prefer."""
    (found,) = OnlineRefiner(policy, 4).refine([text], [text])
    terminal(repr(found))
    special: Callable[[str], bool] = lambda name: name.startswith("_repr_")  # noqa: E731
    for thing in (found, RunConfig(), RunFolder(Path(text.replace("\0", "")))):
        assert not [name for name in dir(thing) if special(name)]


@each_attack
def test_it_forges_neither_role_nor_end_of_turn(policy, text: str) -> None:
    special = set(policy.tokenizer.all_special_ids)
    assert not special & set(encode_text(policy.tokenizer, text))
    refiner = OnlineRefiner(policy, 4)
    roles = []
    for said in ("x", text):
        ids = refiner.form.context([{"role": "user", "content": said}], policy.encode(said))
        roles.append([policy.tokenizer.convert_ids_to_tokens(i) for i in ids if i in special])
    assert roles[0] == roles[1] == ["<|user|>", "<|draft|>", "<|refined|>"]
