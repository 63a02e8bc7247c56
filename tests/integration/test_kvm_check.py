# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""kvm_check on the real device of this machine, whatever it is."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ansible_collections.goldsmith.images.plugins.module_utils import _kvm
from ansible_collections.goldsmith.images.tests.support import documented

has_device = pytest.mark.skipif(not os.access("/dev/kvm", os.R_OK | os.W_OK), reason="no access to /dev/kvm here")


@has_device
def test_real_probe_is_quick_and_agrees_with_the_backend() -> None:
    before = set(os.listdir("/proc/self/fd"))
    start = time.monotonic()
    seen = _kvm.probe("/dev/kvm", platform.machine(), 1000, 50.0, 2.0)
    elapsed = time.monotonic() - start
    verdict = _kvm.judge(seen, 50.0)
    assert verdict.usable, seen
    assert elapsed < 1.0  # 0.05 s on an idle machine; the bound only catches a loop that is far too long
    assert set(os.listdir("/proc/self/fd")) == before
    backend = _kvm.gather_host("/dev/kvm").backend
    if backend == "kvm_pvm":
        assert not verdict.accelerated
    elif backend in ("kvm_intel", "kvm_amd"):
        assert verdict.accelerated


@has_device
def test_guest_that_runs_too_long_is_interrupted() -> None:
    start = time.monotonic()
    seen = _kvm.probe("/dev/kvm", platform.machine(), 200_000_000, 1e9, 0.3)
    assert (seen.step, seen.errno) == ("run", 110)
    assert time.monotonic() - start < 2.0


@has_device
@pytest.mark.parametrize("check", [False, True])
def test_module(run_module, check: bool) -> None:
    result = run_module("kvm_check", _check=check)
    documented.check_returned("kvm_check", result)
    assert not result["failed"], result.get("msg")
    assert result["changed"] is False
    assert result["usable"] is True
    assert result["reason"] == ("ok" if result["accelerated"] else "emulated")
    assert result["probe"]["step"] == "done"


@pytest.mark.parametrize("check", [False, True])
def test_missing_device(run_module, tmp_path: Path, check: bool) -> None:
    ec2 = {"instance_type": "c5.2xlarge"}
    result = run_module("kvm_check", device=str(tmp_path / "kvm"), ec2=ec2, _check=check)
    documented.check_returned("kvm_check", result)
    assert not result["failed"]
    assert (result["usable"], result["reason"], result["errno"]) == (False, "no_device", "ENOENT")
    if result["backend"] == "unknown":
        assert result["ec2"]["diagnosis"] == "type_cannot"
    assert (result["ec2"]["instance_type"], result["ec2"]["source"]) == ("c5.2xlarge", "caller")
    assert result["hint"]


def test_fail_names_level_reason_and_hint(run_module, tmp_path: Path) -> None:
    result = run_module("kvm_check", device=str(tmp_path / "kvm"), level="device", fail=True, _check=True)
    documented.check_returned("kvm_check", result)
    assert result["failed"]
    assert "level device" in result["msg"]
    assert "no_device" in result["msg"]
    assert result["hint"] in result["msg"]
    assert result["usable"] is False


@has_device
def test_level_that_this_machine_reaches_does_not_fail(run_module) -> None:
    assert not run_module("kvm_check", level="run", fail=True)["failed"]
    accelerated = run_module("kvm_check", level="accelerated", fail=True)
    assert accelerated["failed"] is not accelerated["accelerated"]


def test_examples(run_module) -> None:
    [from_the_page] = documented.blocks("kvm_check.md")
    for task in [*documented.section("kvm_check", "EXAMPLES"), *from_the_page]:
        for name, params in task.items():
            if name.startswith("goldsmith.images."):
                result = run_module(name, **(params or {}))
                # To fail is right where there is no KVM, if that is what was asked for.
                assert not result["failed"] or (params["fail"] and not result["accelerated"]), task
                documented.check_returned("kvm_check", result)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_unprivileged_user_gets_the_reason(tmp_path: Path) -> None:
    code = (
        "import json,os,sys;sys.path[:0]=json.loads(sys.argv[1]);"
        "from ansible_collections.goldsmith.images.plugins.module_utils import _kvm;"
        "os.setgroups([]);os.setgid(65534);os.setuid(65534);"
        "h=_kvm.gather_host(sys.argv[2]);s=_kvm.probe(sys.argv[2],h.machine,1000,50.0,2.0);v=_kvm.judge(s,50.0);"
        "print(json.dumps(_kvm.report(v,s,h)))"
    )
    node = tmp_path / "kvm"
    node.touch(mode=0o600)
    for folder in [tmp_path, *tmp_path.parents][:4]:
        if folder.stat().st_uid == 0 and str(folder) not in ("/", "/tmp"):
            folder.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(sys.path), str(node)], capture_output=True, text=True, check=True
    )
    result = json.loads(done.stdout)
    assert (result["usable"], result["reason"], result["errno"]) == (False, "eacces", "EACCES")
    assert "group" in result["hint"]
