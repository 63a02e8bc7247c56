# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The log-in page in a real browser."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ansible_collections.goldsmith.images.plugins.module_utils import _https_client
from ansible_collections.goldsmith.images.plugins.module_utils._cml_gui import CmlError
from ansible_collections.goldsmith.images.tests.support import documented
from ansible_collections.goldsmith.images.tests.support.cml_controller import (
    PAGE,
    Site,
)

CHROMIUM = shutil.which("chromium-headless-shell") or shutil.which("chromium")
needs_browser = pytest.mark.skipif(
    CHROMIUM is None or importlib.util.find_spec("playwright") is None,
    reason="needs playwright, and Debian's chromium-headless-shell",
)
BY_SCRIPT = """<html><title>drawn</title><link rel="icon" href="data:,"><body><script>
setTimeout(() => document.body.innerHTML = '<input name=u><input type=password>', 300);
</script></body></html>"""


@needs_browser
@pytest.mark.parametrize(("page", "title"), [(PAGE, "Modeling Labs & stand-in"), (BY_SCRIPT, "drawn")])
def test_log_in_page_in_chromium(site: Site, page: str, title: str) -> None:
    site.page.write_text(page, encoding="utf-8")
    result = site.check(level="browser", timeout=60)
    assert (result["ok"], result["level"], result["problems"]) == (True, "browser", [])
    assert result["browser"] == {"title": title, "user_field": True, "password_field": True, "errors": []}


@needs_browser
@pytest.mark.parametrize(
    ("body", "problems"),
    [
        pytest.param("<input name=u>", ["no field for the password"], marks=pytest.mark.slow_matrix),
        ("<input name=u><input type=password style='display:none'>", ["no field for the password"]),
        pytest.param("<input type=password>", ["no field for the user name"], marks=pytest.mark.slow_matrix),
        ("<input><input type=password><script>no.such.thing()</script>", ["no is not defined"]),
        ("<input><input type=password><img src='https://tracker.example.com/x.png'>", ["tracker.example.com"]),
        *(
            pytest.param(
                f"<input><input type=password><script{script}</script>", problems, marks=pytest.mark.slow_matrix
            )
            for script, problems in [
                (">console.error('out of order')", ["out of order"]),
                (" src='/api/v0/app.js'>", ["404"]),
            ]
        ),
    ],
)
def test_log_in_page_that_cannot_be_used(site: Site, body: str, problems: list[str]) -> None:
    site.page.write_text(f"<html><link rel='icon' href='data:,'><body>{body}</body></html>", encoding="utf-8")
    result = site.check(level="browser", timeout=8)
    assert (result["ok"], result["state"], result["level"]) == (False, "page_broken", "web")
    for text in problems:
        assert text in result["problems"][0]


@needs_browser
@pytest.mark.parametrize(
    "script",
    [pytest.param("while(true){}", marks=pytest.mark.slow_matrix), "setTimeout(() => {while(true){}}, 500)"],
)
def test_page_whose_script_never_ends(site: Site, script: str) -> None:
    page = f"<html><link rel='icon' href='data:,'><body><script>{script}</script><input></body></html>"
    site.page.write_text(page, encoding="utf-8")
    start = time.monotonic()
    result = site.check(level="browser", timeout=8)
    assert time.monotonic() - start < 8 + 10
    assert (result["ok"], result["state"], result["level"]) == (False, "page_broken", "web")
    assert "no field for the password" in result["problems"][0]


@needs_browser
def test_browser_that_cannot_be_started(site: Site) -> None:
    with pytest.raises(CmlError, match="there is no browser /no/such/browser"):
        site.check(level="browser", browser_path="/no/such/browser")
    with pytest.raises(CmlError, match="/bin/true cannot be started"):
        site.check(level="browser", browser_path="/bin/true")


@needs_browser
def test_module_with_a_browser(run_module, site: Site) -> None:
    result = run_module("cml_gui_check", host=site.url(), ca_path=site.ca_path, level="browser", timeout=60)
    documented.check_returned("cml_gui_check", result)
    assert result["ok"], result


def test_python_without_playwright_says_what_to_install(site: Site) -> None:
    # The isolated mode of this Python leaves the virtual environment's libraries out.
    code = (
        "import sys;sys.path.insert(0,sys.argv[1]);sys.modules['playwright']=None\n"
        "from ansible_collections.goldsmith.images.plugins.module_utils import _cml_gui,_https_client as h\n"
        "w=_cml_gui.Wanted(h.parse_place(sys.argv[2]),h.Trust(ca_path=sys.argv[3]),level='browser')\n"
        "_cml_gui.Check(w).run()"
    )
    tree = str(Path(_https_client.__file__).resolve().parents[2] / ".venv" / "collections")
    command = [sys.executable, "-c", code, tree, site.url(), site.ca_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode != 0
    assert "pip install playwright" in done.stderr
