# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What cannot work is said before anything is built, and the last good image stays."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

BUILD = "playbooks/build-image.yml"
KUBERNETES = ["base_packages", "kubernetes_prerequisites"]


@pytest.fixture
def refused(play, tmp_path: Path):
    """Run a build that must fail during the plan; returns what it printed, with line breaks folded."""

    def run(*arguments: str, **options: Any) -> str:
        output, cache = tmp_path / "output", tmp_path / "cache"
        (output / "mine").mkdir(parents=True)
        (output / "mine" / "mine.qcow2").write_bytes(b"the last good image")
        defaults = ["-e", f"image_output={output}", "-e", f"image_cache={cache}"]
        failed = play(BUILD, *defaults, *arguments, **options)
        assert failed.wait(120) == 2, failed.output
        assert not cache.exists(), "something was begun"
        assert (output / "mine" / "mine.qcow2").read_bytes() == b"the last good image"
        assert "Traceback" not in failed.output
        return " ".join(failed.output.split())

    return run


def test_unknown_image(refused):
    assert "There is no image definition 'cloud_bse'. Known images: cloud_base" in refused("-e", "image=cloud_bse")


def test_unknown_key_role_and_wrong_type_are_named_together(refused, definition):
    path = definition(memroy=1, cpus="two", roles=["hardning"])
    output = refused("-e", f"image={path}")
    assert f"{path}: unknown key 'memroy'; did you mean 'memory'?" in output
    assert f"{path}: cpus: expected integer, found string ('two')" in output
    assert f"{path}: roles: unknown role 'hardning'; did you mean 'hardening'?" in output


def test_a_definition_that_is_no_yaml(refused, definition, tmp_path: Path):
    path = tmp_path / "broken.yml"
    path.write_text("name: [\n")
    assert f"{path} cannot be read" in refused("-e", f"image={path}")


def test_missing_programs_come_with_the_apt_line(refused, definition, tmp_path: Path):
    # A PATH with everything but Packer and QEMU.
    binaries = tmp_path / "bin"
    binaries.mkdir()
    hidden = {"packer", "qemu-system-x86_64"}
    for folder in ("/usr/bin", "/bin", "/usr/sbin", "/sbin"):
        for program in Path(folder).iterdir():
            if program.name not in hidden and not (binaries / program.name).exists():
                (binaries / program.name).symlink_to(program)
    path = f"{Path(sys.executable).parent}:{binaries}"
    output = refused("-e", f"image={definition()}", environment={"PATH": path})
    assert "packer is not installed or not on PATH" in output
    assert "Install with: apt-get install packer qemu-system-x86" in output


def test_too_little_memory(refused, definition):
    output = refused("-e", f"image={definition(memory=10**7)}")
    assert "Too little memory: 20000512 MiB needed (2 guests of 10000000)" in output


def test_too_little_disk_space(play, definition, tmp_path: Path):
    small = tmp_path / "small"
    small.mkdir()
    failed = play(
        BUILD,
        *("-e", f"image={definition()}", "-e", f"image_output={tmp_path}", "-e", f"image_cache={small}"),
        mounts=f"mount -t tmpfs -o size=100m none {small}",
    )
    assert failed.wait(120) == 2
    assert f"Too little disk space in {small}: 6.0 GiB needed, 0.1 found." in " ".join(failed.output.split())


def test_an_output_folder_that_cannot_be_written(play, definition, tmp_path: Path):
    (tmp_path / "file").write_text("")
    failed = play(BUILD, "-e", f"image={definition()}", "-e", f"image_output={tmp_path}/file")
    assert failed.wait(120) == 2
    assert "The output folder" in failed.output
    assert "is not writable" in failed.output


def test_no_mirror_answers(refused, definition):
    base = {"method": "bootstrap", "distribution": "debian", "release": "trixie", "mirror": "http://127.0.0.1:9/debian"}
    output = refused("-e", f"image={definition(base=base)}")
    assert "the mirror does not answer" in output
    assert "127.0.0.1:9" in output


def test_a_kubernetes_repository_that_was_asked_for_and_does_not_answer(refused, definition):
    path = definition(
        roles=KUBERNETES,
        vars={
            "kubernetes_prerequisites_repository_url": "http://127.0.0.1:9/deb/",
            "kubernetes_prerequisites_repository_key": "none",
        },
    )
    output = refused("-e", f"image={path}", "-e", "kubernetes_packages=mirror")
    assert "kubernetes_packages=mirror: http://127.0.0.1:9/deb/InRelease does not answer" in output


def test_kvm_that_was_asked_for_and_cannot_be_used(refused, definition):
    arguments = ["-e", f"image={definition()}", "-e", "image_accelerator=kvm"]
    output = refused(*arguments, mounts="test ! -e /dev/kvm || mount --bind /dev/null /dev/kvm")
    assert "accelerator=kvm was asked for, but KVM cannot be used" in output


def test_a_download_whose_checksum_does_not_match(play, definition, served_disk, tmp_path: Path):
    base = {**served_disk(b"\0" * 2**20), "checksum": f"sha256:{'0' * 64}"}
    folders = ["-e", f"image_output={tmp_path}/output", "-e", f"image_cache={tmp_path}/cache"]
    failed = play(BUILD, "-e", f"image={definition(base=base)}", *folders)
    assert failed.wait(120) == 2, failed.output
    output = " ".join(failed.output.split())
    assert "0" * 64 in output
    assert "30e14955ebf1352266dc2ff8067e68104607e750abb9d3b36582b8af909fcb58" in output
    assert "TASK [goldsmith.images.packer" not in output


def test_a_second_build_of_the_same_image_is_told_who_holds_the_lock(play, definition, served_disk, tmp_path: Path):
    path = definition(base=served_disk(b"\xfa\xf4" + b"\0" * 508 + b"\x55\xaa" + b"\0" * (2**20 - 512)))
    arguments = [BUILD, "-e", f"image={path}", "-e", f"image_output={tmp_path}/o", "-e", f"image_cache={tmp_path}/c"]
    first = play(*arguments)
    first.wait_for("TASK [goldsmith.images.packer : Build | Run Packer]", 120)
    second = play(*arguments)
    assert second.wait(120) == 2, second.output
    output = " ".join(second.output.split())
    assert f"Somebody else is at work here: process {first.process.pid}" in output
    first.interrupt()
    first.wait(120)
