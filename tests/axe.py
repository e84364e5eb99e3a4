"""What axe-core, the usual checker of accessibility, says of a page in a real browser."""

import html
import json
import re
import subprocess
from importlib.resources import files
from pathlib import Path

_RUN = """<script>
axe.run().then(found => {
  const told = document.createElement('pre');
  told.id = 'axe';
  told.textContent = JSON.stringify([
    found.passes.length, found.violations.map(v => [v.id, v.nodes.map(n => n.html)])]);
  document.body.replaceChildren(told);
});
</script>"""


def violations(browser: str, page: Path, folder: Path, dark: bool = False) -> list[tuple[str, str]]:
    """Rule and element of everything that is hard to use for somebody."""
    script = (files("axe_core_python") / "axe.min.js").read_text()
    copy = folder / "axe.html"
    text = page.read_text().replace("<details>", "<details open>")
    copy.write_text(text.replace("</body>", f"<script>{script}</script>{_RUN}</body>"))
    done = subprocess.run(
        [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--no-first-run",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            "--virtual-time-budget=60000",
            f"--user-data-dir={folder / 'profile'}",
            "--dump-dom",
            copy.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    told = re.search(r'<pre id="axe">(.*?)</pre>', done.stdout, re.S)
    assert told, done.stdout[-500:] + done.stderr[-500:]
    passed, found = json.loads(html.unescape(told[1]))
    assert passed > 10
    return [(rule, element) for rule, elements in found for element in elements]
