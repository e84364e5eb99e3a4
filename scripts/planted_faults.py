"""Plant every fault of dropout in a network of every library, and write which the audit finds.

    python scripts/planted_faults.py            # rewrites the table of docs/audit-your-program.md
    python scripts/planted_faults.py --check    # says whether the table is what it would write

Equinox and Haiku have to be installed; the table is rewritten whole.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from planted import FAULTS, NETWORKS, NOT_OF, is_installed  # noqa: E402

PAGE = ROOT / "docs" / "audit-your-program.md"
BEGIN, END = "<!-- planted faults -->\n", "<!-- end -->"


def cell(network: str, fault: str | None) -> str:
    """What the audit says of a network with a fault, or of its sound form."""
    if fault in NOT_OF[network]:
        return "-"
    found = NETWORKS[network](fault)
    failed = {check.question for check in found.failures()}
    if fault is None:
        return "no alarm" if not failed and not found.unseen else "ALARM"
    return "found" if FAULTS[fault] in failed else "MISSED"


def table() -> str:
    head = ["planted", *NETWORKS]
    rows = [
        [fault or "nothing", *(cell(name, fault) for name in NETWORKS)] for fault in (None, *FAULTS)
    ]
    lines = ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines) + "\n"


def main() -> None:
    missing = [name for name in NETWORKS if not is_installed(name)]
    if missing:
        sys.exit(f"not installed: what {', '.join(missing)} needs")
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    written = before + BEGIN + "\n" + table() + "\n" + END + after
    if "--check" in sys.argv:
        sys.exit(0 if written == text else "the table is not what would be written")
    PAGE.write_text(written, encoding="utf-8")


if __name__ == "__main__":
    main()
