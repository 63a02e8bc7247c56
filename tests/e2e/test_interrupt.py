# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ctrl-C in each phase: nothing is left running, no key is left, the last image stays; a machine that never answers."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

BUILD = "playbooks/build-image.yml"
HANG = b"\xfa\xf4" + b"\0" * 508 + b"\x55\xaa"  # boot sector: cli; hlt
SECONDS_TO_END = 90


@pytest.fixture
def hanging_image(definition, served_disk, tmp_path: Path) -> list[str]:
    """Arguments of a build whose machine boots and never answers."""
    path = definition(base=served_disk(HANG + b"\0" * (2**20 - 512)))
    good = tmp_path / "output" / "mine"
    good.mkdir(parents=True)
    (good / "mine.qcow2").write_bytes(b"the last good image")
    return ["-e", f"image={path}", "-e", f"image_output={tmp_path}/output", "-e", f"image_cache={tmp_path}/cache"]


@pytest.fixture
def running_here(processes_with, tmp_path: Path):
    """Return the command lines of processes that work for this test."""
    return lambda: processes_with(str(tmp_path))


@pytest.fixture
def nothing_left(running_here, tmp_path: Path):
    """Wait until no process of this test runs; then no key may be left either."""

    def check() -> bool:
        deadline = time.monotonic() + SECONDS_TO_END
        while running_here() and time.monotonic() < deadline:
            time.sleep(0.5)
        assert not running_here()
        return not [path for path in tmp_path.rglob("*") if path.is_file() and b"PRIVATE KEY" in path.read_bytes()[:64]]

    return check


def wait_until_runs(program: str, running_here, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not any(program in line for line in running_here()):
        assert time.monotonic() < deadline, f"{program} was not started"
        time.sleep(0.2)


def test_interrupted_while_the_base_disk_is_made(play, definition, running_here, nothing_left, tmp_path: Path):
    path = definition()
    cache = tmp_path / "cache"
    running = play(BUILD, "-e", f"image={path}", "-e", f"image_output={tmp_path}/o", "-e", f"image_cache={cache}")
    running.wait_for("TASK [goldsmith.images.base_disk : ", 120)
    wait_until_runs("mmdebstrap", running_here)
    running.interrupt()
    assert running.wait(SECONDS_TO_END) != 0
    assert nothing_left()
    assert not list(cache.rglob("*.qcow2"))


def test_interrupted_while_packer_waits_for_the_machine(
    play, hanging_image, running_here, nothing_left, tmp_path: Path
):
    running = play(BUILD, *hanging_image)
    running.wait_for("TASK [goldsmith.images.packer : Build | Run Packer]", 120)
    wait_until_runs("qemu-system", running_here)
    running.interrupt()
    assert running.wait(SECONDS_TO_END) != 0
    assert nothing_left()
    assert (tmp_path / "output/mine/mine.qcow2").read_bytes() == b"the last good image"


def test_interrupted_while_the_finished_image_is_verified(play, nothing_left, tmp_path: Path):
    disk = tmp_path / "hang.raw"
    disk.write_bytes(HANG + b"\0" * (2**20 - 512))
    running = play(
        "playbooks/verify_image.yml",
        "-e",
        f"verify_image_path={disk}",
        "-e",
        "verify_image_format=raw",
        "-e",
        f"verify_image_work_dir={tmp_path}/verify",
        environment={"TMPDIR": str(tmp_path)},
    )
    running.wait_for("TASK [goldsmith.images.verify_image : Wait until they answer]", 120)
    # In the moment of a fork ansible-core itself loses the signal (and ends at the second Ctrl-C).
    time.sleep(5)
    running.interrupt()
    assert running.wait(SECONDS_TO_END) != 0
    assert nothing_left()


def test_a_machine_that_never_answers(play, hanging_image, nothing_left, tmp_path: Path):
    failed = play(BUILD, *hanging_image, "-e", "image_ssh_timeout=15")
    assert failed.wait(300) == 2
    output = " ".join(failed.output.split())
    assert "Timeout waiting for SSH" in output
    assert "phase: boot" in output or "boot" in output
    assert "qemu-system-x86_64" in output, "the QEMU command line is shown"
    assert nothing_left()
    assert list((tmp_path / "cache/work").rglob("build.log")), "logs are kept"
    assert (tmp_path / "output/mine/mine.qcow2").read_bytes() == b"the last good image"
