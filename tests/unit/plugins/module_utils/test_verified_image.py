# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Only what was verified, and is still that, may be published."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Callable

import pytest
from ansible_collections.goldsmith.images.plugins.module_utils._verified_image import NotVerifiedError, verified_image

DISK = b"a disk"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "node.qcow2").write_bytes(DISK)
    (tmp_path / "junit.xml").write_text("<testsuites/>")
    manifest = {
        "name": "node",
        "description": "A node",
        "created": "2026-11-27T06:37:16+00:00",
        "fingerprint": "f" * 64,
        "image": {"file": "node.qcow2", "sha256": hashlib.sha256(DISK).hexdigest()},
        "verification": {"passed": True, "tests": 3, "failures": 0, "skipped": 1},
    }
    write(tmp_path, manifest)
    return tmp_path


def write(folder: Path, manifest: Any) -> None:
    (folder / "manifest.json").write_text(json.dumps(manifest))
    names = ("node.qcow2", "junit.xml", "manifest.json")
    sums = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (folder / "SHA256SUMS").write_text("".join(sums))


def change(*keys: str, to: Any) -> Callable[[Path], None]:
    """Change the manifest, and its digest with it."""

    def apply(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        place = manifest
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = to
        write(folder, manifest)

    return apply


def test_a_verified_image(folder: Path) -> None:
    assert verified_image(folder) == {
        "path": str(folder / "node.qcow2"),
        "sha256": hashlib.sha256(DISK).hexdigest(),
        "name": "node",
        "description": "A node",
        "created": "2026-11-27T06:37:16+00:00",
        "fingerprint": "f" * 64,
    }


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), "manifest.json: No such file or directory"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "is no manifest of an image"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "is no manifest of an image"),
        (change("image", to={}), "is no manifest of an image"),
        (change("verification", to=None), "is no manifest of an image"),
        (change("verification", "passed", to=False), "has not passed a verification (3 checks, 0 failed)"),
        (change("verification", "passed", to="true"), "has not passed a verification"),
        (change("verification", "tests", to=1), "has not passed a verification (1 checks"),
        (change("image", "sha256", to="0" * 64), "give node.qcow2 different digests"),
        (change("image", "file", to="other.qcow2"), "does not name other.qcow2"),
        (lambda folder: (folder / "SHA256SUMS").unlink(), "SHA256SUMS cannot be read"),
        (lambda folder: (folder / "SHA256SUMS").write_text("junk\n"), "lines that are no digest and name"),
        (lambda folder: (folder / "SHA256SUMS").write_text(f"{'0' * 64}  ../x\n"), "lines that are no digest and name"),
        (lambda folder: (folder / "SHA256SUMS").write_text(""), "does not name node.qcow2"),
        (lambda folder: (folder / "node.qcow2").write_bytes(b"another disk"), "it was changed afterwards"),
        (lambda folder: (folder / "node.qcow2").unlink(), "node.qcow2 cannot be read"),
        (lambda folder: (folder / "junit.xml").write_text("<testsuites failures='0'/>"), "it was changed afterwards"),
        (lambda folder: (folder / "manifest.json").open("a").write("\n"), "it was changed afterwards"),
    ],
)
def test_what_is_refused(folder: Path, spoil: Callable[[Path], Any], message: str) -> None:
    spoil(folder)
    with pytest.raises(NotVerifiedError) as refused:
        verified_image(folder)
    assert message in str(refused.value)
    assert str(folder) in str(refused.value)
