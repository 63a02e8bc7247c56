# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: may change at any time, not for use by other collections.
"""The folder of a released image, and the proof that what lies in it now is what has passed the verification."""

from __future__ import annotations

import json
import re
import typing as t
from pathlib import Path

from ansible_collections.goldsmith.images.plugins.module_utils._cache import file_digest

SUM = re.compile(r"([0-9a-f]{64}) [ *]([^/]+)")


class NotVerifiedError(Exception):
    """There is no image here whose verification has passed; the message says what is wrong and what to do."""


def verified_image(folder: Path) -> dict[str, t.Any]:
    """Return what a publisher has to know of the image in *folder*. Raises NotVerifiedError."""
    manifest = _manifest(folder / "manifest.json")
    image, verification = manifest["image"], manifest["verification"]
    if verification.get("passed") is not True or not verification.get("tests", 0) > verification.get("skipped", 0):
        raise NotVerifiedError(
            f"{folder / 'manifest.json'}: {image['file']} has not passed a verification"
            f" ({verification.get('tests', 0)} checks, {verification.get('failures', 0)} failed): build it again"
        )
    sums = _sums(folder / "SHA256SUMS")
    for name in (image["file"], "manifest.json"):
        if name not in sums:
            raise NotVerifiedError(f"{folder / 'SHA256SUMS'} does not name {name}: build the image again")
    if sums[image["file"]] != image["sha256"]:
        raise NotVerifiedError(
            f"{folder}: SHA256SUMS and manifest.json give {image['file']} different digests: build the image again"
        )
    # The evidence too: a report that was changed afterwards proves nothing.
    for name, wanted in sums.items():
        _compare(folder / name, wanted)
    return {
        "path": str(folder / image["file"]),
        "sha256": image["sha256"],
        **{key: manifest.get(key) for key in ("name", "description", "created", "fingerprint")},
    }


def _manifest(path: Path) -> dict[str, t.Any]:
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        names = [manifest["image"]["file"], manifest["image"]["sha256"], manifest["name"], manifest["created"]]
        if not all(isinstance(name, str) for name in names) or not isinstance(manifest["verification"], dict):
            raise TypeError("a name, a date or a digest in it is no text")
    except OSError as exc:
        raise NotVerifiedError(
            f"{path}: {exc.strerror}. An image that may be published has its manifest beside it:"
            " playbooks/build_image.yml makes both"
        ) from exc
    except (ValueError, KeyError, TypeError) as exc:
        raise NotVerifiedError(f"{path} is no manifest of an image ({exc!r}): build the image again") from exc
    return t.cast("dict[str, t.Any]", manifest)


def _sums(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as exc:
        raise NotVerifiedError(f"{path} cannot be read ({exc}): build the image again") from exc
    found = [SUM.fullmatch(line) for line in lines]
    if not all(found):
        raise NotVerifiedError(f"{path} has lines that are no digest and name of a file: build the image again")
    return {match[2]: match[1] for match in found if match}


def _compare(path: Path, wanted: str) -> None:
    try:
        digest = file_digest(path)
    except OSError as exc:
        raise NotVerifiedError(f"{path} cannot be read ({exc.strerror}): build the image again") from exc
    if digest != wanted:
        raise NotVerifiedError(
            f"{path} has the sha256 {digest}, and {wanted} was verified: it was changed afterwards;"
            " build the image again"
        )
