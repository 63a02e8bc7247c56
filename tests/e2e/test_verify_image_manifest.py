# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""verify_image.yml goes by the manifest that stands beside the image. Seen in check mode, which boots nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

PROMISES = {"definition": {"checks": ["base", "nonexistent"], "memory": 1024}, "verification": {"passed": True}}
#: Checks that no file has are refused by name, which shows who has named them.
REFUSED = "nonexistent"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "mine.qcow2"
    path.write_bytes(b"a disk")
    return path


def look_at(play, image: Path, *arguments: str) -> tuple[int, str]:
    done = play("playbooks/verify_image.yml", "--check", "-e", f"verify_image_path={image}", *arguments)
    return done.wait(120), " ".join(done.output.split())


def test_checks_are_those_of_the_manifest(play, image: Path) -> None:
    image.with_name("manifest.json").write_text(json.dumps({**PROMISES, "image": {"file": image.name}}))
    code, said = look_at(play, image)
    assert code == 2 and REFUSED in said, said
    code, said = look_at(play, image, "-e", '{"verify_image_checks": ["base"]}')
    assert code == 0, said


def test_manifest_of_another_image_says_nothing_of_this_one(play, image: Path) -> None:
    image.with_name("manifest.json").write_text(json.dumps({**PROMISES, "image": {"file": "other.qcow2"}}))
    code, said = look_at(play, image)
    assert code == 0 and REFUSED not in said, said


@pytest.mark.parametrize("text", ["{cut off", '{"image": {"file": "mine.qcow2"}}'], ids=["broken", "incomplete"])
def test_manifest_that_cannot_be_read_is_an_error_that_names_it(play, image: Path, text: str) -> None:
    manifest = image.with_name("manifest.json")
    manifest.write_text(text)
    code, said = look_at(play, image)
    assert code == 2 and f"{manifest} is not the manifest of an image" in said, said
