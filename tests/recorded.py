"""The recorded study, and what docs/results.md says of it: for tests that compare the two."""

from functools import cache
from typing import Any

from rftkit.metrics import mean
from rftkit.paths import DATA
from rftkit.study.analysis import runs
from rftkit.study.command import RECORDS
from rftkit.study.plan import PROTOCOL
from rftkit.study.records import RecordFiles, sha256

OUTCOME = ("gold_reward", "degenerate")


class Study:
    """The records, read by task, method or variation, and stage."""

    def __init__(self, records: dict[str, Any]) -> None:
        self.records = records

    def rows(self, task: str, name: str, stage: str = "result") -> list[dict[str, Any]]:
        """Records in the order of their seeds: five of a result, three of a variation."""
        found = runs(self.records, f"{task}/{name}/{stage}")
        assert sorted(found) == list(range(10, 15 if stage == "result" else 13))
        return [found[seed] for seed in sorted(found)]

    def tuning(self, task: str, name: str) -> list[dict[str, Any]]:
        """Records of the first stage, a point of the grid each."""
        found = [r for key, r in self.records.items() if key.startswith(f"{task}/{name}/first")]
        assert len(found) == 12
        return found

    def each(self, task: str, name: str, stage: str = "result", key: str = "gold_reward") -> Any:
        """A number at the end, seed by seed."""
        rows = self.rows(task, name, stage)
        return [row["final"][key] if key in row["final"] else row[key] for row in rows]

    def ended(self, task: str, name: str, stage: str = "result", key: str = "gold_reward") -> float:
        return mean(self.each(task, name, stage, key))

    def best_kl(self, task: str) -> str:
        """The KL that tuning preferred."""
        found = PROTOCOL.best_kl(task, self.records)
        assert found
        return found

    def outcome(self, task: str, name: str) -> tuple[float, ...]:
        """Gold reward and degenerate share at the end, as tuned."""
        return tuple(self.ended(task, name, key=key) for key in OUTCOME)


@cache
def recorded() -> Study:
    return Study(RecordFiles(RECORDS, PROTOCOL.jobs(), sha256("tiny")).read())


@cache
def words() -> str:
    """The words of docs/results.md on one line."""
    return " ".join((DATA.parent / "docs/results.md").read_text(encoding="utf-8").split())
