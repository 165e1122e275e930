import json
import sys
from pathlib import Path
from typing import Any

import bitsandbytes.functional
import pytest
import torch

from rftkit import doctor, sandbox
from rftkit.models import pick_device, supports_nf4
from rftkit.sandbox.worker import WorkerError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def facts() -> dict[str, Any]:
    return doctor.report()


def test_a_complete_installation_is_well(facts: dict[str, Any]) -> None:
    assert facts["problems"] == []
    assert facts["ok"] is True
    assert facts["model"]["present"]
    assert facts["packages"]["torch"] == torch.__version__
    assert facts["packages"].keys() >= {"transformers", "peft", "bitsandbytes", "gymnasium", "trl"}
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts


def test_four_bit_is_what_loading_a_model_will_find(facts: dict[str, Any]) -> None:
    device = pick_device("auto")
    assert facts["device"]["type"] == device.type
    assert facts["four_bit"]["supported"] == supports_nf4(device)
    assert 0.05 < facts["four_bit"]["relative_error"] < 0.12


def test_the_table_tells_a_person_the_same(facts: dict[str, Any]) -> None:
    text = doctor.table(facts)
    for value in (facts["python"], facts["device"]["name"], *facts["sandbox"]["in_force"]):
        assert value in text
    assert text.endswith("Everything works.") == facts["ok"]


def test_missing_and_wrong_versions_come_with_the_command_that_helps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted = ["no-such-package>=1", "numpy<1", 'no-such-extra>=2; extra == "gym"']
    monkeypatch.setattr(doctor.metadata, "requires", lambda _: wanted)
    monkeypatch.setattr(doctor.metadata, "version", versions({"rftkit": "1.0", "numpy": "2.4.6"}))
    problems: doctor.Problems = []
    facts = doctor._packages(problems)
    assert facts["packages"] == {"no-such-extra": None, "no-such-package": None, "numpy": "2.4.6"}
    assert [p["remedy"] for p in problems] == [
        "pip install 'no-such-package>=1'",
        "pip install 'numpy<1'",
    ]
    assert "numpy 2.4.6" in problems[1]["problem"]


def test_a_kit_that_is_not_installed_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.metadata, "version", versions({}))
    problems: doctor.Problems = []
    assert doctor._packages(problems)["rftkit"] is None
    assert "not installed" in problems[0]["problem"]
    assert "make .venv" in problems[0]["remedy"]


def versions(known: dict[str, str]) -> Any:
    def version(name: str) -> str:
        if name not in known:
            raise doctor.metadata.PackageNotFoundError(name)
        return known[name]

    return version


def refuse(*_: Any, **__: Any) -> Any:
    raise NotImplementedError("no kernel for this device\nand more")


def ruin(packed: torch.Tensor, state: Any) -> torch.Tensor:
    return torch.zeros(state.shape)


@pytest.mark.parametrize(
    ("function", "broken", "reason"),
    [
        ("quantize_4bit", refuse, "no kernel for this device"),
        ("dequantize_4bit", ruin, "wrong numbers (relative error 1)"),
    ],
)
def test_broken_four_bit_is_found_by_trying(
    monkeypatch: pytest.MonkeyPatch, function: str, broken: Any, reason: str
) -> None:
    monkeypatch.setattr(bitsandbytes.functional, function, broken)
    assert doctor.try_four_bit(CPU) == {
        "supported": False,
        "relative_error": None,
        "reason": reason,
    }
    problems: doctor.Problems = []
    doctor._compute(problems)
    assert reason in problems[0]["problem"]
    assert "--precision" in problems[0]["remedy"]


def test_a_library_that_does_not_import_leaves_a_report(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "rftkit.models", None)
    broken = doctor.report()
    assert broken["ok"] is False
    assert broken["device"] is None
    assert not broken["four_bit"]["supported"]
    assert any("rftkit.models" in entry["problem"] for entry in broken["problems"])
    text = doctor.table(broken)
    assert all(entry["remedy"] in text for entry in broken["problems"])
    assert "Everything works" not in text


def test_a_sandbox_that_does_not_start_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise WorkerError("fork refused")

    monkeypatch.setattr(sandbox, "layers", fail)
    problems: doctor.Problems = []
    assert doctor._sandbox(problems)["sandbox"]["in_force"] == []
    assert "fork refused" in problems[0]["problem"]


def test_the_table_says_what_the_sandbox_does_not_stop(facts: dict[str, Any]) -> None:
    layers = {
        "in_force": ["rlimits"],
        "absent": {"landlock": "kernel too old"},
        "stopped": {"network": False, "starting processes": True},
    }
    text = " ".join(doctor.table({**facts, "sandbox": layers}).split())
    assert "rlimits; absent: landlock (kernel too old); does not stop network" in text
    assert "starting processes" not in text


def test_a_missing_model_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    problems: doctor.Problems = []
    assert doctor._model(problems, tmp_path)["model"]["present"] is False
    assert "model.safetensors, tokenizer.json" in problems[0]["problem"]
    for name in doctor.MODEL_FILES:
        (tmp_path / name).touch()
    assert doctor._model(problems, tmp_path)["model"]["present"] is True
    assert len(problems) == 1
