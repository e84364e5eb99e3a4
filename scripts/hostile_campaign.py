"""Give bad inputs to the command line, in one process: each must be answered, briefly.

    python scripts/hostile_campaign.py [--count 400] [--seed 0] [--only FAMILY/INDEX]

The exit code must be 0, 1, 2 or 130, standard error must hold a few lines without a traceback or an
unexpected error, nothing may be written outside the working folder, and all that in bounded time:
after some seconds Ctrl-C is pressed, which whatever is training answers by saving and stopping.
`--only` gives one input again and shows the answer.
"""

import argparse
import contextlib
import os
import resource
import signal
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import hostile_inputs

from thinned.cli.main import main as thinned_main
from thinned.core.errors import printable

MOST_LINES = 6


class NoAnswer(BaseException):
    """Neither an answer in time, nor one to Ctrl-C."""


@dataclass(frozen=True)
class Answer:
    """What came of one input."""

    words: list[str]
    code: int
    errors: str
    faults: tuple[str, ...]

    @property
    def kind(self) -> str:
        if self.faults:
            return "failed"
        if self.code in (0, 130):
            return "accepted"
        return "refused in one line" if len(self.errors.splitlines()) == 1 else "refused, notes too"


@contextlib.contextmanager
def captured(path: Path) -> Iterator[None]:
    """Both outputs of the process, those of C libraries included, in a file."""
    sys.stdout.flush()
    kept = [os.dup(1), os.dup(2)]
    with open(os.devnull, "wb") as nothing, path.open("wb") as file:
        os.dup2(nothing.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
                sys.stderr.flush()
            for target, copy in enumerate(kept, 1):
                os.dup2(copy, target)
                os.close(copy)


@contextlib.contextmanager
def bounded(patience_s: float) -> Iterator[list[int]]:
    """Ctrl-C after some seconds, an end after as many again; the list counts how often."""
    rung: list[int] = []

    def ring(*_: object) -> None:
        rung.append(1)
        if len(rung) > 1:
            raise NoAnswer
        signal.raise_signal(signal.SIGINT)

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, patience_s, patience_s)
    try:
        yield rung
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def asked(words: list[str], base: Path, patience_s: float) -> Answer:
    """Give the words to the command line in the folder ``base/a/b``, and judge the answer."""
    work, errors, before = base / "a" / "b", base / "errors", Path.cwd()
    os.chdir(work)
    code, faults = 1, []
    with captured(errors), bounded(patience_s) as rung:
        try:
            code = thinned_main(words)
        except NoAnswer:
            faults.append("does not end, and does not answer Ctrl-C")
        except BaseException as error:
            faults.append(f"raises {type(error).__name__}: {printable(error)[:200]}")
    os.chdir(before)
    told = errors.read_text("utf-8", errors="backslashreplace").strip()
    # What trains says that it was stopped, and how to go on; anything else merely took too long.
    if rung and not faults and not any(work.rglob("metrics.jsonl")) and "saved" not in told:
        faults.append("takes too long")
    if code not in (0, 1, 2, 130):
        faults.append(f"exit code {code}")
    faults += [f"says {word}" for word in ("Traceback", "thinned: unexpected") if word in told]
    if len(told.splitlines()) > MOST_LINES:
        faults.append(f"says {len(told.splitlines())} lines")
    if code in (1, 2) and "thinned: " not in told:
        faults.append("does not say why it fails")
    outside = {each.name for each in (*base.iterdir(), *(base / "a").iterdir())}
    if outside - {"a", "b", "errors"}:
        faults.append(f"writes outside its folder: {outside}")
    return Answer(words, code, told, tuple(faults))


def one(family: str, seed: int, index: int, whole: Path, patience_s: float) -> Answer:
    """Make an input in a folder of its own, and ask."""
    with tempfile.TemporaryDirectory(prefix="thinned-", ignore_cleanup_errors=True) as folder:
        base = Path(folder)
        (base / "a" / "b").mkdir(parents=True)
        words = hostile_inputs.made(family, seed, index, base / "a" / "b", whole)
        return asked(words, base, patience_s)


def whole_run(folder: Path) -> Path:
    """A whole run of two checkpoints, to be copied and damaged."""
    data = hostile_inputs.tiny(folder)
    words = ["train", "--data", str(data), "--model", "mlp", "--mlp.hidden", "4", "--epochs", "2"]
    words += ["--batch-size", "8", "--data.validation", "6", "--runs", str(folder), "--quiet"]
    if thinned_main([*words, "--name", "whole"]):
        raise SystemExit("the sound run, from which damaged ones are made, could not be trained")
    return folder / "whole"


def show(answers: dict[str, list[Answer]]) -> None:
    """A table by family, then the first inputs that failed."""
    kinds = ("refused in one line", "refused, notes too", "accepted", "failed")
    print(f"{'':<24}{'tried':>6}" + "".join(f"{kind:>21}" for kind in kinds))
    everything = [each for held in answers.values() for each in held]
    for family, held in {**answers, "all": everything}.items():
        counts = Counter(each.kind for each in held)
        print(f"{family:<24}{len(held):>6}" + "".join(f"{counts[kind]:>21}" for kind in kinds))
    for family, held in answers.items():
        failed = [(at, each) for at, each in enumerate(held) if each.faults]
        for at, each in failed[:5]:
            print(f"\n{family}/{at}: {'; '.join(each.faults)}")
            print(f"  thinned {printable(' '.join(each.words))[:300]}")
            print(f"  {printable(each.errors)[-400:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=400, help="how many inputs (400)")
    parser.add_argument("--seed", type=int, default=0, help="draws them (0)")
    parser.add_argument("--only", help="one input again, as FAMILY/INDEX")
    parser.add_argument(
        "--patience",
        type=float,
        default=15.0,
        help="seconds until Ctrl-C is pressed; after as many again an input has failed (15)",
    )
    given = parser.parse_args()
    answers: dict[str, list[Answer]] = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="thinned-hostile-") as folder:
        os.environ["XDG_CACHE_HOME"] = str(Path(folder, "cache"))
        whole = whole_run(Path(folder))
        # Not before: the command line says how much JAX may say.
        import jax

        if given.only:
            family, _, index = given.only.partition("/")
            answer = one(family, given.seed, int(index), whole, given.patience)
            print(f"{answer.words}\nexit code {answer.code}\n{answer.errors}\n{answer.faults}")
            return
        for number in range(given.count):
            family = list(hostile_inputs.FAMILIES)[number % len(hostile_inputs.FAMILIES)]
            index = len(answers[family])
            answers[family].append(one(family, given.seed, index, whole, given.patience))
            if number % 40 == 39:
                # Thousands of programs of other shapes take gigabytes otherwise.
                jax.clear_caches()
                print(f"{number + 1} of {given.count}", file=sys.stderr, flush=True)
    show(answers)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"\nmemory at most {peak:.1f} GB", file=sys.stderr)
    sys.exit(any(each.faults for held in answers.values() for each in held))


if __name__ == "__main__":
    main()
