"""What can be said of a study: its table, and a few honest sentences."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

from thinned.studies.comparison import interval
from thinned.studies.outcomes import Row
from thinned.studies.study import Study


def verdict(study: Study, rows: Sequence[Row]) -> str:
    """What can be said of a study, in a few honest sentences."""
    compared = [(row.arm.name, row.difference) for row in rows if row.difference is not None]
    clear = [(name, found) for name, found in compared if found.is_told]
    parts = [
        f"{name} is {'better' if found.mean > 0 else 'worse'} than {study.baseline} by "
        f"{abs(found.mean):.2%} ({found.low:+.2%} to {found.high:+.2%}; corrected "
        f"p {found.corrected:.3f})."
        for name, found in sorted(clear, key=lambda each: -each[1].mean)
    ]
    unclear = [found for _, found in compared if not found.is_told]
    if unclear and all(found.seeds < 2 for found in unclear):
        parts.append(
            "Nothing more can be said of differences: that needs at least two seeds that finished "
            "in both arms."
        )
    elif unclear:
        seeds = len(study.seeds)
        # Pairs that did not finish have still to be had.
        lacking = min((found.needed - found.seeds for found in unclear if found.needed), default=0)
        more = f"; about {lacking:,} more would be needed" if lacking > 0 else ""
        which = "no other difference" if clear else "no difference"
        parts.append(f"With {seeds} seeds {which} from {study.baseline} can be told{more}.")
    best = _best(rows)
    if best is not None:
        parts.append(f"By validation images, {best.arm.name} is the one to choose.")
    elif len(rows) > 1:
        parts.append(
            "No arm is chosen: test images are not for choosing, and none were held out "
            "(--data.validation)."
        )
    lost = sum(o.status != "finished" for row in rows for o in row.outcomes.values())
    if lost:
        runs = "1 run did not finish and is" if lost == 1 else f"{lost} runs did not finish and are"
        parts.append(f"{runs} left out of the means.")
    return " ".join(parts)


def told(study: Study, rows: Sequence[Row]) -> str:
    """The table and the verdict, for people."""
    width = max(len("arm"), *(len(row.arm.name) for row in rows))
    lines = [
        f"{'arm'.ljust(width)}  runs  {'% right in test (95 %)':<25}{'NLL':>7}{'ECE':>8}"
        f"{'against baseline (95 %)':>25}{'p':>7}{'time':>6}"
    ]
    cost = study.cost(rows)
    for row in rows:
        accuracy, count = row.values("accuracy"), len(row.values("accuracy"))
        low, high = interval(accuracy)
        cell = "-"
        if count:
            span = f" ({100 * low:.2f} to {100 * high:.2f})" if count > 1 else ""
            cell = f"{100 * row.mean('accuracy'):.2f}{span}"
        lost = {o.status for o in row.outcomes.values() if o.status != "finished"}
        cell = f"{cell} {', '.join(sorted(lost))}".strip("- ") if lost else cell
        found = row.difference
        against, p_value = "baseline", ""
        if found is not None:
            against = f"{100 * found.mean:+.2f}" if found.seeds else "-"
            if found.seeds > 1:
                against += f" ({100 * found.low:+.2f} to {100 * found.high:+.2f})"
                p_value = shown(found.corrected, ".3f")
        lines.append(
            f"{row.arm.name.ljust(width)}  {count:>4}  {cell:<25}{shown(row.mean('nll')):>7}"
            f"{shown(row.mean('ece')):>8}{against:>25}{p_value:>7}"
            f"{shown(cost[row.arm.name], '.2f'):>6}"
        )
    notes = (
        "right: mean over seeds, bootstrap; against: points, paired by seed, Student's t; "
        "p: paired t-test, Holm's correction; time: of training, over the baseline's"
    )
    words = (textwrap.fill(text, max(79, len(lines[0]))) for text in (notes, verdict(study, rows)))
    return "\n".join(lines) + "\n\n" + "\n\n".join(words)


def shown(number: float, form: str = ".4f") -> str:
    """A number for people; ``-`` for NaN."""
    return "-" if math.isnan(number) else f"{number:{form}}"


def _best(rows: Sequence[Row]) -> Row | None:
    held = [row for row in rows if row.values("accuracy", "validation")]
    if len(held) < 2:
        return None
    # What only some seeds survive is no arm to choose while there is another.
    safe = [row for row in held if all(o.status == "finished" for o in row.outcomes.values())]
    return max(safe or held, key=lambda row: row.mean("accuracy", "validation"))
