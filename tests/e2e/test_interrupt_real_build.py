# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ctrl-C on a terminal in the later phases of a real build, and a budget that is not kept: the last image stays."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

CHECKOUT = Path(__file__).resolve().parents[2]
CACHE = Path("~/.cache/goldsmith-images").expanduser()
BUILD = "playbooks/build-image.yml"
NAME = "interrupted"
LAST = {f"{NAME}.qcow2": "the last good image", "SHA256SUMS": "its sums", "manifest.json": '{"name": "interrupted"}'}
SECONDS_FOR_A_PHASE = 20 * 60
SECONDS_TO_END = 120


@pytest.fixture
def work() -> Iterator[Path]:
    """Return the folder in which the default cache keeps the builds of all images."""
    work = CACHE / "work"
    yield work
    for path in work.glob(f"{NAME}-*"):
        shutil.rmtree(path)


def write_definition(path: Path, **keys: object) -> None:
    """The shortest way to an image, from the base disk of the default image: that one is in the cache."""
    base = yaml.safe_load((CHECKOUT / "playbooks/images/cloud_base.yml").read_text())
    shared = {key: base[key] for key in ("base", "disk_size")}
    short = {"name": NAME, "build_method": "vm", "roles": [], "checks": ["identity"]}
    path.write_text(yaml.safe_dump({**shared, **short, **keys}))


def wait_for_log(work: Path, text: str) -> None:
    deadline = time.monotonic() + SECONDS_FOR_A_PHASE
    while not any(text in log.read_text(errors="replace") for log in work.glob(f"{NAME}-*/*/build.log")):
        assert time.monotonic() < deadline, f"Packer did not say {text!r}"
        time.sleep(0.5)


@pytest.mark.slow_matrix
def test_interrupted_in_every_later_phase_and_too_big_for_its_budget(play, nothing_left, work: Path, tmp_path: Path):
    definition, output = tmp_path / f"{NAME}.yml", tmp_path / "output" / NAME
    output.mkdir(parents=True)
    for name, content in LAST.items():
        (output / name).write_text(content)
    command = [BUILD, "-e", f"image={definition}", "-e", f"image_output={tmp_path}/output"]

    def the_last_image_is_there() -> bool:
        return {path.name: path.read_text(errors="replace") for path in output.iterdir()} == LAST

    def the_new_image_is_there() -> bool:
        sums = dict(reversed(line.split("  ")) for line in (output / "SHA256SUMS").read_text().splitlines())
        found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in output.iterdir()}
        manifest = json.loads((output / "manifest.json").read_text())
        assert manifest["image"]["sha256"] == sums[f"{NAME}.qcow2"]
        assert set(found) == {*sums, "SHA256SUMS"}
        return sums.items() <= found.items()

    write_definition(definition)
    provisioning = play(*command, terminal=True)
    provisioning.wait_for("provision qemu.image", SECONDS_FOR_A_PHASE)
    wait_for_log(work, "TASK [")
    provisioning.interrupt()
    assert provisioning.wait(SECONDS_TO_END) != 0
    assert nothing_left(*work.glob(f"{NAME}-*"))
    assert the_last_image_is_there()

    converting = play(*command, terminal=True)
    converting.wait_for("convert qemu.image", SECONDS_FOR_A_PHASE)
    converting.interrupt()
    assert converting.wait(SECONDS_TO_END) != 0
    assert nothing_left(*work.glob(f"{NAME}-*"))
    assert the_last_image_is_there()
    assert not list(work.glob(f"{NAME}-*/*/disk/*")), "half an image is no image"

    write_definition(definition, budgets={"size": "1MB"})
    too_big = play(*command)
    assert too_big.wait(SECONDS_FOR_A_PHASE) == 2, too_big.output[-4000:]
    assert nothing_left(*work.glob(f"{NAME}-*"))
    assert the_last_image_is_there()
    size = next(work.glob(f"{NAME}-*/*/disk/{NAME}.qcow2")).stat().st_size
    found = " ".join(too_big.output.split()).replace(".0 MB", " MB")
    assert f"The image has {size / 1e6:.0f} MB, its budget is 1MB." in found

    write_definition(definition)
    releasing = play(*command, terminal=True)
    releasing.wait_for("TASK [Release the image]", SECONDS_FOR_A_PHASE)
    releasing.interrupt()
    releasing.wait(SECONDS_TO_END)
    assert "TASK [goldsmith.images.verify_image : " in releasing.output
    assert "provision qemu.image" not in releasing.output, "it is the image that was too big"
    assert nothing_left(*work.glob(f"{NAME}-*"))
    assert the_last_image_is_there() or the_new_image_is_there()

    finished = play(*command)
    assert finished.wait(SECONDS_FOR_A_PHASE) == 0, finished.output[-4000:]
    assert "provision qemu.image" not in finished.output, "an interrupted release costs no image"
    assert the_new_image_is_there()
    assert nothing_left(*work.glob(f"{NAME}-*"))
    assert not list(work.glob(f"{NAME}-*"))
