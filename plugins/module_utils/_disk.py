# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection goldsmith.images: it may change at any time and is not for use by other collections.
"""A root tree becomes a disk that boots with BIOS and UEFI, without loop devices and without root.

The steps know nothing of where the tree came from: `unpack`, `dress` (what only a tree on a disk needs), `write_disk`
(GPT, boot loader, file systems in one sparse file) and `to_qcow2`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import io
import json
import os
import re
import shutil
import struct
import subprocess
import tarfile
import typing as t
import uuid
from pathlib import Path

from ansible_collections.goldsmith.images.plugins.module_utils._command import CommandError, find_program

if t.TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ansible_collections.goldsmith.images.plugins.module_utils._command import Runner

SECTOR = 512
MIB = 1024 * 1024
BLOCK = 64 * 1024
#: Part of every cache key: raise it when the disk that comes out of the same tree changes.
DISK_FORMAT = 3

KERNEL_COMMAND_LINE = "console=tty0 console=ttyS0,115200"
# Chosen by hand so that mke2fs.conf of the build host has no say and GRUB of every supported release reads it.
EXT4_FEATURES = (
    "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,"
    "huge_file,dir_nlink,extra_isize,metadata_csum"
)
BIOS_MODULES = ("biosdisk", "part_gpt", "ext2", "normal", "configfile", "linux", "search", "search_fs_uuid", "echo",
                "test", "gzio", "minicmd", "serial", "terminal")  # fmt: skip
EFI_MODULES = ("part_gpt", "fat", "ext2", "normal", "configfile", "linux", "search", "search_fs_uuid", "echo",
               "test", "gzio", "minicmd", "serial", "terminal", "all_video", "efi_gop", "efi_uga")  # fmt: skip

EXT_MAGIC_OFFSET, EXT_MAGIC = 1024 + 0x38, b"\x53\xef"

TYPE_BIOS_BOOT = "21686148-6449-6E6F-744E-656564454649"
TYPE_ESP = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
TYPE_ROOT_X86_64 = "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709"

_SIZE = re.compile(r"^\s*(\d+)\s*(?:([KMGT])(?:i?B)?)?\s*$", re.IGNORECASE)


class DiskError(Exception):
    """The tree cannot become a bootable disk; the message says what is missing."""


def parse_size(text: str) -> int:
    """Bytes of a size such as `10G`, `512MiB` or a plain number; units are powers of 1024 as in qemu-img."""
    match = _SIZE.match(str(text))
    if match is None:
        raise DiskError(f"not a size: {text!r} (give a number with K, M, G or T, such as 10G)")
    return int(match[1]) * 1024 ** ("KMGT".index(match[2].upper()) + 1 if match[2] else 0)


@dataclasses.dataclass(frozen=True)
class Partition:
    """A partition; the number is the one that Debian's and Ubuntu's cloud images use, so /dev/vda1 is the root."""

    number: int
    start: int
    length: int
    type: str
    name: str

    @property
    def sector(self) -> int:
        return self.start // SECTOR


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where everything is on the disk; all identifiers follow from the seed, so the same inputs give the same disk."""

    size: int
    seed: str
    #: Seconds since 1970: no time on the disk is later.
    epoch: int = 0
    esp_size: int = 64 * MIB

    def __post_init__(self) -> None:
        if self.size % MIB or self.size < 1024 * MIB:
            raise DiskError(f"a disk of {self.size} bytes: the size must be at least 1G and a whole number of MiB")

    @property
    def bios(self) -> Partition:
        return Partition(14, MIB, MIB, TYPE_BIOS_BOOT, "bios")

    @property
    def esp(self) -> Partition:
        return Partition(15, 2 * MIB, self.esp_size, TYPE_ESP, "esp")

    @property
    def root(self) -> Partition:
        # The last on the disk, so that it can grow; 1 MiB stays for the backup of the partition table.
        start = self.esp.start + self.esp.length
        return Partition(1, start, self.size - start - MIB, TYPE_ROOT_X86_64, "root")

    def uuid(self, name: str) -> str:
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{self.seed}/{name}"))

    def sfdisk_script(self) -> str:
        lines = ["label: gpt", f"label-id: {self.uuid('disk')}", "unit: sectors"]
        for part in (self.bios, self.esp, self.root):
            lines.append(
                f"/dev/x{part.number} : start={part.sector}, size={part.length // SECTOR}, type={part.type}, "
                f'uuid={self.uuid(part.name + "-partition")}, name="{part.name}"'
            )
        return "\n".join(lines) + "\n"


# --- the tree -------------------------------------------------------------------------------------------------------


def unpack(runner: Runner, enter: Sequence[str], archive: Path, tree: Path) -> None:
    """Unpack the tar of a root tree; device nodes stay out, the kernel makes them at boot."""
    tree.mkdir(mode=0o755)
    runner.run([
        *enter, find_program("tar", "tar"), "--extract", "--file", str(archive), "--directory", str(tree),
        "--numeric-owner", "--same-owner", "--same-permissions", "--xattrs", "--xattrs-include=*", "--exclude=./dev/*",
    ])  # fmt: skip


def root_offset(raw: Path) -> int:
    """Where the root file system of a disk begins, in bytes: the largest ext4 of its partitions."""
    command = [find_program("sfdisk", "fdisk"), "--json", str(raw)]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    if result.returncode != 0:
        raise DiskError(f"{raw} has no partition table: {result.stderr.strip()}")
    table = json.loads(result.stdout)["partitiontable"]
    found = []
    with raw.open("rb") as disk:
        for part in table.get("partitions", []):
            offset = part["start"] * table.get("sectorsize", SECTOR)
            disk.seek(offset + EXT_MAGIC_OFFSET)
            if disk.read(2) == EXT_MAGIC:
                found.append((part["size"], offset))
    if not found:
        raise DiskError(f"no partition of {raw} holds an ext4 file system: take build_method 'vm' for this disk image")
    return max(found)[1]


def pack_root(runner: Runner, enter: Sequence[str], raw: Path, archive: Path) -> None:
    """Put the root tree of a disk into an archive; root only, as the file system is mounted for it."""
    place = raw.with_name("root")
    place.mkdir()
    script = 'mount -o ro,noload,loop,offset="$1" "$2" "$3"; tar --directory "$3" "${@:4}" .'
    runner.run([
        *enter, "bash", "-ec", script, "bash", str(root_offset(raw)), str(raw), str(place),
        "--create", "--zstd", "--file", str(archive), "--numeric-owner", "--xattrs", "--xattrs-include=*",
        "--one-file-system", "--sort=name", "--exclude=./lost+found",
    ])  # fmt: skip
    place.rmdir()


def read_archived(archive: Path, path: str) -> str:
    """The text of one file in an archive of a root tree."""
    command = [find_program("tar", "tar"), "--extract", "--to-stdout", "--occurrence", "--file", str(archive)]
    result = subprocess.run([*command, f"./{path}"], check=False, capture_output=True, text=True)
    if result.returncode != 0:
        raise DiskError(f"the root tree has no {path}: {result.stderr.strip()}")
    return result.stdout


def add_files(
    runner: Runner, enter: Sequence[str], tree: Path, files: Mapping[str, tuple[str, int]], epoch: int
) -> None:
    """Put files of root with the given content and mode into a tree that other ids may own."""
    runner.run(
        [*enter, find_program("tar", "tar"), "--extract", "--directory", str(tree), "--numeric-owner",
         "--no-overwrite-dir", "--same-permissions"],
        data=files_archive(files, epoch),
    )  # fmt: skip


def files_archive(files: Mapping[str, tuple[str, int]], epoch: int) -> bytes:
    """A tar of files that belong to root and were changed at `epoch`."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, (content, mode) in files.items():
            member = tarfile.TarInfo(f"./{name}")
            data = content.encode()
            member.size, member.mode, member.mtime = len(data), mode, epoch
            member.uname = member.gname = "root"
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def remove_tree(enter: Sequence[str], path: Path) -> None:
    """Remove a tree whose files may belong to subordinate ids of a user namespace."""
    shutil.rmtree(path, ignore_errors=True)
    if path.exists():
        subprocess.run([*enter, "rm", "-rf", "--one-file-system", str(path)], check=False, capture_output=True)
    if path.exists():
        raise DiskError(f"cannot remove {path}: remove it by hand")


def kernels(tree: Path) -> list[str]:
    """The kernel versions in /boot that have an initramfs, newest first."""
    boot = tree / "boot"
    found = [path.name[len("vmlinuz-") :] for path in boot.glob("vmlinuz-*")]
    found = [version for version in found if (boot / f"initrd.img-{version}").exists()]
    return sorted(found, key=lambda version: [int(part) for part in re.findall(r"\d+", version)], reverse=True)


def installed_packages(status: str) -> list[dict[str, str]]:
    """Names and versions of the installed packages, from dpkg's own data (`var/lib/dpkg/status`)."""
    found = []
    for stanza in status.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in stanza.splitlines() if ": " in line and not line.startswith(" "))
        if fields.get("Status", "").endswith(" installed"):
            found.append({"name": fields["Package"], "version": fields["Version"]})
    return sorted(found, key=lambda package: package["name"])


def grub_config(layout: Layout, version: str, distributor: str) -> str:
    """The first grub.cfg: what update-grub writes, without a running system to ask; it replaces this file."""
    root = layout.uuid("root-filesystem")
    return f"""\
# Written when the disk was made; update-grub replaces it.
set default=0
set timeout=0
serial --speed=115200
terminal_input console serial
terminal_output console serial
search --no-floppy --fs-uuid --set=root {root}
menuentry '{distributor} GNU/Linux' --class gnu-linux --class os {{
\tlinux /boot/vmlinuz-{version} root=UUID={root} ro {KERNEL_COMMAND_LINE}
\tinitrd /boot/initrd.img-{version}
}}
"""


def fstab() -> str:
    # The ESP is needed only when the boot loader is updated: mounted on first use, it costs no boot time and a crash
    # does not find it mounted.
    return (
        "LABEL=root / ext4 rw,errors=remount-ro 0 1\n"
        "LABEL=ESP /boot/efi vfat umask=0077,nofail,noauto,x-systemd.automount,x-systemd.idle-timeout=60 0 0\n"
    )


GRUB_DEFAULTS = f"""\
# Cloud machines have a serial console, often nothing else; a menu that waits only costs boot time
# (hold Escape or Shift to see it).
GRUB_TIMEOUT=0
GRUB_TIMEOUT_STYLE=hidden
GRUB_CMDLINE_LINUX_DEFAULT=""
GRUB_CMDLINE_LINUX="{KERNEL_COMMAND_LINE}"
GRUB_TERMINAL="console serial"
GRUB_SERIAL_COMMAND="serial --speed=115200"
GRUB_DISABLE_OS_PROBER=true
"""

# An empty block, as grub-editenv makes it: GRUB writes to it and cannot make it.
GRUB_ENVIRONMENT = (
    "# GRUB Environment Block\n# WARNING: Do not edit this file by tools other than grub-editenv!!!\n"
).ljust(1024, "#")


def os_release(tree: Path) -> dict[str, str]:
    """The fields of the tree's os-release."""
    for name in ("etc/os-release", "usr/lib/os-release"):
        with contextlib.suppress(OSError):
            lines = (tree / name).read_text(encoding="utf-8").splitlines()
            return {key: value.strip('"') for key, _equals, value in (line.partition("=") for line in lines) if key}
    raise DiskError(f"{tree} is not a root tree: it has no etc/os-release")


def dress(runner: Runner, enter: Sequence[str], tree: Path, layout: Layout) -> None:
    """Add what a tree needs on a disk: fstab, the boot loader's settings, its modules and its first configuration."""
    versions = kernels(tree)
    if not versions:
        raise DiskError(f"{tree}/boot has no kernel with an initramfs: install both in the tree")
    modules = tree / "usr/lib/grub/i386-pc"
    if not modules.is_dir():
        raise DiskError(f"{modules} is missing: install grub-pc-bin in the tree")
    distributor = os_release(tree).get("ID", "linux").capitalize()
    files = {
        "etc/fstab": (fstab(), 0o644),
        "etc/default/grub.d/50-console.cfg": (GRUB_DEFAULTS, 0o644),
        "boot/grub/grub.cfg": (grub_config(layout, versions[0], distributor), 0o600),
        "boot/grub/grubenv": (GRUB_ENVIRONMENT, 0o644),
    }
    if (tree / "var/lib/dpkg/info/grub-cloud-amd64.list").exists():
        # Only a tree on a disk has somewhere to install the boot loader to when GRUB is upgraded.
        files["etc/grub.d/enable_cloud"] = ("# Lets upgrades of GRUB install it to this disk and its ESP.\n", 0o644)
    runner.run([*enter, "mkdir", "-p", str(tree / "boot/grub/i386-pc"), str(tree / "boot/efi")])
    add_files(runner, enter, tree, files, layout.epoch)
    wanted = sorted(str(path) for pattern in ("*.mod", "*.lst") for path in modules.glob(pattern))
    runner.run([*enter, "cp", "--preserve=timestamps", "-t", str(tree / "boot/grub/i386-pc"), *wanted])


# --- the disk -------------------------------------------------------------------------------------------------------


def write_disk(runner: Runner, enter: Sequence[str], tree: Path, raw: Path, layout: Layout) -> None:
    """Write partition table, boot loaders and file systems of a dressed tree to one sparse file."""
    work = raw.with_name(raw.name + ".parts")
    work.mkdir()
    with raw.open("wb") as disk:
        disk.truncate(layout.size)
    runner.run([find_program("sfdisk", "fdisk"), "--quiet", str(raw)], data=layout.sfdisk_script().encode())
    clamp_times(runner, enter, tree, layout.epoch)
    root = layout.root
    fake_time = {"E2FSPROGS_FAKE_TIME": str(layout.epoch)}
    options = f"offset={root.start},nodiscard,lazy_itable_init=1,hash_seed={layout.uuid('hash')},root_owner=0:0"
    runner.run([
        *enter, find_program("mke2fs", "e2fsprogs"), "-q", "-F", "-t", "ext4", "-O", EXT4_FEATURES, "-b", "4096",
        "-I", "256", "-L", "root", "-U", layout.uuid("root-filesystem"), "-E", options, "-d", str(tree), str(raw),
        f"{root.length // 1024}k",
    ], environment=fake_time)  # fmt: skip
    _stamp_inodes(runner, raw, layout)
    esp = work / "esp.img"
    _write_esp(runner, enter, tree, esp, layout)
    core = work / "core.img"
    _grub_image(runner, enter, tree, core, "i386-pc", f"(,gpt{root.number})/boot/grub", BIOS_MODULES)
    with raw.open("r+b") as disk:
        disk.seek(layout.esp.start)
        _copy_sparse(esp, disk)
        boot = (tree / "usr/lib/grub/i386-pc/boot.img").read_bytes()
        for offset, data in bios_boot_sectors(boot, core.read_bytes(), layout.bios):
            disk.seek(offset)
            disk.write(data)
        disk.flush()
    shutil.rmtree(work)


def clamp_times(runner: Runner, enter: Sequence[str], tree: Path, epoch: int) -> None:
    """Make no file of a tree younger than `epoch` (seconds since 1970)."""
    moment = f"@{epoch}"
    runner.run([
        *enter, find_program("find", "findutils"), str(tree), "-newermt", moment,
        "-exec", "touch", "--no-dereference", f"--date={moment}", "{}", "+",
    ])  # fmt: skip


def _stamp_inodes(runner: Runner, raw: Path, layout: Layout) -> None:
    """Set the times that no call can set on the tree: mke2fs copies when an inode was last changed or read *here*."""
    fake_time = {"E2FSPROGS_FAKE_TIME": str(layout.epoch)}
    file_system = f"{raw}?offset={layout.root.start}"
    dumpe2fs = [find_program("dumpe2fs", "e2fsprogs"), "-h", file_system]
    header = subprocess.run(dumpe2fs, check=True, capture_output=True, text=True).stdout
    fields = dict(line.split(":", 1) for line in header.splitlines() if ":" in line)
    count, free = int(fields["Inode count"]), int(fields["Free inodes"])
    moment = f"@{layout.epoch}"
    # mke2fs hands out inodes one after the other; 2 is the root folder, below 11 are its own.
    script = "".join(f"sif <{number}> {field} {moment}\n" for number in (2, *range(11, count - free + 1))
                     for field in ("ctime", "atime"))  # fmt: skip
    runner.run([find_program("debugfs", "e2fsprogs"), "-w", "-f", "-", file_system], data=script.encode(),
               environment=fake_time)  # fmt: skip


def bios_boot_sectors(boot: bytes, core: bytes, partition: Partition) -> list[tuple[int, bytes]]:
    """What grub-bios-setup writes: (offset on the disk, bytes) of the boot code and of the core image."""
    if len(boot) != SECTOR or len(core) < 2 * SECTOR:
        raise DiskError("boot.img or core.img of GRUB has an unexpected size")
    if len(core) > partition.length:
        raise DiskError(f"GRUB's core image has {len(core)} bytes, its partition {partition.length}")
    code = bytearray(boot[:440])
    struct.pack_into("<Q", code, 0x5C, partition.sector)
    # A BIOS that hands over a wrong drive number: skip the check for it, as grub-install does for hard disks.
    code[0x66:0x68] = b"\x90\x90"
    image = bytearray(core)
    image.extend(bytes(-len(image) % SECTOR))
    struct.pack_into("<QHH", image, 500, partition.sector + 1, len(image) // SECTOR - 1, 0x820)
    return [(0, bytes(code)), (partition.start, bytes(image))]


def to_qcow2(runner: Runner, raw: Path, image: Path, compress: bool = False) -> None:
    """A qcow2: plain for the cache, where speed counts, or compressed with zstd for those who download it."""
    options = ["-c", "-m", "8", "-o", "compression_type=zstd"] if compress else []
    qemu_img = find_program("qemu-img", "qemu-utils")
    runner.run([qemu_img, "convert", "-f", "raw", "-O", "qcow2", "-W", *options, str(raw), str(image)])


def to_raw(runner: Runner, image: Path, raw: Path) -> None:
    """The content of any disk image as one sparse file."""
    runner.run([find_program("qemu-img", "qemu-utils"), "convert", "-O", "raw", "-W", str(image), str(raw)])


def digest(raw: Path) -> str:
    """A sha256 over the blocks of a raw disk that are not zero, and where they are: the same for the same disk.

    That of the whole file would be computed over gigabytes of nothing.
    """
    result = hashlib.sha256(str(raw.stat().st_size).encode())
    with raw.open("rb", buffering=0) as disk:
        end = 0
        while (start := next_data(disk, end)) is not None:
            end = os.lseek(disk.fileno(), start, os.SEEK_HOLE)
            for offset in range(start // BLOCK * BLOCK, end, BLOCK):
                block = os.pread(disk.fileno(), BLOCK, offset)
                if block.count(0) != len(block):
                    result.update(offset.to_bytes(8, "little"))
                    result.update(block)
            # Extents need not end where blocks do.
            end = -(-end // BLOCK) * BLOCK
    return result.hexdigest()


def next_data(disk: t.BinaryIO, offset: int) -> int | None:
    """Where the next data of a sparse file begins, in bytes; None if only a hole is left."""
    try:
        return os.lseek(disk.fileno(), offset, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None
        raise


def image_info(image: Path) -> dict[str, t.Any]:
    """What qemu-img says; an image that refers to other files, which could be any of the host, is refused."""
    command = [find_program("qemu-img", "qemu-utils"), "info", "--output=json", str(image)]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    if result.returncode != 0:
        raise DiskError(f"{image} is not a disk image: {result.stderr.strip()}")
    info: dict[str, t.Any] = json.loads(result.stdout)
    specific = info.get("format-specific", {}).get("data", {})
    for what in (info.get("backing-filename"), specific.get("data-file")):
        if what:
            raise DiskError(f"{image} is not complete: it refers to another file, {what}")
    return info


def _grub_image(
    runner: Runner, enter: Sequence[str], tree: Path, image: Path, target: str, prefix: str, modules: Sequence[str]
) -> None:
    """Make a GRUB image with the tree's own grub-mkimage, so that program and modules are of one version."""
    name = f"boot/grub/.{image.name}"
    runner.run([
        *enter, find_program("chroot", "coreutils"), str(tree), "/usr/bin/grub-mkimage", "-O", target, "-o", f"/{name}",
        "-p", prefix, *modules,
    ])  # fmt: skip
    shutil.copyfile(tree / name, image)
    runner.run([*enter, "rm", "-f", str(tree / name)])


def _write_esp(runner: Runner, enter: Sequence[str], tree: Path, image: Path, layout: Layout) -> None:
    """Make the ESP: the signed shim and GRUB of the distribution where the tree has them, as grub-install does."""
    files: dict[str, Path] = {}
    vendor = os_release(tree).get("ID", "debian")
    shim, signed = tree / "usr/lib/shim", tree / "usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed"
    stub = image.with_name("grub.cfg")
    stub.write_text(
        f"search.fs_uuid {layout.uuid('root-filesystem')} root\n"
        "set prefix=($root)'/boot/grub'\nconfigfile $prefix/grub.cfg\n",
        encoding="utf-8",
    )
    shim_image = next((path for path in (shim / "shimx64.efi.signed", shim / "shimx64.efi.signed.latest")
                       if path.is_file()), None)  # fmt: skip
    if shim_image is not None and signed.is_file():
        files = {
            "EFI/BOOT/BOOTX64.EFI": shim_image,
            "EFI/BOOT/grubx64.efi": signed,
            f"EFI/{vendor}/shimx64.efi": shim_image,
            f"EFI/{vendor}/grubx64.efi": signed,
            f"EFI/{vendor}/grub.cfg": stub,
        }
        manager = next((path for path in (shim / "mmx64.efi.signed", shim / "mmx64.efi") if path.is_file()), None)
        if manager is not None:
            files["EFI/BOOT/mmx64.efi"] = files[f"EFI/{vendor}/mmx64.efi"] = manager
        if (shim / "BOOTX64.CSV").is_file():
            files[f"EFI/{vendor}/BOOTX64.CSV"] = shim / "BOOTX64.CSV"
    elif (tree / "usr/lib/grub/x86_64-efi").is_dir():
        grub = image.with_name("bootx64.efi")
        _grub_image(runner, enter, tree, grub, "x86_64-efi", f"(,gpt{layout.root.number})/boot/grub", EFI_MODULES)
        files = {"EFI/BOOT/BOOTX64.EFI": grub}
    else:
        raise DiskError(f"{tree} has no GRUB for UEFI: install grub-efi-amd64-bin in the tree")
    with image.open("wb") as esp:
        esp.truncate(layout.esp.length)
    volume = layout.uuid("esp").replace("-", "")[:8]
    mkfs, mmd, mcopy = (find_program("mkfs.vfat", "dosfstools"), find_program("mmd", "mtools"),
                        find_program("mcopy", "mtools"))  # fmt: skip
    # In this order: --invariant sets an id, too.
    runner.run([mkfs, "-F", "32", "-s", "1", "-n", "ESP", "--invariant", "-i", volume, str(image)])
    folders = sorted({str(parent) for name in files for parent in Path(name).parents if str(parent) != "."})
    fixed_time = {"SOURCE_DATE_EPOCH": str(layout.epoch), "TZ": "UTC"}
    runner.run([mmd, "-i", str(image), *(f"::/{folder}" for folder in folders)], environment=fixed_time)
    for name, source in files.items():
        runner.run([mcopy, "-i", str(image), str(source), f"::/{name}"], environment=fixed_time)


def _copy_sparse(source: Path, target: t.BinaryIO) -> None:
    with source.open("rb") as data:
        while block := data.read(MIB):
            if block.count(0) == len(block):
                target.seek(len(block), os.SEEK_CUR)
            else:
                target.write(block)


def missing_programs() -> list[str]:
    """Look for every program before the first long step; returns the messages about the missing ones."""
    missing = []
    for name, package in (
        ("sfdisk", "fdisk"), ("mke2fs", "e2fsprogs"), ("debugfs", "e2fsprogs"),
        ("mkfs.vfat", "dosfstools"), ("mcopy", "mtools"),
        ("qemu-img", "qemu-utils"), ("tar", "tar"), ("unshare", "util-linux"),
    ):  # fmt: skip
        try:
            find_program(name, package)
        except CommandError as error:
            missing.append(str(error))
    return missing
