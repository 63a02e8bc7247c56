# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a machine is made of: ports, disks, accelerator, seed, firmware."""

from __future__ import annotations

import platform
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from ansible_collections.goldsmith.images.plugins.module_utils import _kvm
from ansible_collections.goldsmith.images.tests.support.boot_sector import BUTTON, HANG
from ansible_collections.goldsmith.images.tests.support.processes import alive, wait_until


def test_taken_port_is_an_error_and_free_ones_do_not_collide(vm, image, tmp_path: Path) -> None:
    disk = image(HANG)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for check in (True, False):
            taken = vm(state="started", image=disk, ssh_port=port, _ok=False, _check=check)
            assert f"tcp port {port} cannot be had: Address already in use" in taken["msg"]
    free = vm(state="started", image=disk, ssh_port=port)["vm"]
    assert free["ssh_port"] == port
    others = [vm(state="started", image=disk, runtime_dir=str(tmp_path / name))["vm"] for name in ("one", "two")]
    assert len({free["ssh_port"], *(other["ssh_port"] for other in others)}) == 3


def test_parallel_starts_do_not_collide(vm, image, tmp_path: Path) -> None:
    disk = image(HANG)
    with ThreadPoolExecutor(6) as pool:
        places = [*(str(tmp_path / f"vm{number}") for number in range(4)), str(tmp_path / "vm0")]
        runs = [
            pool.submit(vm, state="started", image=disk, runtime_dir=place, port_forwards=[{"guest_port": 80}])
            for place in places
        ]
        results = [run.result() for run in runs]
    machines = {result["vm"]["pid"]: result["vm"] for result in results}
    assert len(machines) == 4, "two runs for one directory made one VM"
    assert sorted(result["changed"] for result in results) == [False, True, True, True, True]
    ports = [vm["ssh_port"] for vm in machines.values()]
    ports += [vm["port_forwards"][0]["host_port"] for vm in machines.values()]
    assert len(set(ports)) == 8


def test_machine_with_everything(vm, image, tmp_path: Path) -> None:
    data = tmp_path / "data.img"
    data.write_bytes(b"data".ljust(1024 * 1024, b"\0"))
    options = {
        "image": image(BUTTON),
        "machine": "pc",
        "cpu_model": "qemu64",
        "accelerator": "forbid",
        "disks": [{"size": "16M"}, {"image": str(data)}],
        "port_forwards": [{"guest_port": 80}, {"guest_port": 53, "protocol": "udp"}],
        "extra_args": ["-watchdog-action", "none"],
    }
    planned = vm(state="started", _check=True, **options)["vm"]
    assert (planned["accelerator"], planned["port_forwards"]) == ("tcg", [])
    started = vm(state="started", **options)["vm"]
    assert [(one["guest_port"], one["protocol"]) for one in started["port_forwards"]] == [(80, "tcp"), (53, "udp")]
    socket.create_connection(("127.0.0.1", started["port_forwards"][0]["host_port"]), 5).close()
    assert vm(state="started", **options)["changed"] is False
    assert "port_forwards are others" in vm(state="started", port_forwards=[], _ok=False)["msg"]
    assert "disks are others" in vm(state="started", disks=[{"size": "32M"}], _ok=False)["msg"]
    directory = Path(started["runtime_dir"])
    wait_until(lambda: "BOOT" in Path(started["console_log"]).read_text())
    vm(state="snapshot", snapshot="warm")
    assert vm(state="started", snapshot="warm")["vm"]["restored_snapshot"] == "warm"
    vm(state="stopped", stop_timeout=0)

    copy = vm(state="started", runtime_dir=str(tmp_path / "copy"), warm_from=str(directory), snapshot="warm")["vm"]
    assert copy["restored_snapshot"] == "warm"
    assert [one["guest_port"] for one in copy["port_forwards"]] == [80, 53]
    assert (tmp_path / "copy/disk2.qcow2").exists()
    other = {"runtime_dir": str(tmp_path / "other"), "warm_from": str(directory), "disks": []}
    assert "has other disks" in vm(state="started", _ok=False, **other)["msg"]

    vm(state="absent")
    assert not directory.exists()
    assert data.read_bytes().startswith(b"data")


def test_accelerator_is_what_kvm_check_says(vm, image, tmp_path: Path) -> None:
    seen = _kvm.probe("/dev/kvm", platform.machine(), 1000, 50.0, 2.0)
    accelerated = _kvm.judge(seen, 50.0).accelerated
    disk = image(HANG)
    assert vm(state="started", image=disk)["vm"]["accelerator"] == ("kvm" if accelerated else "tcg")
    assert vm(state="started", accelerator="prefer")["changed"] is False
    required = {"image": disk, "accelerator": "require", "runtime_dir": str(tmp_path / "required")}
    for check in (True, False):
        result = vm(state="started", _ok=accelerated, _check=check, **required)
        assert accelerated or "KVM is required" in result["msg"]


def test_seed_is_a_nocloud_disk(vm, image) -> None:
    seed = {"user_data": "#cloud-config\nhostname: probe\n", "network_config": "version: 2\n"}
    started = vm(state="started", image=image(HANG), seed=seed, name="probe")["vm"]
    iso = Path(started["runtime_dir"]) / "seed.iso"
    assert iso.stat().st_mode & 0o777 == 0o600
    raw = iso.read_bytes()
    assert raw[0x8028:0x802E] == b"cidata"
    listing = subprocess.run(
        ["xorriso", "-indev", str(iso), "-find", "/", "-type", "f"], capture_output=True, text=True, check=True
    ).stdout
    assert set(listing.split()) == {"'/meta-data'", "'/network-config'", "'/user-data'"}
    assert b"hostname: probe" in raw
    assert b"instance-id: probe" in raw
    assert not list(Path(started["runtime_dir"]).glob(".seed.*"))


def test_uefi_machine_has_variables_of_its_own(vm, image) -> None:
    if not Path("/usr/share/OVMF").is_dir():
        pytest.skip("OVMF is not installed")
    started = vm(state="started", image=image(HANG), firmware="uefi", memory=128)["vm"]
    assert (Path(started["runtime_dir"]) / "uefi_vars.fd").exists()
    assert alive(started["pid"])
    # Its state can be saved although its variables are a writable raw disk.
    vm(state="snapshot", snapshot="warm")
    assert vm(state="started", memory=128, snapshot="warm")["vm"]["restored_snapshot"] == "warm"
