# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The image cml: refused where its machines cannot run VMs, and built, checked and booted where that is allowed."""

from __future__ import annotations

import json
import platform
import re
from pathlib import Path

import pytest
from ansible_collections.goldsmith.images.plugins.module_utils import _kvm

BUILD = ("playbooks/build-image.yml", "-e", "image=cml")
HOURS = 3 * 3600


@pytest.fixture(scope="module")
def nested() -> bool:
    """Whether machines of this host could run VMs."""
    seen = _kvm.probe("/dev/kvm", platform.machine(), 1000, 50.0, 2.0)
    return _kvm.judge(seen, 50.0).accelerated and _kvm.gather_host("/dev/kvm").nested_param is not False


def test_host_that_cannot_run_vms_in_vms_is_refused_in_the_plan(play, tmp_path: Path, nested: bool):
    if nested:
        pytest.skip("machines of this host can run VMs")
    refused = play(*BUILD, "-e", f"image_output={tmp_path / 'output'}")
    assert refused.wait(300) != 0
    output = " ".join(refused.output.split())
    assert "The definition needs_kvm, and a machine on this host cannot run VMs" in output
    assert "image_allow_no_kvm=true" in output
    assert "TASK [Make the base disk]" not in refused.output
    assert not (tmp_path / "output").exists()


@pytest.mark.slow_matrix
def test_image_is_built_checked_and_booted(play, tmp_path: Path, nested: bool):
    arguments = ["-e", f"image_output={tmp_path}", *([] if nested else ["-e", "image_allow_no_kvm=true"])]
    done = play(*BUILD, *arguments)
    assert done.wait(HOURS) == 0, done.output[-12000:]
    folder = tmp_path / "cml"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["verification"]["passed"] is True
    assert manifest["plan"]["build_method"]["name"] == "vm"
    log = (folder / "build.log").read_text(errors="replace")
    for task in ("whether KVM works", "whether the network works", "how far the user interface has come"):
        assert re.search(rf"TASK \[(goldsmith\.images\.cml_build_checks : )?See {task}", log), task
    packages = {package["name"] for package in manifest["packages"]}
    assert {"libvirt-daemon-system", "network-manager", "qemu-system-x86"} <= packages
    assert "nginx-light" not in packages
    # CML's own images boot with UEFI only.
    image = folder / "cml.qcow2"
    verified = play(
        "playbooks/verify_image.yml", "-e", f"verify_image_path={image}",
        "-e", f"verify_image_work_dir={tmp_path}/verify", "-e", "verify_image_firmware=uefi",
    )  # fmt: skip
    assert verified.wait(HOURS) == 0, verified.output[-12000:]
