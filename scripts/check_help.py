"""Fail unless ``thinned --help`` imports no JAX and answers in under half a second of CPU time."""

import resource
import subprocess
import sys

LIMIT_S = 0.5
PROBE = (
    "import sys, thinned.cli.main\n"
    "try:\n    thinned.cli.main.main(['--help'])\n"
    "except SystemExit:\n    pass\n"
    "sys.exit(3 if 'jax' in sys.modules else 0)"
)


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def timed() -> float:
    before = cpu_s()
    subprocess.run(
        [sys.executable, "-m", "thinned", "--help"], stdout=subprocess.DEVNULL, check=True
    )
    return cpu_s() - before


# The best of three: a neighbour's load can only make it slower.
best = min(timed() for _ in range(3))
imports_jax = subprocess.run([sys.executable, "-c", PROBE], stdout=subprocess.DEVNULL).returncode
print(f"thinned --help: {best:.2f} s of CPU time, imports JAX: {'yes' if imports_jax else 'no'}")
sys.exit(1 if imports_jax or best > LIMIT_S else 0)
