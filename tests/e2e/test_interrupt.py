# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ctrl-C in each phase: nothing is left running, no key is left, the last image stays; a machine that never answers."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

BUILD = "playbooks/build-image.yml"
HANG = b"\xfa\xf4" + b"\0" * 508 + b"\x55\xaa"  # boot sector: cli; hlt
SECONDS_TO_END = 90
# Boot sector that writes "line 01" to "line 60" to the first serial port and hangs, as assembled at 0x7c00:
SIXTY_LINES = bytes.fromhex(
    "fa fc"  # cli; cld
    "31 c0 8e d8"  # xor ax, ax; mov ds, ax
    "b3 01"  # mov bl, 1            the number of the line
    "88 d8 d4 0a"  # line: mov al, bl; aam    ah: tens, al: ones
    "05 30 30"  # add ax, '00'         as digits
    "86 c4"  # xchg al, ah          the tens come first in memory
    "a3 45 7c"  # mov [text + 5], ax
    "be 40 7c b9 09 00"  # mov si, text; mov cx, 9
    "ba fd 03"  # char: mov dx, 0x3fd        line status of the first serial port
    "ec a8 20 74 fb"  # wait: in al, dx; test al, 0x20; jz wait   until it takes another byte
    "ba f8 03 ac ee"  # mov dx, 0x3f8; lodsb; out dx, al
    "e2 f1"  # loop char
    "fe c3 80 fb 3c 76 d8"  # inc bl; cmp bl, 60; jbe line
    "f4 eb fd"  # hang: hlt; jmp hang
)
SIXTY_LINES = SIXTY_LINES.ljust(64, b"\0") + b"line 00\r\n"  # text, at 0x7c40
SIXTY_LINES = SIXTY_LINES.ljust(510, b"\0") + b"\x55\xaa"


@pytest.fixture
def hanging_image(definition, served_disk, tmp_path: Path) -> list[str]:
    """Arguments of a build whose machine boots and never answers."""
    path = definition(base=served_disk(SIXTY_LINES + b"\0" * (2**20 - 512)))
    good = tmp_path / "output" / "mine"
    good.mkdir(parents=True)
    (good / "mine.qcow2").write_bytes(b"the last good image")
    return ["-e", f"image={path}", "-e", f"image_output={tmp_path}/output", "-e", f"image_cache={tmp_path}/cache"]


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
        "-e",
        '{"verify_image_checks": ["base"]}',  # no hygiene: there is no file system to look at before the boot
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
    assert "packer build failed in phase boot: qemu.image: Timeout waiting for SSH." in output
    lines = " ".join(f"- line {number}" for number in range(11, 61))
    assert f"console: {lines} " in output, "the last 50 lines of the console are shown"
    assert "line 10" not in output
    assert re.search(r"qemu_command: - \S*/qemu-system-x86_64 - ", output)
    assert f"file:{tmp_path}/cache/work/" in output, "with all its arguments"
    assert nothing_left()
    work = tmp_path / "cache/work"
    assert "Timeout waiting for SSH" in next(work.rglob("build.log")).read_text()
    assert "line 01\n" in next(work.rglob("console-build.log")).read_text()
    assert (tmp_path / "output/mine/mine.qcow2").read_bytes() == b"the last good image"
