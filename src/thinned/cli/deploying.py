"""Commands that take runs elsewhere: export, serve."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional

from thinned.cli.options import Debug, is_artifact
from thinned.core.config import Option
from thinned.core.errors import RequestError, need


@dataclass(frozen=True)
class Export:
    """Write a folder that answers without thinned or Flax, once it is compared with the run."""

    paths: Annotated[
        Positional[tuple[Path, ...]],
        Option("Run folder (or several, as an ensemble), then the folder to write."),
    ]
    samples: Annotated[
        int,
        Option("Thinned networks of each run that it can ask; 0 for none.", "samples", low=0),
    ] = 30
    coverage: Annotated[
        float,
        Option("Its sets of classes hold the right one of this part.", "of the images", 0, 1),
    ] = 0.95
    sets: Annotated[
        Literal["lac", "aps", "raps"], Option("Kind of set, as for thinned predict.")
    ] = "lac"
    risk: Annotated[
        float,
        Option("At most this part of its sure answers is wrong.", "of the answers", 0, 1),
    ] = 0.01
    confidence: Annotated[float, Option("How surely --risk holds.", "probability", 0, 1)] = 0.95
    ood_fpr: Annotated[
        float,
        Option("This part of known images is marked as none.", "of the images", 0, 1),
    ] = 0.05
    bound: Annotated[
        float,
        Option("Largest difference of a probability from the run's own.", "probability", low=0),
    ] = 1e-6
    onnx: Annotated[
        bool, Option("Write the plain pass as an ONNX model, too, compared by ONNX Runtime.")
    ] = False
    debug: Debug = False

    def __call__(self) -> None:
        """Export, and say how it compares."""
        if len(self.paths) < 2:
            raise RequestError("give a run folder (or several), then the folder to write")
        from thinned.deploy.export import export
        from thinned.deploy.onnx import needed_for_onnx
        from thinned.deploy.promises import Asked
        from thinned.runs.predictions import load_runs

        if self.onnx:
            needed_for_onnx()
        *runs, out = self.paths
        asked = Asked(
            self.samples, self.coverage, self.sets, self.risk, self.confidence, self.ood_fpr
        )
        export(load_runs(runs), out, asked, self.bound, onnx=self.onnx)
        print(f"artifact  {out}")
        print(f"predict   thinned predict {out} IMAGES")
        print(f"serve     thinned serve {out}")


@dataclass(frozen=True)
class Serve:
    """Answer over HTTP, with a page to try it; 127.0.0.1 alone unless told otherwise."""

    paths: Annotated[
        Positional[tuple[Path, ...]],
        Option("Exported artifact, or run folder (or several, as an ensemble)."),
    ]
    host: Annotated[str, Option("Address to listen on; 0.0.0.0 for every one.")] = "127.0.0.1"
    port: Annotated[int, Option("Port to listen on; 0 for any that is free.", "", 0, 65535)] = 8000
    samples: Annotated[
        int | None,
        Option(
            "Thinned networks of each run; 0 for dropout off. The artifact's own, or 30.",
            "samples",
            low=0,
        ),
    ] = None
    coverage: Annotated[
        float | None,
        Option(
            "Sets of classes hold the right one of this part; the artifact's own, or 0.95.",
            "of the images",
            0,
            1,
        ),
    ] = None
    debug: Debug = False

    def __call__(self) -> None:
        """Warm up, say where, and answer until a signal."""
        if not self.paths:
            raise RequestError("no artifact and no run is given")
        for module in ("starlette", "uvicorn", "multipart", "prometheus_client"):
            need(module, "serving", "serve")
        from thinned.deploy.server import Model, Service, bound_to, serve

        with bound_to(self.host, self.port) as bound:
            model = Model(*self._asked())
            for promise in model.answers.promises:
                print(promise)
            print(f"warming up {model.artifact.name} ...", flush=True)
            model.warm_up()
            host = f"[{self.host}]" if ":" in self.host else self.host
            port = bound.getsockname()[1]
            bound.listen(1024)
            print(f"serving on http://{host}:{port} (Ctrl-C stops)", flush=True)
            try:
                serve(Service(model), bound)
            except KeyboardInterrupt:
                raise SystemExit(130) from None

    def _asked(self) -> tuple[Any, Any]:
        """What is asked, and in which way."""
        from thinned.deploy.artifact import Artifact
        from thinned.deploy.export import in_memory
        from thinned.deploy.promises import Asked, refuse_other_coverage
        from thinned.runs.predictions import load_runs

        if is_artifact(self.paths):
            first, *others = self.paths
            if others:
                raise RequestError("one artifact is served at a time; several runs, as an ensemble")
            artifact = Artifact.open(first)
            samples = artifact.samples if self.samples is None else self.samples
            way = artifact.best_way(samples)
            refuse_other_coverage(way, self.coverage)
            return artifact, way
        runs = load_runs(self.paths)
        default = Asked()
        samples = default.samples if self.samples is None else self.samples
        coverage = default.coverage if self.coverage is None else self.coverage
        artifact = in_memory(runs, Asked(samples, coverage))
        return artifact, artifact.best_way(samples)
