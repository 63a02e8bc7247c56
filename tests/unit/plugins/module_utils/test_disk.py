# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The disk: sizes, layout, boot sectors and what is read from a tree."""

from __future__ import annotations

import io
import struct
import tarfile
from pathlib import Path

import pytest
from ansible_collections.goldsmith.images.plugins.module_utils import _disk
from ansible_collections.goldsmith.images.plugins.module_utils._disk import MIB, SECTOR, DiskError, Layout

GIB = 1024**3


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("10G", 10 * GIB),
        ("10 GiB", 10 * GIB),
        ("512M", 512 * MIB),
        ("512mb", 512 * MIB),
        ("1048576", MIB),
        ("2T", 2048 * GIB),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert _disk.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "10X", "-1G", "1.5G", "10 G B"])
def test_not_a_size(text: str) -> None:
    with pytest.raises(DiskError, match="not a size"):
        _disk.parse_size(text)


def test_partitions_are_aligned_do_not_overlap_and_the_root_is_last() -> None:
    layout = Layout(10 * GIB, "seed")
    parts = [layout.bios, layout.esp, layout.root]
    for before, after in zip(parts, parts[1:]):
        assert before.start + before.length <= after.start
    assert all(part.start % MIB == 0 and part.length % MIB == 0 for part in parts)
    # The backup of the partition table needs 33 sectors at the end.
    assert layout.size - (layout.root.start + layout.root.length) >= 33 * SECTOR
    assert (layout.root.number, layout.bios.number, layout.esp.number) == (1, 14, 15)


def test_identifiers_follow_from_the_seed() -> None:
    one, same, other = Layout(GIB, "a"), Layout(GIB, "a"), Layout(GIB, "b")
    assert one.sfdisk_script() == same.sfdisk_script()
    assert one.uuid("root-filesystem") != other.uuid("root-filesystem")
    names = [one.uuid(name) for name in ("disk", "root-filesystem", "root-partition", "esp", "hash")]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("size", [100 * MIB, GIB + 1])
def test_sizes_that_no_disk_can_have(size: int) -> None:
    with pytest.raises(DiskError, match="at least 1G"):
        Layout(size, "")


def test_boot_sectors_point_to_each_other() -> None:
    layout = Layout(GIB, "seed")
    boot = bytes(range(256)) * 2
    core = b"c" * (10 * SECTOR + 7)
    (first, code), (second, image) = _disk.bios_boot_sectors(boot, core, layout.bios)
    assert (first, len(code)) == (0, 440)  # the disk's own partition table must stay
    assert struct.unpack_from("<Q", code, 0x5C)[0] == layout.bios.start // SECTOR
    assert second == layout.bios.start
    assert len(image) == 11 * SECTOR
    start, length, segment = struct.unpack_from("<QHH", image, 500)
    assert (start, length, segment) == (layout.bios.start // SECTOR + 1, 10, 0x820)
    assert image[SECTOR : len(core)] == core[SECTOR:]


def test_core_image_that_does_not_fit() -> None:
    with pytest.raises(DiskError, match="core image has"):
        _disk.bios_boot_sectors(bytes(SECTOR), bytes(2 * MIB), Layout(GIB, "").bios)


def test_newest_kernel_with_an_initramfs_comes_first(tmp_path: Path) -> None:
    boot = tmp_path / "boot"
    boot.mkdir()
    for version in ("6.9.7+deb13-cloud-amd64", "6.12.9+deb13-cloud-amd64", "6.12.117+deb13-cloud-amd64"):
        (boot / f"vmlinuz-{version}").touch()
        (boot / f"initrd.img-{version}").touch()
    (boot / "vmlinuz-7.0.1-amd64").touch()
    assert _disk.kernels(tmp_path) == [
        "6.12.117+deb13-cloud-amd64",
        "6.12.9+deb13-cloud-amd64",
        "6.9.7+deb13-cloud-amd64",
    ]


def test_packages_are_those_that_are_installed() -> None:
    status = (
        "Package: zstd\nStatus: install ok installed\nVersion: 1.5.7\nDescription: x\n Version: not a field\n\n"
        "Package: gone\nStatus: deinstall ok config-files\nVersion: 1\n\n"
        "Package: held\nStatus: hold ok installed\nVersion: 2:3-1\n"
    )
    assert _disk.installed_packages(status) == [
        {"name": "held", "version": "2:3-1"},
        {"name": "zstd", "version": "1.5.7"},
    ]


def test_first_configuration_boots_the_disk_by_its_identifier() -> None:
    layout = Layout(GIB, "seed")
    config = _disk.grub_config(layout, "6.12.117-cloud-amd64", "Debian")
    root = layout.uuid("root-filesystem")
    assert f"search --no-floppy --fs-uuid --set=root {root}" in config
    assert f"linux /boot/vmlinuz-6.12.117-cloud-amd64 root=UUID={root} ro console=tty0 console=ttyS0,115200" in config
    assert "initrd /boot/initrd.img-6.12.117-cloud-amd64" in config


def test_added_files_belong_to_root() -> None:
    data = _disk.files_archive({"etc/x": ("text\n", 0o600)}, 1_700_000_000)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        (member,) = archive.getmembers()
        assert (member.name, member.uid, member.gid, member.mode) == ("./etc/x", 0, 0, 0o600)
        assert member.mtime == 1_700_000_000


def test_tree_without_os_release(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match="not a root tree"):
        _disk.os_release(tmp_path)
