"""Commands that prove: doctor, what dropout and this machine really do; verify-resume."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from thinned.cli.options import ConfigFile, Debug
from thinned.core.config import Config, Option
from thinned.core.errors import RequestError, ThinnedError

# JAX is imported only once a command runs: `thinned --help` must answer at once.


@dataclass(frozen=True)
class Doctor:
    """Audit the dropout of a run or a config: what really happens, measured."""

    target: Annotated[
        Positional[Path | None],
        Option("Run folder, or YAML or JSON file of options; none with --stack."),
    ] = None
    stack: Annotated[
        bool, Option("Try instead whether JAX computes right on this machine; takes seconds.")
    ] = False
    draws: Annotated[int, Option("Training steps to measure.", "steps", low=8)] = 64
    debug: Debug = False

    def __call__(self) -> None:
        """Print the report; fail when any check does."""
        if self.draws < 8:
            raise RequestError(f"--draws is {self.draws}: must be at least 8")
        if self.stack:
            self._examine()
            return
        if self.target is None:
            raise RequestError("give a run folder or a file of options, or --stack")
        from thinned.engine.devices import xla_flags
        from thinned.runs import doctor

        # A CPU passes for several devices; has no effect once JAX has started.
        with xla_flags(xla_force_host_platform_device_count=4):
            audit = doctor.diagnose(self.target, self.draws)
        print(audit, flush=True)
        if not audit.passed:
            raise ThinnedError(f"{self.target} fails its audit")

    def _examine(self) -> None:
        if self.target is not None:
            raise RequestError("--stack asks about this machine: leave out the target")
        from thinned.runs import stack

        checked = stack.examine()
        print(checked, flush=True)
        if not checked.passed:
            raise ThinnedError(
                f"JAX computes wrong on this machine ({'; '.join(checked.wrong)}): install another "
                "version of jax, by the constraints.txt of thinned"
            )


@dataclass(frozen=True)
class VerifyResume:
    """Prove that a killed and resumed run ends bit-identical to one that was never stopped."""

    config: Annotated[Config, arg(name="")] = field(default_factory=Config)
    config_file: ConfigFile = None
    kills: Annotated[int, Option("How often to kill the run.", "kills", low=1)] = 3
    debug: Debug = False

    def __call__(self) -> None:
        """Train twice, kill one of the two, compare, print a verdict for every array."""
        from thinned.runs.verify import verify_resume

        if self.kills < 1:
            raise RequestError(f"--kills is {self.kills}: must be at least 1")
        if not verify_resume(self.config, self.kills):
            raise ThinnedError("the resumed run differs from the uninterrupted one")


@dataclass(frozen=True)
class VerifyLayout:
    """Prove that a run by --parallel exact ends with the same bits on other devices."""

    config: Annotated[Config, arg(name="")] = field(default_factory=Config)
    config_file: ConfigFile = None
    layouts: Annotated[
        tuple[str, ...],
        Option("DEVICES of a process, or PROCESSESxDEVICES; a CPU passes for as many devices."),
    ] = ("1", "2", "4", "2x2")
    kills: Annotated[
        int, Option("How often to kill a run whose layout changes each time.", "kills", low=0)
    ] = 1
    debug: Debug = False

    def __call__(self) -> None:
        """Train on each layout, and once on all of them in turn; print a verdict for each."""
        from thinned.runs.verify import Shape, verify_layout

        if self.kills < 0:
            raise RequestError(f"--kills is {self.kills}: must be at least 0")
        if not verify_layout(self.config, [Shape.of(each) for each in self.layouts], self.kills):
            raise ThinnedError("the bits depend on the devices")
