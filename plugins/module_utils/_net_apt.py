# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: may change at any time, not for use by other collections.
"""apt repositories: a Release file that is there, is one, and is valid at this machine's time."""

from __future__ import annotations

import os
import re
import shutil
import ssl
import subprocess
import tempfile
import time
import typing as t
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime

from ansible_collections.goldsmith.images.plugins.module_utils import _openpgp
from ansible_collections.goldsmith.images.plugins.module_utils._net_http import Proxy, fetch
from ansible_collections.goldsmith.images.plugins.module_utils._net_result import (
    Deadline,
    Finding,
    Problem,
    milliseconds,
)
from ansible_collections.goldsmith.images.plugins.module_utils._net_targets import Url

PROGRAMS = "/usr/bin:/bin:/usr/local/bin"
LIMIT = 2 * 1024 * 1024
#: apt itself tolerates that much (Acquire::Max-FutureTime).
FUTURE = 10.0


def release_url(uri: str, suite: str) -> str:
    """Where the signed Release file is; a suite that ends in a slash is a flat repository."""
    base = uri.rstrip("/")
    if suite.endswith("/"):
        return "/".join([base, *suite.strip("/").split("/")]).rstrip("/") + "/InRelease"
    return f"{base}/dists/{suite}/InRelease"


def fields(text: str) -> dict[str, str]:
    """The one-line fields of a Release file, signed or not."""
    return {name: value.strip() for name, value in re.findall(r"^([A-Z][A-Za-z-]+):[ \t]+(.+)$", text, re.MULTILINE)}


def judge(text: str, now: float, where: str) -> str:
    """What is said of a Release file that is valid now; Problem if it is not."""
    found = fields(text)
    if "Date" not in found or "SHA256:" not in text.split():
        raise Problem("release_malformed", f"{where} is no Release file: {' '.join(text[:80].split())!r}")
    try:
        date = _seconds(found["Date"])
        until = _seconds(found["Valid-Until"]) if "Valid-Until" in found else None
    except ValueError as exc:
        raise Problem("release_malformed", f"{where}: {exc}") from exc
    if date > now + FUTURE:
        raise Problem("release_not_yet_valid", f"{where} is of {found['Date']}, here it is {_text(now)}")
    if until is not None and until < now:
        raise Problem("release_expired", f"{where} was valid until {found['Valid-Until']}, here it is {_text(now)}")
    return f"of {found['Date']}" + (f", valid until {found['Valid-Until']}" if until is not None else "")


def _seconds(text: str) -> float:
    try:
        when = parsedate_to_datetime(text)
    except (TypeError, ValueError, IndexError) as exc:
        raise ValueError(f"{text!r} is no date") from exc
    return when.replace(tzinfo=when.tzinfo or timezone.utc).timestamp()


def _text(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%a, %d %b %Y %H:%M:%S UTC")


def check_release(
    target: Url,
    keyring: str | None,
    proxy: Proxy | None,
    context: ssl.SSLContext | None,
    family: int,
    deadline: Deadline,
) -> Finding:
    start = time.monotonic()
    way = proxy.method if proxy else "direct"
    answer = fetch(target, deadline, proxy=proxy, context=context, family=family, limit=LIMIT)
    if answer.status != 200:
        kind = "captive_portal" if answer.status in (302, 303, 307, 511) else "http_status"
        location = answer.headers.get("Location", "")
        raise Problem(kind, f"status {answer.status} {location}".rstrip(), method=way)
    try:
        said = judge(answer.body.decode("utf-8", "replace"), time.time(), target.text)
    except Problem as exc:
        exc.method = way
        raise
    if keyring is not None:
        said += ", " + verify(answer.body, keyring, way, deadline)
    return Finding(said, way, milliseconds(start))


def verify(signed: bytes, keyring: str, way: str, deadline: Deadline) -> str:
    program = shutil.which("gpgv", path=PROGRAMS)
    if program is None:
        raise Problem("signature_unchecked", "there is no gpgv", status="warn", method=way)
    with tempfile.NamedTemporaryFile(prefix="InRelease.") as file, tempfile.NamedTemporaryFile(prefix="keys.") as keys:
        file.write(signed)
        file.flush()
        keys.write(_binary(keyring))
        keys.flush()
        command = [program, "--keyring", keys.name, file.name]
        done = subprocess.run(command, capture_output=True, timeout=max(deadline.left(), 0.1), check=False)
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise Problem("release_signature", lines[-1] if lines else "gpgv refuses it", method=way)
    return "signed"


def _binary(keyring: str) -> bytes:
    """Its keys as gpgv wants them, which, unlike apt, reads no armor."""
    with open(keyring, "rb") as file:
        data = file.read()
    if not data.lstrip().startswith(b"-----BEGIN PGP"):
        return data
    try:
        return _openpgp.dearmor(data.decode("utf-8", "replace"))
    except _openpgp.OpenPGPError as exc:
        raise Problem("release_signature", f"{keyring}: {exc}") from exc


def configured(timeout: float) -> list[tuple[str, str, str | None]]:
    """URI, suite and, where it can be checked with, keyring of each repository that apt uses over HTTP."""
    program = shutil.which("apt-get", path=PROGRAMS)
    if program is None:
        raise Problem("no_repository", "there is no apt-get")
    command = [program, "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(SIGNED_BY)", "Created-By: Packages"]
    # A file, because a pipe would also wait for whatever the program leaves running.
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
        try:
            subprocess.run(command, stdin=subprocess.DEVNULL, stdout=said, timeout=timeout, check=False)
        except subprocess.TimeoutExpired as exc:
            problem = Problem("timeout", f"apt-get indextargets has not ended in {timeout:g} s")
            problem.hint = "It only reads files in /etc/apt and /var/lib/apt: look at the disk, and what else runs."
            raise problem from exc
        said.seek(0)
        lines = [line.split() for line in said if line.startswith("http")]
    if not lines:
        raise Problem("no_repository", "apt uses no repository over HTTP")
    return list(dict.fromkeys((words[0], words[1], _keyring(words[2:])) for words in lines if len(words) > 1))


def _keyring(signed_by: t.Sequence[str]) -> str | None:
    """The one file that apt takes the keys from; not if it takes any, or has them in its configuration."""
    path = signed_by[0] if len(signed_by) == 1 else ""
    usable = os.path.isabs(path) and os.path.isfile(path) and shutil.which("gpgv", path=PROGRAMS)
    return path if usable else None


def report(problem: Problem, _deadline: Deadline) -> t.NoReturn:
    raise problem
