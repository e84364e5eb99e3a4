"""Commands of many runs: study, reproduce."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional, arg

from thinned.cli.options import ConfigFile, Debug
from thinned.core.config import Config, Option
from thinned.core.errors import RequestError
from thinned.core.validation import validate
from thinned.studies.arms import grid, sample, varied

# JAX is imported only once a command runs: `thinned --help` must answer at once.


@dataclass(frozen=True)
class Study:
    """Compare ways to train over several seeds, with intervals and paired tests."""

    config: Annotated[Config, arg(name="")] = field(default_factory=Config)
    config_file: ConfigFile = None
    vary: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]],
        Option(
            "OPTION=A,B,C or OPTION=START:STOP:STEP, e.g. dropout.rate=0:0.9:0.1; several make "
            "every combination an arm."
        ),
    ] = ()
    seeds: Annotated[int, Option("Runs of each arm, with seeds from --seed on.", "runs", low=1)] = 3
    baseline: Annotated[
        str | None, Option("Arm that the others are compared with; the first when absent.")
    ] = None
    random: Annotated[
        int | None, Option("Run only so many of the arms, drawn by --seed.", "arms", low=1)
    ] = None
    search: Annotated[
        int | None,
        Option("Let Optuna choose so many of the arms, one after another, by validation.", low=1),
    ] = None
    name: Annotated[
        str | None, Option("Name of the study; a study of that name goes on. [default: made up]")
    ] = None
    runs: Annotated[Path, Option("Folder of all runs and studies.")] = Path("runs")
    processes: Annotated[int, Option("Processes that share the runs and the CPU cores.", low=1)] = 1
    cluster: Annotated[
        str | None,
        Option(
            "Dask scheduler whose workers do the runs, tcp://HOST:PORT; or local, for --processes "
            "workers made here (extra `cluster`)."
        ),
    ] = None
    debug: Debug = False

    def __call__(self) -> None:
        """Run what was not run yet; print the table, write the page."""
        from thinned.studies import study
        from thinned.studies.cluster import refuse_missing
        from thinned.studies.page import told

        for name in ("seeds", "random", "search", "processes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RequestError(f"--{name} is {value}: must be at least 1")
        self._refuse_unused()
        if self.cluster is not None:
            refuse_missing()
        config = validate(self.config)
        arms = grid(varied(self.vary, config))
        if self.random is not None:
            arms = sample(arms, self.random, config.seed, self.baseline)
        seeds = range(config.seed, config.seed + self.seeds)
        wanted = study.Study.of(config, arms, seeds, self.baseline)
        folder = study.folder_of(self.runs, self.name)
        print(f"{folder}: arms {len(arms)}, seeds {self.seeds}", flush=True)
        tell = partial(print, flush=True)
        with study.stoppable(f"the same command, --name {folder.relative_to(self.runs)}"):
            if self.search is None:
                rows = study.run_study(wanted, folder, tell, self.processes, self.cluster)
            else:
                rows = study.search(wanted, folder, self.search, tell, self.processes, self.cluster)
        # With the looks of before.
        wanted = study.Study.open(folder)
        print(f"\n{told(wanted, rows)}", flush=True)
        from thinned.studies.page import write_study_page

        try:
            print(f"\n{write_study_page(folder, wanted, rows)}")
        except RequestError as error:
            # The study is done and told: a picture of it can be had at any later time.
            print(f"\nno {folder / 'study.html'}: {error}, and run the same command again")
        study.refuse_fruitless(folder, rows)

    def _refuse_unused(self) -> None:
        if self.search is not None and self.random is not None:
            raise RequestError("--search and --random exclude each other: give one of them")


@dataclass(frozen=True)
class Reproduce:
    """A published table or figure, run again; the published values beside ours."""

    what: Annotated[Positional[str | None], Option("Its name; all are listed when absent.")] = None
    budget: Annotated[
        Literal["smoke", "short", "full"],
        Option("smoke shows that it runs; short shows the order; full is as published."),
    ] = "short"
    rows: Annotated[tuple[str, ...], Option("Only these rows; see the listing.")] = ()
    seeds: Annotated[int | None, Option("Runs of each row; the budget's when absent.", low=1)] = (
        None
    )
    runs: Annotated[Path, Option("Folder of all runs and studies.")] = Path("runs")
    processes: Annotated[int, Option("Processes that share the runs and the CPU cores.", low=1)] = 1
    debug: Debug = False

    def __call__(self) -> None:
        """Run what was not run yet; print the table and say where the rest is."""
        from thinned.studies import reproduce
        from thinned.studies.study import refuse_fruitless, stoppable

        if self.what is None:
            for name in reproduce.names():
                about = reproduce.Reproduction.open(name).about
                print(f"{name}\n    {about['title']}")
                for arm in about.get("arms", ()):
                    print(f"        {arm['name']}")
            return
        wanted = reproduce.Reproduction.open(self.what)
        study = wanted.study(self.budget, self.rows, self.seeds)
        folder = self.runs / f"{wanted.name}-{self.budget}"
        print(f"{folder}: arms {len(study.arms)}, seeds {len(study.seeds)}", flush=True)
        tell = partial(print, flush=True)
        with stoppable("the same command"):
            result = reproduce.reproduce(wanted, study, folder, self.budget, tell, self.processes)
        print(f"\n{result}")
        refuse_fruitless(folder, result.rows)
        print(f"\n{folder / 'study.html'}, {folder / (wanted.name + '.svg')}")
