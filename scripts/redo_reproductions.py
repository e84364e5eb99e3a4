"""Compute anew what docs/reproductions say of their runs: intervals, comparisons, pictures.

Nothing is trained: the test errors of every seed are in the files. Pictures that need the runs
themselves stay as they are.

    python scripts/redo_reproductions.py
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from thinned.core.config import recipe, with_values
from thinned.core.pages import PRINTED, Plots
from thinned.studies.arms import Arm
from thinned.studies.comparison import paired_differences
from thinned.studies.outcomes import Outcome, Row, accuracies_of
from thinned.studies.reproduce import PICTURES, Reproduction, Result
from thinned.studies.study import Study

_FOLDER = Path(__file__).parents[1] / "docs" / "reproductions"
_DRAWN = ("bars", "lines", "samples")


def main() -> None:
    """Rewrite every file, and print its table."""
    for path in sorted(_FOLDER.glob("*.json")):
        saved = json.loads(path.read_text())
        result = result_of(saved)
        fresh = json.loads(result.to_json())
        for name, arm in saved["arms"].items():
            kept = fresh["arms"][name]
            arm |= {key: kept[key] for key in ("interval", "against_baseline")}
        saved |= {key: fresh[key] for key in ("looks", "baseline", "within")}
        path.write_text(json.dumps(saved, indent=1, allow_nan=False) + "\n")
        figure = result.reproduction.about["figure"]
        if figure["kind"] in _DRAWN:
            _draw(path.parent, result, figure)
        print(f"{result}\n")


def result_of(saved: dict[str, Any]) -> Result:
    """A result as it was, from its file; all of its seeds count as planned."""
    wanted = Reproduction.open(saved["name"])
    base = with_values(recipe("tutorial"), saved["base"], saved["name"])
    arms = [Arm(name, arm["config"]) for name, arm in saved["arms"].items()]
    within = wanted.about.get("within")
    study = Study.of(base, arms, saved["seeds"], saved["baseline"], within)
    rows = [Row(arm, _outcomes(saved["arms"][arm.name]), None) for arm in arms]
    accuracies = {row.arm.name: accuracies_of(row.outcomes) for row in rows}
    found = paired_differences(accuracies, study.baselines, study.planned)
    rows = [replace(row, difference=found.get(row.arm.name)) for row in rows]
    return Result(wanted, saved["budget"], study, rows, saved["measured"])


def _outcomes(arm: dict[str, Any]) -> dict[int, Outcome]:
    scores = iter(zip(arm["errors"], arm["nll"], strict=True))
    found: dict[int, Outcome] = {}
    for seed, status in arm["status"].items():
        if status != "finished":
            found[int(seed)] = Outcome(status)
            continue
        error, nll = next(scores)
        test = {"accuracy": 1 - error / 100, "nll": nll, "ece": math.nan}
        found[int(seed)] = Outcome(status, "", {"test": test}, arm["epoch_s"])
    return found


def _draw(folder: Path, result: Result, figure: Any) -> None:
    def paint(axes: Any) -> None:
        PICTURES[figure["kind"]](axes, folder, result, result.rows, figure)

    Plots(folder).draw(result.reproduction.name, result.reproduction.about["title"], paint, PRINTED)
    (folder / f"{result.reproduction.name}.png").unlink()


if __name__ == "__main__":
    main()
