"""Train the tutorial as printed, with its learning rate mended, and corrected; draw their curves.

    python scripts/printed_curves.py [RUNS]    (needs matplotlib)

Runs that RUNS (default: runs/printed) already holds are gone on with, not repeated.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt

from thinned import Config, train
from thinned.core.config import recipe, with_values

TARGET = Path(__file__).parent.parent / "docs" / "tutorial-as-printed.svg"
PRINTED = recipe("tutorial-as-printed")
ARMS = {
    "as printed": PRINTED,
    "learning rate 0.001": with_values(PRINTED, {"learning_rate": 0.001}, "script"),
    "corrected": Config(),
}


def main() -> None:
    runs = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/printed")
    plt.rcParams["svg.hashsalt"] = "thinned"
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.4))
    for name, config in ARMS.items():
        run = train(config, name=name.replace(" ", "-"), runs=runs, quiet=False)
        for split, style in (("train", ":"), ("test", "-")):
            records = [record for record in run.metrics if record["split"] == split]
            epochs = [record["epoch"] for record in records]
            for panel, value in zip(panels, ("accuracy", "loss"), strict=True):
                (line,) = panel.plot(
                    epochs,
                    [record[value] for record in records],
                    style,
                    color=f"C{list(ARMS).index(name)}",
                    label=f"{name}, {split}",
                )
                line.set_linewidth(2 if split == "test" else 1.2)
    panels[0].set(xlabel="epoch", ylabel="accuracy", ylim=(0.4, 1.01))
    panels[1].set(xlabel="epoch", ylabel="loss (nats)", yscale="log")
    panels[0].legend(fontsize=7, loc="lower right")
    figure.tight_layout()
    figure.savefig(TARGET, metadata={"Date": None})


if __name__ == "__main__":
    main()
