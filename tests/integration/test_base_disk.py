# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""base_disk with the real mmdebstrap: one disk is made and looked at, builds are interrupted and killed."""

from __future__ import annotations

import functools
import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.goldsmith.images.plugins.module_utils import _base_disk, _bootstrap
from ansible_collections.goldsmith.images.plugins.module_utils._cache import Cache
from ansible_collections.goldsmith.images.tests.support.processes import wait_until

PROGRAMS = ("mmdebstrap", "qemu-img", "mke2fs", "mcopy", "debugfs")
SBIN = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
pytestmark = pytest.mark.skipif(
    any(shutil.which(name, path=SBIN) is None for name in PROGRAMS) or not _bootstrap.KEYRING.exists(),
    reason="what a bootstrap needs is not installed",
)
MIB = 1024 * 1024


def run(*command: str | Path) -> str:
    environment = {**os.environ, "PATH": SBIN}
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True, env=environment).stdout


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.fixture
def empty_mirror(tmp_path: Path) -> Iterator[str]:
    """A server that answers, without any release."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_args: Any) -> None:
            pass

    (tmp_path / "mirror").mkdir()
    handler = functools.partial(Handler, directory=str(tmp_path / "mirror"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/debian"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize("state", [None, ["as planned"]])
def test_mirror_that_does_not_answer(run_module: Any, tmp_path: Path, check: bool, state: list[str] | None) -> None:
    arguments: dict[str, Any] = {"mirror": "http://127.0.0.1:9/debian", "cache_dir": str(tmp_path / "cache")}
    if state:
        arguments |= {"archive_state": state, "source_date_epoch": 1}
    result = run_module("base_disk", _check=check, **arguments)
    assert result["failed"]
    assert "does not answer" in result["msg"]
    assert "http://127.0.0.1:9/debian/dists/trixie/InRelease" in result["msg"]
    assert not (tmp_path / "cache").exists()


def test_unknown_release(run_module: Any, empty_mirror: str, tmp_path: Path) -> None:
    result = run_module("base_disk", release="nope", mirror=empty_mirror, cache_dir=str(tmp_path / "cache"))
    assert result["failed"]
    assert "no release 'nope'" in result["msg"]


def test_too_little_space(tmp_path: Path) -> None:
    with pytest.raises(_base_disk.BaseDiskError, match=r"1048576\.0 GiB needed, .* GiB free"):
        _base_disk.require_space(tmp_path / "not" / "there", 1 << 50)


# --- a disk ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("base") / "cache"


@pytest.fixture(scope="module")
def base(run_module: Any, cache: Path) -> dict[str, Any]:
    result: dict[str, Any] = run_module("base_disk", _timeout=900, packages=["ethtool"], cache_dir=str(cache))
    assert not result["failed"], result["msg"]
    return result


@pytest.fixture(scope="module")
def raw(base: dict[str, Any], cache: Path) -> Iterator[Path]:
    path = cache.with_name("disk.raw")
    run("qemu-img", "convert", "-O", "raw", base["path"], path)
    yield path
    path.unlink()


@pytest.fixture(scope="module")
def partitions(raw: Path) -> dict[int, dict[str, Any]]:
    table = json.loads(run("sfdisk", "--json", raw))["partitiontable"]
    assert table["label"] == "gpt"
    return {int(part["node"].removeprefix(str(raw))): part for part in table["partitions"]}


@pytest.fixture(scope="module")
def read(raw: Path, partitions: dict[int, dict[str, Any]]) -> Callable[[str], str]:
    device = f"{raw}?offset={partitions[1]['start'] * 512}"
    return lambda path: run("debugfs", "-R", f"cat {path}", device)


def test_first_run_made_it_and_the_second_has_nothing_to_do(run_module: Any, base: dict[str, Any], cache: Path) -> None:
    assert base["changed"] and not base["cached"]
    assert {"bootstrap", "unpack", "disk", "qcow2"} <= {phase["name"] for phase in base["phases"]}
    assert "success" in Path(base["log"]).read_text()
    names = [package["name"] for package in base["packages"]]
    assert "ethtool" in names and "cloud-init" in names
    assert not {"ifupdown", "man-db"} & set(names)
    for check in (True, False):
        again = run_module("base_disk", _check=check, packages=["ethtool"], cache_dir=str(cache))
        assert not again["changed"] and again["cached"]
        assert (again["path"], again["sha256"]) == (base["path"], base["sha256"])
        assert set(again) == set(base)
    other = run_module("base_disk", _check=True, packages=[], cache_dir=str(cache))
    assert other["changed"] and other["key"] != base["key"]


def test_damaged_disk_is_not_used(run_module: Any, base: dict[str, Any], cache: Path) -> None:
    path = Path(base["path"])
    whole = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(5 * MIB)
        before = file.read(4)
        file.seek(5 * MIB)
        file.write(bytes(byte ^ 0xFF for byte in before))
    os.utime(path, ns=(whole.st_atime_ns, whole.st_mtime_ns))
    result = run_module("base_disk", _check=True, packages=["ethtool"], cache_dir=str(cache))
    assert result["changed"] and not result["cached"]
    assert any("is damaged" in warning for warning in result["warnings"])
    with path.open("r+b") as file:
        file.seek(5 * MIB)
        file.write(before)
    path.chmod(0o444)


def test_partitions(partitions: dict[int, dict[str, Any]]) -> None:
    assert partitions[14]["type"] == "21686148-6449-6E6F-744E-656564454649"
    assert partitions[15]["type"] == "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
    assert max(partitions, key=lambda number: partitions[number]["start"]) == 1


def test_root_file_system(raw: Path, partitions: dict[int, dict[str, Any]], read: Callable[[str], str]) -> None:
    device = f"{raw}?offset={partitions[1]['start'] * 512}"
    run("e2fsck", "-f", "-n", device)
    header = run("dumpe2fs", "-h", device)
    assert "Filesystem volume name:   root\n" in header
    assert "resize_inode" in header
    listing = run("debugfs", "-R", "ls -l /etc", device)
    assert " 40755 (2)      0      0 " in listing
    # Of the group shadow, so the owners are those of the packages.
    assert "42" in next(line for line in listing.splitlines() if line.endswith(" shadow")).split()
    assert read("/etc/fstab").startswith("LABEL=root / ext4 ")
    assert "swap" not in read("/etc/fstab")
    assert read("/etc/hostname") == "localhost\n"
    assert 'Fast link dest: "../run/systemd/resolve/stub-resolv.conf"' in run(
        "debugfs", "-R", "stat /etc/resolv.conf", device
    )
    for leftover in ("/etc/apt/sources.list", "/etc/apt/apt.conf.d/99mmdebstrap", "/etc/dpkg/dpkg.cfg.d/99mmdebstrap"):
        assert read(leftover) == ""


def test_sources_are_those_of_the_bootstrap(base: dict[str, Any], read: Callable[[str], str]) -> None:
    text = read("/etc/apt/sources.list.d/debian.sources")
    assert "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg" in text
    suites = [word for line in text.splitlines() if line.startswith("Suites:") for word in line.split()[1:]]
    assert suites == ["trixie", "trixie-updates", "trixie-security"]
    for line in base["sources"]:
        assert f"URIs: {line.split()[1]}\n" in text


def test_documentation_is_left_out_but_licences_are_not(read: Callable[[str], str]) -> None:
    assert "path-exclude=/usr/share/doc/*" in read("/etc/dpkg/dpkg.cfg.d/50-path-excludes")
    assert "force-unsafe-io" not in read("/etc/dpkg/dpkg.cfg.d/50-path-excludes")
    assert "GPL" in read("/usr/share/doc/bash/copyright")
    assert read("/usr/share/locale/de/LC_MESSAGES/dpkg.mo") == ""


def test_boot_code_and_esp(raw: Path, partitions: dict[int, dict[str, Any]], read: Callable[[str], str]) -> None:
    with raw.open("rb") as disk:
        code = disk.read(512)
    assert code[:2] == b"\xeb\x63" and code[510:] == b"\x55\xaa"
    assert int.from_bytes(code[0x5C:0x64], "little") == partitions[14]["start"]
    esp = f"{raw}@@{partitions[15]['start'] * 512}"
    offset = str(partitions[15]["start"] * 512)
    volume = run("blkid", "--probe", "--offset", offset, "--match-tag", "UUID", "--output", "value", str(raw)).strip()
    assert volume not in ("", "1234-ABCD"), "all images have the id that mkfs.vfat --invariant sets"
    listing = run("mdir", "-/", "-b", "-i", esp, "::/EFI")
    for name in ("BOOT/BOOTX64.EFI", "BOOT/grubx64.efi", "debian/grub.cfg"):
        assert f"::/EFI/{name}\n" in listing
    stub = run("mtype", "-i", esp, "::/EFI/debian/grub.cfg")
    root = stub.split()[1]
    assert f"root=UUID={root} ro console=tty0 console=ttyS0,115200" in read("/boot/grub/grub.cfg")


@pytest.mark.slow_matrix
def test_boots_with_uefi_grows_and_updates_its_boot_loader(
    run_module: Any, base: dict[str, Any], tmp_path: Path
) -> None:
    """And then with BIOS, by what the guest has written itself."""
    if not Path("/usr/share/OVMF").is_dir() or shutil.which("qemu-system-x86_64") is None:
        pytest.skip("QEMU or OVMF is not installed")
    key = tmp_path / "key"
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key)
    public = key.with_suffix(".pub").read_text()
    user = {
        "name": "admin",
        "sudo": "ALL=(ALL) NOPASSWD:ALL",
        "shell": "/bin/bash",
        "ssh_authorized_keys": [public],
    }
    overlay = tmp_path / "overlay.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base["path"], overlay, "14G")
    seed = {
        "user_data": "#cloud-config\n" + json.dumps({"users": [user]}),
        "meta_data": "instance-id: one\nlocal-hostname: one\n",
    }

    def boot(firmware: str, script: str) -> str:
        arguments = {"name": firmware, "runtime_dir": str(tmp_path / firmware), "image": str(overlay), "overlay": False}
        started = run_module(
            "qemu_vm",
            _timeout=400,
            state="started",
            firmware=firmware,
            seed=seed,
            wait_for="ssh",
            timeout=300,
            **arguments,
        )
        assert not started["failed"], started["msg"]
        vm = started["vm"]
        ssh = ["ssh", "-q", "-i", str(key), "-p", str(vm["ssh_port"]), "-o", "StrictHostKeyChecking=no"]
        ssh += ["-o", "UserKnownHostsFile=/dev/null", f"admin@{vm['ssh_host']}", script]
        try:
            # The server answers before cloud-init has made the account.
            deadline = time.monotonic() + 120
            while True:
                done = subprocess.run(ssh, capture_output=True, text=True, check=False, timeout=200)
                if done.returncode != 255 or time.monotonic() > deadline:
                    break
                time.sleep(1)
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout
        finally:
            run_module("qemu_vm", state="stopped", **arguments)
            run_module("qemu_vm", state="absent", **arguments)

    check = "set -e; cloud-init status --wait; systemctl --failed --no-legend; "
    update = "sudo update-grub 2>&1; sudo DEBIAN_FRONTEND=noninteractive dpkg-reconfigure grub-cloud-amd64 2>&1; "
    first = boot("uefi", check + update + "test -d /sys/firmware/efi; df --output=size -BG / | tail -1")
    assert "failed" not in first
    assert int(first.split()[-1].rstrip("G")) >= 13
    second = boot("bios", check + "test ! -e /sys/firmware/efi; cat /proc/cmdline")
    assert "console=tty0 console=ttyS0,115200" in second


# --- interrupted ----------------------------------------------------------------------------------------------------


def processes_with(*texts: str) -> list[int]:
    """Processes that have all of the texts in their command line or environment."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            content = (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
        except OSError:
            continue
        if all(text.encode() in content for text in texts):
            found.append(int(folder.name))
    return found


@pytest.mark.parametrize(
    ("victim", "number"),
    [
        ("all", signal.SIGINT),
        pytest.param("all", signal.SIGTERM, marks=pytest.mark.slow_matrix),
        ("module", signal.SIGKILL),
        pytest.param("controller", signal.SIGKILL, marks=pytest.mark.slow_matrix),
    ],
)
def test_interrupted_bootstrap(
    ansible_env: dict[str, str], tmp_path: Path, victim: str, number: signal.Signals
) -> None:
    cache = tmp_path / "cache"
    folder = cache / "base_disks"
    command = [str(shutil.which("ansible", path=ansible_env["PATH"])), "localhost", "-i", "localhost,", "-c", "local"]
    command += ["-e", f"ansible_python_interpreter={sys.executable}", "-m", "goldsmith.images.base_disk"]
    command += ["-a", json.dumps({"cache_dir": str(cache)})]
    started = subprocess.Popen(
        command, env=ansible_env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        logs = folder / "logs"
        wait_until(lambda: any("downloading packages" in log.read_text() for log in logs.glob("*.log")), 60)
        if victim == "controller":
            os.kill(started.pid, number)
        elif victim == "module":
            for pid in processes_with("AnsiballZ_base_disk", ansible_env["ANSIBLE_HOME"]):
                os.kill(pid, number)
        else:
            os.killpg(started.pid, number)
        started.communicate(timeout=60)
        # The module came through a pipe: only its environment tells that it is ours.
        wait_until(lambda: not processes_with(ansible_env["ANSIBLE_HOME"]), 60)
    finally:
        if started.poll() is None:
            os.killpg(started.pid, signal.SIGKILL)
            started.communicate()
    assert str(cache) not in Path("/proc/self/mountinfo").read_text()
    assert not list((folder / "entries").iterdir())
    if victim != "module":
        assert not list((folder / "work").iterdir())
    Cache(folder, 10**9).open()
    assert not list((folder / "work").iterdir())
