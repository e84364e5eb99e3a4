"""Fail unless ``thinned --help`` imports no JAX and costs little more than its parser does."""

import resource
import subprocess
import sys

LIMIT = 5.0
"""Times the CPU time of importing tyro, which no machine's pace changes; JAX alone takes more."""
PROBE = (
    "import sys, thinned.cli.main\n"
    "try:\n    thinned.cli.main.main(['--help'])\n"
    "except SystemExit:\n    pass\n"
    "sys.exit(3 if 'jax' in sys.modules else 0)"
)


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def timed(*words: str) -> float:
    # The best of three: a neighbour's load can only make it slower.
    times = []
    for _ in range(3):
        before = cpu_s()
        subprocess.run([sys.executable, *words], stdout=subprocess.DEVNULL, check=True)
        times.append(cpu_s() - before)
    return min(times)


ratio = timed("-m", "thinned", "--help") / timed("-c", "import tyro")
imports_jax = subprocess.run([sys.executable, "-c", PROBE], stdout=subprocess.DEVNULL).returncode
print(
    f"thinned --help: {ratio:.1f} times the CPU time of importing tyro, "
    f"imports JAX: {'yes' if imports_jax else 'no'}"
)
sys.exit(1 if imports_jax or ratio > LIMIT else 0)
