# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: may change at any time, not for use by other collections.
"""The output folder of an image: all of its files take their places together."""

from __future__ import annotations

import json
import os
import shutil
import typing as t
from pathlib import Path

from ansible_collections.goldsmith.images.plugins.module_utils._cache import file_digest
from ansible_collections.goldsmith.images.plugins.module_utils._command import uninterrupted


def join_files(sources: list[str], target: Path) -> bool:
    """Write the existing ones of *sources* one after the other to *target*; return whether there were any."""
    existing = [Path(source) for source in sources if os.path.isfile(source)]
    if not existing:
        return False
    with target.open("wb") as output:
        for source in existing:
            if len(sources) > 1:
                output.write(f"===== {source.name} =====\n".encode())
            output.write(source.read_bytes())
    return True


def put_in_place(files: t.Mapping[str, Path], output: Path) -> None:
    """Move *files*, name -> where it is on the same file system, to *output*, in this order."""
    for path in files.values():
        os.chmod(path, 0o644)
    with uninterrupted():
        for name, path in files.items():
            os.replace(path, output / name)


def write_output(
    output: Path, evidence: t.Mapping[str, list[str]], manifest: t.Mapping[str, t.Any], images: t.Mapping[str, Path]
) -> list[str]:
    """Put images (moved), evidence, manifest and digests into *output*; return the names of the files.

    The manifest comes last, so that it never speaks of an image that is not there.
    """
    output.mkdir(parents=True, exist_ok=True)
    staging = output / ".new"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(mode=0o700)
    files: dict[str, Path] = {}
    try:
        for name, image in images.items():
            # On this file system the last step is a rename; from another one the image is copied first.
            same = image.stat().st_dev == staging.stat().st_dev
            files[name] = image if same else Path(shutil.copyfile(image, staging / name))
        for name, sources in evidence.items():
            if join_files(sources, staging / name):
                files[name] = staging / name
        (staging / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        last = {"manifest.json": staging / "manifest.json"}
        sums = "".join(f"{file_digest(path)}  {name}\n" for name, path in {**files, **last}.items())
        (staging / "SHA256SUMS").write_text(sums, encoding="utf-8")
        put_in_place({**files, "SHA256SUMS": staging / "SHA256SUMS", **last}, output)
        for image in images.values():
            image.unlink(missing_ok=True)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return [*files, *last, "SHA256SUMS"]
