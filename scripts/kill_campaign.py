"""Kill small runs with SIGKILL at random moments, resume them, compare the ends bit by bit.

    python scripts/kill_campaign.py [--kills 20] [--seed 0] [--saved]

`thinned verify-resume` kills one run several times; here each kill has a run, and so a verdict, of
its own. Moments are drawn over the whole life of a process, from its first import to its exit; with
`--saved`, over the steps that it saves, and shortly after one of them, when there is something to
lose. That two uninterrupted runs are equal is checked first: otherwise nothing is shown.
"""

import argparse
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from thinned import Config
from thinned.core.config import to_json, with_values
from thinned.core.errors import ThinnedError
from thinned.runs.run import Run
from thinned.runs.verify import differing

SMALL = {
    "data": {"limit": 640, "validation": 64},
    "epochs": 12,
    "keep_best": "accuracy",
    # So often that a good part of the kills falls into a save.
    "checkpoint_every_s": 0.05,
}
NETWORKS = {
    "mlp": {"model": "mlp", "mlp": {"hidden": [64, 64]}, "optim": {"name": "sgd"}},
    "cnn": {"model": "cnn", "optim": {"ema": 0.9}},
}
SHORTLY_S = 0.3
"""After a save, the longest time until a kill: about that between two saves, and of one."""
LIMIT_S = 900.0
"""No process may take longer: then it hangs."""


def wait_for(step: float, run: Path, process: subprocess.Popen[str]) -> None:
    """Until a run has a checkpoint of that step or a later one, or the process has ended."""
    saves, late = run / "checkpoints", time.monotonic() + LIMIT_S
    # Orbax writes into a folder of another name, which it renames at the end.
    while not any(each.name.isdecimal() and int(each.name) >= step for each in saves.glob("*")):
        if process.poll() is not None or time.monotonic() > late:
            return
        time.sleep(0.01)


class Subject:
    """One network, its config as a file, and the uninterrupted run that others must equal."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        folder.mkdir()
        config = with_values(Config(), {**SMALL, **NETWORKS[name]}, "script")
        (folder / "config.json").write_text(to_json(config), encoding="utf-8")
        self.finish("whole")
        started = time.monotonic()
        self.finish("control")
        # The second, which finds everything compiled, as the killed ones will.
        self.duration = time.monotonic() - started
        self.whole = Run.open(folder / "whole")
        if wrong := self.compared("control"):
            raise SystemExit(f"{name}: two uninterrupted runs differ: {', '.join(wrong)}")

    def start(self, run: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "thinned", "train", "--quiet", "--name", run]
        command += ["-c", str(self.folder / "config.json"), "--runs", str(self.folder)]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

    def finish(self, run: str) -> None:
        process = self.start(run)
        try:
            _, errors = process.communicate(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            errors = f"no end after {LIMIT_S:g} s"
        finally:
            process.kill()
            process.wait()
        if process.returncode:
            raise ThinnedError(f"training failed: {errors.strip()}")

    def killed(self, run: str, after: float, step: float | None) -> bool:
        """Whether a run was killed so many seconds after its start, or a save; else it ended."""
        process = self.start(run)
        if step is not None:
            wait_for(step, self.folder / run, process)
        try:
            process.communicate(timeout=after)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
        return process.returncode == -signal.SIGKILL

    def where(self, run: str) -> str:
        """What a killed run left on the disk."""
        folder = self.folder / run
        if not (folder / "config.json").exists():
            return "before its folder was made"
        steps = Run.open(folder).checkpoints.steps()
        # The best epoch's is written first, beside the checkpoints.
        saves = folder.glob("checkpoints*/*")
        halves = [each for each in saves if each.is_dir() and not each.name.isdecimal()]
        place = f"after step {steps[-1]} was saved" if steps else "before a step was saved"
        return place + (", while another was" if halves else "")

    def compared(self, run: str) -> list[str]:
        """What of a run differs from the uninterrupted one, or why that cannot be told."""
        try:
            return differing(self.whole, Run.open(self.folder / run))
        except ThinnedError as error:
            return [str(error)]

    def verdict(self, run: str) -> list[str]:
        """The same after the run has gone on by the same command."""
        try:
            self.finish(run)
        except ThinnedError as error:
            return [str(error)]
        return self.compared(run)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20, help="how many runs to kill (20)")
    parser.add_argument("--seed", type=int, default=0, help="draws the moments (0)")
    parser.add_argument("--saved", action="store_true", help="kill after the first checkpoint")
    asked = parser.parse_args()
    draw, total = random.Random(asked.seed), Counter()
    with tempfile.TemporaryDirectory(prefix="thinned-kills-") as base:
        subjects = [Subject(name, Path(base, name)) for name in NETWORKS]
        # On a busy machine a run may end before its moment; each gets a second chance on average.
        for attempt in range(2 * asked.kills):
            if total["killed"] == asked.kills:
                break
            subject = subjects[attempt % len(subjects)]
            moment, after = draw.random(), draw.random() * SHORTLY_S
            if not asked.saved:
                after = moment * subject.duration
            total += one_kill(subject, attempt, moment, after, asked.saved)
    print(f"{total['killed']} killed and resumed: {total['equal']} equal, {total['wrong']} not")
    sys.exit(1 if total["wrong"] or total["killed"] < asked.kills else 0)


def one_kill(
    subject: Subject, attempt: int, moment: float, after: float, saved: bool
) -> Counter[str]:
    """Kill a run at a moment (0 to 1), go on, print and count what came of it."""
    run = f"killed-{attempt}"
    told = f"{subject.name}  at {moment:4.0%} of its {'steps' if saved else 'time'}"
    step = moment * subject.whole.checkpoints.steps()[-1] if saved else None
    if not subject.killed(run, after, step):
        print(f"{told}: had ended before", flush=True)
        return Counter()
    where = subject.where(run)
    wrong = subject.verdict(run)
    print(f"{told}, {where}: {'DIFFERS: ' + ', '.join(wrong) if wrong else 'equal'}", flush=True)
    shutil.rmtree(subject.folder / run, ignore_errors=True)
    return Counter(killed=1, wrong=bool(wrong), equal=not wrong)


if __name__ == "__main__":
    main()
