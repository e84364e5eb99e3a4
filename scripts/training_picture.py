"""Draw docs/training.svg: what `thinned train` shows, from a real run.

python scripts/training_picture.py [options of thinned train]
"""

import io
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

TARGET = Path(__file__).parent.parent / "docs" / "training.svg"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "thinned", "train", *sys.argv[1:]]
        shown = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    console = Console(record=True, width=96, file=io.StringIO())
    console.print(Text("$ thinned train " + " ".join(sys.argv[1:]), style="bold"))
    for line in shown.stdout.splitlines():
        if not line.startswith("predict"):
            console.print(Text(line), highlight=False, soft_wrap=False)
    # The template loads its font from the web; any monospaced font will do.
    template = re.sub(r"@font-face \{\{.*?\}\}\n", "", CONSOLE_SVG_FORMAT, flags=re.S)
    template = template.replace("Fira Code, monospace", "monospace")
    console.save_svg(str(TARGET), title="thinned train", code_format=template)
    print(shown.stdout)


if __name__ == "__main__":
    main()
