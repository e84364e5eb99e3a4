"""What an audit found: its sites, its questions and answers, and the report for people."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

_INTERVAL = 2.576


@dataclass(frozen=True)
class Check:
    """One question and its answer.

    Attributes:
        question: what was checked, as a statement that should hold.
        site: the site it was checked at; empty for the network as a whole.
        passed: True, False, or None where it could not be checked.
        detail: what was found, or what to do.
    """

    question: str
    site: str
    passed: bool | None
    detail: str = ""


@dataclass(frozen=True)
class AuditedSite:
    """A place where something random happens in training.

    Attributes:
        name: path of the layer, joined by ``/``, or the line of code where nothing has a name.
        kind: see `thinned.dropout.sites.Kind`; ``noise`` is added, a ``choice`` is between two
            results, and anything else is what the program does with it.
        shape: of its inputs.
        rate: the configured drop probability, None where there is none.
        effective: the measured drop probability, None where it cannot be measured.
        error: standard error of `effective`; 0 where every draw gave the same.
        line: where it stands in the code, as far as the program tells.
        seen: whether it could be looked at; noise that drops nothing has no effective rate, but is.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    rate: float | None
    effective: float | None
    error: float
    line: str = ""
    seen: bool = True


@dataclass(frozen=True)
class Audit:
    """What an audit found; its text is a report for people."""

    sites: tuple[AuditedSite, ...]
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether no check failed; it proves the more, the fewer places are `unseen`."""
        return all(check.passed is not False for check in self.checks)

    @property
    def unseen(self) -> list[str]:
        """Places where something may be dropped, but that cannot be looked at."""
        return [site.name for site in self.sites if not site.seen]

    def failures(self, site: str | None = None) -> list[Check]:
        """The checks that failed, of one site or of all."""
        return [
            check for check in self.checks if check.passed is False and site in (None, check.site)
        ]

    def __str__(self) -> str:
        """A table of the sites, a line for each question, and the verdict."""
        return "\n".join([*self._table(), "", *self._answers(), "", self._verdict()])

    def _table(self) -> Iterator[str]:
        rows = [("site", "kind", "shape", "rate", "effective (99 % interval)", "verdict")]
        for site in self.sites:
            rate = "-" if site.rate is None else f"{site.rate:.4f}"
            seen = "ok" if site.seen else "not seen"
            verdict = "FAIL" if self.failures(site.name) else seen
            shape = "x".join(map(str, site.shape)) or "scalar"
            rows.append((site.name, site.kind, shape, rate, _interval(site), verdict))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            yield "  ".join(cells).rstrip()

    def _answers(self) -> Iterator[str]:
        for question in dict.fromkeys(check.question for check in self.checks):
            asked = [check for check in self.checks if check.question == question]
            failed = [check for check in asked if check.passed is False]
            if all(check.passed is None for check in asked):
                yield f"  --    {question}: not checked, {asked[0].detail}"
            elif not failed:
                yield f"  ok    {question}"
            for check in failed:
                where = f"{check.site}: " if check.site else ""
                yield f"  FAIL  {question}: {where}{check.detail}"

    def _verdict(self) -> str:
        failed = len(self.failures())
        checked = sum(check.passed is not None for check in self.checks)
        if failed:
            return f"FAIL: {failed} of {checked} checks failed"
        if self.unseen:
            places = "place" if len(self.unseen) == 1 else "places"
            return (
                f"not proved: {len(self.unseen)} {places} not seen ({', '.join(self.unseen)}); "
                f"{checked} checks passed"
            )
        return f"ok: {checked} checks passed"


def _interval(site: AuditedSite) -> str:
    if site.effective is None:
        return "no rate" if site.seen else "not measured"
    low = max(site.effective - _INTERVAL * site.error, 0.0)
    high = min(site.effective + _INTERVAL * site.error, 1.0)
    return f"{site.effective:.4f} ({low:.4f} to {high:.4f})"
