# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection goldsmith.images: it may change at any time and is not for use by other collections.
"""The log-in page in a real Chromium: whether it renders, can be used, and has no errors of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import tempfile
import typing as t
import urllib.parse

from ansible_collections.goldsmith.images.plugins.module_utils._https_client import Place, printable
from ansible_collections.goldsmith.images.plugins.module_utils._net_result import Deadline

PROGRAMS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
#: A browser that only looks at this page: nothing is fetched from, or sent to, anybody else.
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-default-apps",
)
LIMIT_ERRORS = 20
#: Milliseconds for a question to a page that has had its time.
PATIENCE = 1000
PASSWORD = "input[type=password]"
# CML's field may be of any of these kinds; what it is not is hidden, a box or a button.
USER = "input:not([type]), input[type=text], input[type=email], input[type=search]"


class BrowserError(Exception):
    """There is no browser to look with; the text says what to install."""


@dataclasses.dataclass
class Page:
    title: str = ""
    user_field: bool = False
    password_field: bool = False
    errors: list[str] = dataclasses.field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        found = [] if self.user_field else ["no field for the user name is visible"]
        found += [] if self.password_field else ["no field for the password is visible"]
        return found + [f"error in the page: {text}" for text in self.errors]


def find_browser(path: str | None) -> str:
    found = shutil.which(path) if path else next(filter(None, map(shutil.which, PROGRAMS)), None)
    if found:
        return found
    if path:
        raise BrowserError(f"there is no browser {path}")
    raise BrowserError(
        "the level browser needs Chromium: apt-get install chromium-headless-shell (Debian), or give browser_path"
    )


def look(place: Place, path: str, deadline: Deadline, browser: str | None, ignore_certificates: bool) -> Page:
    """Open the page, and wait until the password can be entered. The caller has checked the certificate."""
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError as error:
        raise BrowserError(
            "the level browser needs the Python library playwright where the module runs: pip install playwright"
        ) from error
    program = find_browser(browser)
    page = Page()
    with tempfile.TemporaryDirectory(prefix="goldsmith-browser-") as profile, sync_playwright() as playwright:
        try:
            context = playwright.chromium.launch_persistent_context(
                profile,
                executable_path=program,
                headless=True,
                args=list(ARGUMENTS),
                ignore_https_errors=ignore_certificates,
                timeout=deadline.left() * 1000,
            )
        except Error as error:
            raise BrowserError(f"{program} cannot be started: {printable(error.message)}") from error
        try:
            _stay_on(context, place.host)
            tab = context.new_page()
            tab.on("console", lambda message: _note(page, message.text) if message.type == "error" else None)
            tab.on("pageerror", lambda error: _note(page, str(error)))
            tab.on("requestfailed", lambda request: _note(page, f"{request.url}: {request.failure}"))
            tab.goto(f"{place}{path}", timeout=deadline.left() * 1000, wait_until="load")
            # A page that is drawn by a script has its fields later than its frame.
            tab.wait_for_selector(PASSWORD, state="visible", timeout=deadline.left() * 1000)
        except Error as error:
            if "waiting for" not in error.message:
                _note(page, error.message)
        finally:
            if context.pages:
                _read(context.pages[-1], page, Error)
            context.close()
    return page


def _stay_on(context: t.Any, host: str) -> None:
    """Requests to any other host are not made."""

    def decide(route: t.Any) -> None:
        parts = urllib.parse.urlsplit(route.request.url)
        if parts.scheme == "data" or parts.hostname == host:
            route.continue_()
        else:
            route.abort()

    context.route("**/*", decide)


def _read(tab: t.Any, page: Page, errors: type[Exception]) -> None:
    """What is there at the end. Each question has its own time-out: a page whose script never ends answers none."""
    with contextlib.suppress(errors):
        page.title = printable(tab.locator("title").first.text_content(timeout=PATIENCE))
    with contextlib.suppress(errors):
        tab.wait_for_selector(PASSWORD, state="visible", timeout=PATIENCE)
        page.password_field = True
    with contextlib.suppress(errors):
        tab.locator(USER).locator("visible=true").first.wait_for(timeout=PATIENCE)
        page.user_field = True


def _note(page: Page, text: str) -> None:
    if len(page.errors) < LIMIT_ERRORS:
        page.errors.append(printable(" ".join(text.split())))
