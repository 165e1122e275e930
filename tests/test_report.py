"""The pages' result tables: what a summary says, as a reader sees it."""

from rftkit.report import markdown


def _method(gold: list[float], task: float, **more: dict) -> dict:
    def spread(values: list[float]) -> dict:
        return {"mean": sum(values) / len(values), "per_seed": values}

    return {
        "coef": 5.0,
        "gold_reward": spread(gold),
        "best_gold_reward": spread([1.25]),
        "task_reward": spread([task]),
        "degenerate": spread([0.125]),
        "kl": spread([2.0]),
        "seconds_per_step": 0.5,
        "start_gold_reward": 0.4,
        **{name: spread([value]) for name, value in more.items()},
    }


def _summary(**methods: dict) -> dict:
    return {"task": "code", "gold_max": 1.25, "steps": 9, "seeds": [3, 4], "methods": methods}


def test_a_table_states_gold_gap_and_what_the_task_adds() -> None:
    lines = markdown(
        _summary(
            none=_method([0.0, 0.5], 3.25, gamed=0.0625),
            dynamic=_method([1.0, 1.25], 1.5, gamed=0.25),
        )
    ).split("\n")
    assert "task − gold" in lines[0]
    assert "gamed" in lines[0]
    assert lines[2] == (
        "| no constraint | 0.25 (0.00 to 0.50) | 1.25 | 3.00 | 12.5% | 6.2% | 2.0 | 0.50 |"
    )
    assert lines[3].startswith("| dynamic, λ = 5 | 1.12 (1.00 to 1.25) ")
    assert "2 seeds" in lines[-2]


def test_a_task_without_tests_has_no_gamed_column() -> None:
    table = markdown(_summary(none=_method([0.0, 0.5], 3.25)))
    assert "gamed" not in table
    assert len({line.count("|") for line in table.split("\n")[:3]}) == 1
