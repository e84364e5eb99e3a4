"""Names in figures, whatever is in them, and figures whatever the environment says."""

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinned.core.pages import Plots, plain
from thinned.studies.arms import Arm
from thinned.studies.workers import dealt

figure = pytest.importorskip("matplotlib.figure")


@pytest.mark.parametrize("name", ["_base", "$", "$a_$", "a$_{$b", r"\\$x$\\", "__", "a & <b>"])
def test_a_name_is_drawn_as_it_is(tmp_path, name):
    def paint(axes):
        axes.plot([0, 1], [0, 1], label=plain(name))
        axes.set_xticks([0], [plain(name)])
        axes.set(xlabel=plain(name))
        axes.legend()
        (shown,) = axes.get_legend().get_texts()
        assert shown.get_text().replace(r"\$", "$").strip() == name

    assert "<svg" in Plots(tmp_path).draw("a", "b", paint)
    assert (tmp_path / "a.png").exists()


@pytest.mark.parametrize("backend", ["module://nowhere", "nonsense"])
def test_no_backend_of_the_environment_plays_a_part(tmp_path, backend):
    code = (
        "import sys; from pathlib import Path; from thinned.core.pages import Plots\n"
        "Plots(Path(sys.argv[1])).draw('a', 'b', lambda axes: axes.plot([0, 1]))\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    environment = {**os.environ, "MPLBACKEND": backend}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=environment, check=True)
    assert {path.name for path in tmp_path.iterdir()} == {"a.svg", "a.png"}


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 8), st.sets(st.integers(0, 35)))
def test_every_worker_gets_its_share_of_every_arm(arms, seeds, processes, done):
    every = [(seed, Arm(f"arm {arm}", {})) for seed in range(seeds) for arm in range(arms)]
    jobs = [job for index, job in enumerate(every) if index not in done]
    parts = dealt(jobs, processes)
    assert len(parts) == processes
    assert sorted(map(repr, (job for part in parts for job in part))) == sorted(map(repr, jobs))
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    for part in parts:
        assert part == [job for job in jobs if job in part]
    for name in {arm.name for _, arm in jobs}:
        counts = [sum(arm.name == name for _, arm in part) for part in parts]
        assert max(counts) - min(counts) <= 1
