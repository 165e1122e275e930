"""A model's name is looked up once; a wrong one, or no network, is said in one line and at once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelInfo
from huggingface_hub.errors import LocalEntryNotFoundError

from rftkit import hub
from rftkit.errors import UserError
from rftkit.paths import TINY_MODEL


@pytest.fixture(autouse=True)
def asked(monkeypatch) -> list[str]:
    """Names that the hub was asked for; by default it cannot be reached and nothing is cached."""
    names: list[str] = []

    def no_network(name: str, timeout: float) -> ModelInfo:
        names.append(name)
        raise ConnectionError("Name or service not known")

    def nothing(name: str, local_files_only: bool) -> str:
        raise LocalEntryNotFoundError("nothing")

    monkeypatch.setattr(hub, "model_info", no_network)
    monkeypatch.setattr(hub, "snapshot_download", nothing)
    hub._on_hub.cache_clear()
    yield names
    hub._on_hub.cache_clear()


def test_what_lies_here_asks_nobody(tmp_path: Path, asked: list[str]) -> None:
    assert hub.locate("tiny") == str(TINY_MODEL)
    assert hub.locate(str(tmp_path)) == str(tmp_path)
    assert asked == []


def test_a_name_of_the_hub_is_asked_for_once(monkeypatch, asked: list[str]) -> None:
    monkeypatch.setattr(hub, "model_info", lambda name, timeout: asked.append(name))
    assert [hub.locate("org/model"), hub.locate("org/model")] == ["org/model"] * 2
    assert asked == ["org/model"]


def test_without_a_network_an_earlier_copy_serves(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hub, "snapshot_download", lambda name, local_files_only: str(tmp_path))
    assert hub.locate("org/model") == str(tmp_path)


def test_what_is_nowhere_is_said_with_the_remedy(monkeypatch) -> None:
    with pytest.raises(UserError, match="check the name, or the network"):
        hub.locate("org/model")

    def unknown(name: str, timeout: float) -> ModelInfo:
        raise hub.NotFound("404", response=None)

    monkeypatch.setattr(hub, "model_info", unknown)
    monkeypatch.setattr(hub.NotFound, "__init__", lambda self, *args, **more: None)
    with pytest.raises(UserError, match="no such model on the Hugging Face hub"):
        hub.locate("org/modle")


@pytest.mark.parametrize("name", ["a/b/c", "no such model", "../nothing"])
def test_what_can_be_no_name_is_not_asked_for(name: str, monkeypatch) -> None:
    monkeypatch.undo()
    with pytest.raises(UserError, match="no name of a model on the Hugging Face hub either"):
        hub.locate(name)


def test_a_command_without_a_network_says_so_in_one_line() -> None:
    """As a user has it: nothing told to stay offline, and no hub that answers."""
    environment = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"}
    command = [sys.executable, "-m", "rftkit.cli", "estimate", "--model", "org/no-such-model"]
    done = subprocess.run(
        command, env=environment | {"HF_ENDPOINT": "http://127.0.0.1:9"}, capture_output=True,
        text=True, encoding="utf-8", timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "the Hugging Face hub cannot be reached" in done.stderr
