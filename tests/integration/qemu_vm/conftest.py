# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""qemu_vm with a real QEMU; the guests are boot sectors, so that a boot takes a moment and not a minute."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.goldsmith.images.tests.support import documented
from ansible_collections.goldsmith.images.tests.support.processes import alive


@pytest.fixture(autouse=True)
def _needs_qemu() -> None:
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("QEMU is not installed")


@pytest.fixture
def image(tmp_path: Path) -> Callable[[bytes], str]:
    def make(sector: bytes, name: str = "disk, with = comma.img") -> str:
        path = tmp_path / name
        path.write_bytes(sector.ljust(1024 * 1024, b"\0"))
        return str(path)

    return make


DIRECTLY = """
import json, sys
sys.path[:0] = json.loads(sys.argv[1])
from ansible.module_utils.testing import patch_module_args
from ansible_collections.goldsmith.images.plugins.modules import qemu_vm
with patch_module_args(json.loads(sys.argv[2])):
    qemu_vm.main()
"""


def run_directly(params: dict[str, Any]) -> dict[str, Any]:
    """The module in a process of its own, without the second or two that the ansible command adds to each call."""
    check = params.pop("_check", False)
    arguments = json.dumps({**params, "_ansible_check_mode": check})
    command = [sys.executable, "-c", DIRECTLY, json.dumps(sys.path), arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout, done.stderr
    result = json.loads(done.stdout)
    result.setdefault("failed", False)
    return result


@pytest.fixture
def vm(run_module, tmp_path: Path) -> Iterator[Callable[..., dict[str, Any]]]:
    """``vm(state="started", ...)`` in a runtime directory with a long path; nothing is left of it afterwards.

    Run by the ansible command if ``_ansible`` is given.
    """
    default = tmp_path / ("a long name, " * 8).strip() / "vm"
    used = set()

    def run(_ok: bool = True, _ansible: bool = False, **params: Any) -> dict[str, Any]:
        params = {"runtime_dir": str(default), "memory": 32, "cpus": 1, **params}
        if params.get("state") not in (None, "started"):
            params = {name: params[name] for name in params if name not in ("memory", "cpus")}
        used.add(params["runtime_dir"])
        result = run_module("qemu_vm", **params) if _ansible else run_directly(params)
        assert result["failed"] is not _ok, result.get("msg", "") + result.get("exception", "")
        documented.check_returned("qemu_vm", result)
        return result

    yield run
    pids = []
    for directory in used:
        record = Path(directory) / "vm.json"
        if not record.exists():
            continue
        pids.append(json.loads(record.read_text())["pid"])
        run_directly({"state": "absent", "runtime_dir": directory})
        assert not record.exists()
    assert not [pid for pid in pids if pid and alive(pid)]
