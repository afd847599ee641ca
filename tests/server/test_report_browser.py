"""A browser opens the report without a complaint, blocks whatever would load, and shows it on a phone too."""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from server.report import write_report
from server.report.panels import Panel, Panels
from tests.server.test_report import GOOD, lines, score, site
from tests.server.test_report_audits import FILES

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
POLICY = """<meta http-equiv="Content-Security-Policy" content="default-src 'none';"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH (Debian: apt install chromium)"),
]


def browser(profile: Path, page: Path, *options: str, width: int = 400) -> subprocess.CompletedProcess[str]:
    """Open a page; the browser itself can reach nobody."""
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={profile}", f"--window-size={width},900"]
    command += ["--enable-logging=stderr", "--log-level=0", *options, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with every section: probe, classifier of eight classes, all audits, images, missed rounds."""
    folder = tmp_path_factory.mktemp("run")
    names = [f"a class with a long name {number}" for number in range(8)]
    per_class = {name: score([0.5, 0.5])["per_class"]["mel"] for name in names}
    pooled = score([0.5, 0.5]) | {
        "per_class": per_class,
        "confusion": [[1000 * (row == column) + column for column in range(8)] for row in range(8)],
        "calibration": {"ece": 0.1, "reliability": [{"images": 9, "confidence": 0.6, "accuracy": 0.5}]},
        "n_patients": 100,
    }
    missed = [{"round": 2, "code": "timeout", "reason": "no answer before the deadline"}]
    sites = [site("a-hospital-with-quite-a-long-name-for-a-table"), site("beta", missed=missed, rounds_answered=3)]
    classifier = {"mode": "finetune", "classes": names, "labels": 1.0, "pooled": pooled, "sites": {"beta": pooled}}
    (folder / "results.json").write_text(json.dumps(GOOD | {"sites": sites, "downstream": classifier}))
    (folder / "metrics.jsonl").write_text("\n".join(json.dumps(line) for line in lines([one["name"] for one in sites])))
    for name, content in FILES.items():
        (folder / name).write_text(json.dumps(content))
    content = io.BytesIO()
    Image.new("RGB", (224, 224), (200, 120, 90)).save(content, format="PNG")
    picture = f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
    panels = Panels("grad-cam", (Panel(picture, picture, names[0], names[1]),) * 8, held_out=True, phantom=True)
    return write_report(folder, panels)


def test_the_browser_has_nothing_to_complain_of(page: Path, tmp_path: Path) -> None:
    opened = browser(tmp_path, page, "--dump-dom")
    assert "CONSOLE" not in opened.stderr
    for tag in ("<svg", "<figure", "<table", "<img"):
        assert opened.stdout.count(tag) == page.read_text().count(tag) > 0


def test_what_a_page_would_load_is_blocked_and_the_browser_says_so(page: Path, tmp_path: Path) -> None:
    """That it complains here shows that the test above would notice."""
    other = tmp_path / "other.html"
    more = '<img src="http://a.example/x.png"><link rel="stylesheet" href="http://a.example/x.css"><script>1</script>'
    other.write_text(page.read_text().replace("</body>", more + "</body>"))
    said = browser(tmp_path / "profile", other, "--dump-dom").stderr
    assert said.count("violates the following Content Security Policy directive") == 3


@pytest.mark.parametrize("width", [400, 1280])
def test_nothing_is_wider_than_the_screen(page: Path, tmp_path: Path, width: int) -> None:
    """Measured by a script, which the page's own policy would not let run: in a copy without it."""
    text = page.read_text()
    assert POLICY in text
    root = "document.documentElement"
    script = f"<script>document.body.dataset.beyond = {root}.scrollWidth - {root}.clientWidth</script></body>"
    other = tmp_path / "other.html"
    other.write_text(text.replace(POLICY, POLICY.replace("Content-Security-Policy", "x")).replace("</body>", script))
    assert 'data-beyond="0"' in browser(tmp_path / "profile", other, "--dump-dom", width=width).stdout
    browser(tmp_path / "profile", page, f"--screenshot={tmp_path / 'shot.png'}", width=width)
    with Image.open(tmp_path / "shot.png") as shot:
        assert shot.width == width and len(shot.convert("RGB").getcolors(1 << 24)) > 50  # type: ignore[arg-type]
