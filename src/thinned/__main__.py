"""``python -m thinned`` and the command ``thinned``."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line and leave with its exit code."""
    # Else XLA writes long lines about features of the processor whenever a kept program is loaded
    # (jax issue 38445); what fails is raised all the same. Who sets a level of their own keeps it.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from thinned.cli.main import main as run

    sys.exit(run())


if __name__ == "__main__":
    main()
