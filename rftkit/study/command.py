"""`rftkit study`: do what is left, say what is done, or write the report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rftkit.errors import UserError
from rftkit.paths import DATA
from rftkit.study.plan import PARTS, PROTOCOL, Protocol
from rftkit.study.run import Study, TimeUpError

RECORDS = DATA / "runs" / "study"


def study(
    out: Path,
    records: Path | None = None,
    only: Sequence[str] = (),
    part: Sequence[str] = (),
    workers: int = 0,
    limit_minutes: float = 0.0,
    status: bool = False,
    report: bool = False,
    protocol: Protocol = PROTOCOL,
    progress: bool = True,
) -> str:
    """Go on with the study, unless only `status` or `report` is asked for; return what to print.

    Raises UserError for an unknown task, method, variation or part.
    """
    if unknown := [name for name in only if not protocol.jobs([name])]:
        raise UserError(
            f"--only: {', '.join(unknown)} is unknown; of {', '.join(protocol.tasks)}, "
            f"or a method of one, as in {protocol.tasks[0]}/fresh"
        )
    if unknown := [name for name in part if name not in PARTS]:
        raise UserError(f"--part: {', '.join(unknown)} is unknown; of {', '.join(PARTS)}")
    if workers < 0 or limit_minutes < 0:
        raise UserError("--workers, --limit-minutes: must not be below 0")
    place = records or RECORDS
    found = Study(protocol, out, place)
    if status:
        return found.status(only, part)
    if not report:
        told, waiting = "", 0
        try:
            waiting = found.work(only, part, workers, limit_minutes, progress)
        except TimeUpError:
            told = "the time is up; all is saved, the same command goes on\n"
        told += found.status(only, part)
        if waiting:
            told += f"\nwaiting for tuning that --only or --part leaves out: {waiting}"
        return told
    from rftkit.study.report import write

    return write(found.protocol, found.records, place)
