# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""net_validate's look at signed repositories, on loopback."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.goldsmith.images.plugins.module_utils import _net_apt, _net_plan, _net_run, _net_spec
from ansible_collections.goldsmith.images.plugins.module_utils._net_result import Result
from ansible_collections.goldsmith.images.tests.support import apt_repository

needs_tools = pytest.mark.skipif(
    bool(apt_repository.missing_tools()) or not shutil.which("gpgv"), reason="no tools to make and check signatures"
)


def run(timeout: float, **apt: Any) -> Result:
    options: dict[str, Any] = {"interfaces": [], "default_route": False, "apt": apt, "timeout": timeout}
    [result] = _net_run.run(_net_plan.plan(_net_spec.complete(options)), timeout)
    return result


def look(uri: str, keyring: Path) -> tuple[str, str | None, str]:
    result = run(10, repositories=[{"uri": uri, "suite": "./", "keyring": str(keyring)}])
    return result.status, result.error_class, result.detail


def keyring(path: Path, armored: str) -> Path:
    path.write_bytes(
        subprocess.run(["gpg", "--dearmor"], input=armored.encode(), capture_output=True, check=True).stdout
    )
    return path


@dataclass(frozen=True)
class Signed:
    """A repository that is served, its key, and another one that has nothing to do with it."""

    uri: str
    folder: Path
    armored: str
    right: Path
    wrong: Path


@pytest.fixture
def signed(tmp_path: Path) -> Iterator[Signed]:
    folder = tmp_path / "repository"
    folder.mkdir()
    ours, our_key, _fingerprint = apt_repository.make_key()
    other, other_key, _fingerprint = apt_repository.make_key()
    try:
        apt_repository.index_and_sign(folder, ours)
        right, wrong = keyring(tmp_path / "right.gpg", our_key), keyring(tmp_path / "wrong.gpg", other_key)
        with apt_repository.serve(folder) as port:
            uri = f"http://127.0.0.1:{port}"
            yield Signed(uri, folder, our_key, right, wrong)
    finally:
        for home in (ours, other):
            apt_repository.remove_key(home)


@needs_tools
def test_signature(signed: Signed, tmp_path: Path) -> None:
    status, error, detail = look(signed.uri, signed.right)
    assert (status, error) == ("pass", None) and detail.endswith(", signed"), detail
    assert look(signed.uri, signed.wrong)[:2] == ("fail", "release_signature")
    (tmp_path / "right.asc").write_text(signed.armored)
    status, error, detail = look(signed.uri, tmp_path / "right.asc")
    assert (status, error) == ("pass", None) and detail.endswith(", signed"), detail
    release = signed.folder / "InRelease"
    release.write_text(release.read_text().replace("SHA256:", "SHA256:\n 0 0 forged", 1))
    assert look(signed.uri, signed.right)[:2] == ("fail", "release_signature")


def apt_get(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """What apt says of its configuration; no repository of this machine is asked."""
    (folder / "bin").mkdir(exist_ok=True)
    program = folder / "bin/apt-get"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(_net_apt, "PROGRAMS", f"{folder}/bin:{_net_apt.PROGRAMS}")


def test_apt_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    apt_get(tmp_path, monkeypatch, "sleep 60")
    result = run(1, configured=True)
    assert (result.target, result.status, result.error_class) == ("configured repositories", "fail", "timeout")
    assert "apt-get indextargets has not ended in 0.5 s" in result.detail
    assert "look at the disk" in result.hint


@needs_tools
def test_configured_repository(signed: Signed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for signed_by, status, said in (
        (signed.right, "pass", ", signed"),
        (signed.wrong, "fail", "No public key"),
        # As apt has it where the configuration does not say.
        ("$(SIGNED_BY)", "pass", ""),
        (f"{signed.right} {signed.wrong}", "pass", ""),
    ):
        apt_get(tmp_path, monkeypatch, f"echo '{signed.uri} ./ {signed_by}'")
        result = run(10, configured=True)
        assert (result.status, result.target) == (status, f"{signed.uri}/./InRelease"), result
        assert result.detail.endswith(said) and (said or "signed" not in result.detail), result
