# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""net_validate's look at signed repositories, on loopback."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.goldsmith.images.plugins.module_utils import _net_plan, _net_run, _net_spec
from ansible_collections.goldsmith.images.tests.support import apt_repository

needs_tools = pytest.mark.skipif(
    bool(apt_repository.missing_tools()) or not shutil.which("gpgv"), reason="no tools to make and check signatures"
)


def look(uri: str, keyring: Path) -> tuple[str, str | None, str]:
    repository = {"uri": uri, "suite": "./", "keyring": str(keyring)}
    options: dict[str, Any] = {"interfaces": [], "default_route": False, "apt": {"repositories": [repository]}}
    [result] = _net_run.run(_net_plan.plan(_net_spec.complete(options)), timeout=10)
    return result.status, result.error_class, result.detail


def keyring(path: Path, armored: str) -> Path:
    path.write_bytes(
        subprocess.run(["gpg", "--dearmor"], input=armored.encode(), capture_output=True, check=True).stdout
    )
    return path


@needs_tools
def test_signature(tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    folder.mkdir()
    ours, our_key, _fingerprint = apt_repository.make_key()
    other, other_key, _fingerprint = apt_repository.make_key()
    try:
        apt_repository.index_and_sign(folder, ours)
        right, wrong = keyring(tmp_path / "right.gpg", our_key), keyring(tmp_path / "wrong.gpg", other_key)
        with apt_repository.serve(folder) as port:
            uri = f"http://127.0.0.1:{port}"
            status, error, detail = look(uri, right)
            assert (status, error) == ("pass", None) and detail.endswith(", signed"), detail
            assert look(uri, wrong)[:2] == ("fail", "release_signature")
            release = folder / "InRelease"
            release.write_text(release.read_text().replace("SHA256:", "SHA256:\n 0 0 forged", 1))
            assert look(uri, right)[:2] == ("fail", "release_signature")
    finally:
        for home in (ours, other):
            apt_repository.remove_key(home)
