# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: may change at any time, not for use by other collections.
"""Ask an apt repository whether it answers, and whether what it says is signed by the key it should be."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError

from ansible.module_utils.urls import open_url
from ansible_collections.goldsmith.images.plugins.module_utils._net_apt import release_url


class RepositoryError(Exception):
    """The repository cannot be used; the text says why."""


@dataclass(frozen=True)
class Release:
    """A Release file that was fetched: its digest names the state of the archive."""

    url: str
    sha256: str
    key: str = ""  # ASCII-armoured public key that signed it, where one was checked


def fetch(url: str, timeout: float = 10) -> bytes:
    """Return what *url* answers; RepositoryError names the URL and the reason."""
    try:
        with open_url(url, timeout=timeout, http_agent="goldsmith.images") as response:
            return bytes(response.read())
    except (URLError, OSError, ValueError) as exc:
        reason = getattr(exc, "reason", None) or exc
        raise RepositoryError(f"{url} does not answer: {reason}") from exc


def verified_release(uri: str, suite: str, *, key: bytes, fingerprint: str, timeout: float = 10) -> Release:
    """Return the Release file of *suite* after checking its signature.

    *key* is an OpenPGP public key, armoured or not; *fingerprint*, if not empty, is the one it must have (40
    hexadecimal digits, spaces allowed). RepositoryError when anything differs.
    """
    url = release_url(uri, suite)
    content = fetch(url, timeout)
    with tempfile.TemporaryDirectory(prefix="goldsmith-gpg-") as home:
        keyring = Path(home, "key.gpg")
        _import_key(key, keyring, Path(home))
        wanted = re.sub(r"\s", "", fingerprint).upper()
        found = _fingerprints(keyring, Path(home))
        if wanted and wanted not in found:
            raise RepositoryError(f"the key offered for {uri} has the fingerprint {', '.join(found)}, not {wanted}")
        signed = Path(home, "InRelease")
        signed.write_bytes(content)
        result = _run(["gpgv", "--homedir", home, "--keyring", str(keyring), str(signed)])
        if result.returncode != 0:
            raise RepositoryError(f"{url} is not signed by the expected key: {_last_line(result.stderr)}")
    return Release(url, hashlib.sha256(content).hexdigest(), key.decode("ascii", "replace"))


def _import_key(key: bytes, keyring: Path, home: Path) -> None:
    if b"BEGIN PGP PUBLIC KEY BLOCK" not in key:
        keyring.write_bytes(key)
        return
    result = _run(["gpg", "--homedir", str(home), "--batch", "--yes", "--dearmor", "-o", str(keyring)], key)
    if result.returncode != 0:
        raise RepositoryError(f"the repository's key cannot be read: {_last_line(result.stderr)}")


def _fingerprints(keyring: Path, home: Path) -> list[str]:
    result = _run(["gpg", "--homedir", str(home), "--batch", "--with-colons", "--show-keys", str(keyring)])
    lines = result.stdout.decode("utf-8", "replace").splitlines()
    return [line.split(":")[9] for line in lines if line.startswith("fpr:")]


def _run(command: list[str], stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    if shutil.which(command[0]) is None:
        raise RepositoryError(f"{command[0]} is not installed: apt-get install gpg gpgv")
    return subprocess.run(command, input=stdin, capture_output=True, check=False, timeout=60)


def _last_line(output: bytes) -> str:
    lines = output.decode("utf-8", "replace").strip().splitlines()
    return lines[-1] if lines else "no reason given"
