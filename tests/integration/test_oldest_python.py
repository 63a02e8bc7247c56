# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""packer_build and qemu_vm do their work on the oldest Python of a target; test_examples.py has the other modules."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.goldsmith.images.tests.support import documented, oldest_python
from ansible_collections.goldsmith.images.tests.support.boot_sector import BUTTON
from ansible_collections.goldsmith.images.tests.support.packer_build import FILE_TEMPLATE, needs_packer, needs_qemu


@needs_packer
def test_packer_build(run_module: Any, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "file.pkr.hcl").write_text(FILE_TEMPLATE)
    params = {"template": str(tmp_path / "file.pkr.hcl"), "_python": oldest_python.required(), "no_progress": True}
    for check, changed in ((True, True), (False, True), (False, False)):
        result = run_module("packer_build", _check=check, sensitive_variables={"pw": "s3cret"}, **params)
        assert result["changed"] is changed, result
        documented.check_returned("packer_build", result)
    failed = run_module("packer_build", variables={"zzz": 1}, **params)
    assert "it declares: pw, text" in failed["msg"]


@needs_qemu
def test_qemu_vm(run_module: Any, tmp_path: Path) -> None:
    library = importlib.util.find_spec("qemu.qmp")
    if library is None or library.origin is None:
        pytest.skip("the library qemu.qmp is not installed")
    # This library alone: the others here are for another Python.
    (tmp_path / "library").mkdir()
    (tmp_path / "library/qemu").symlink_to(Path(library.origin).parents[1])
    options = {"_python": oldest_python.required(), "_env": {"PYTHONPATH": str(tmp_path / "library")}}

    def vm(state: str, **params: Any) -> dict[str, Any]:
        result = run_module("qemu_vm", state=state, runtime_dir=str(tmp_path / "vm"), **params, **options)
        documented.check_returned("qemu_vm", result)
        assert not result["failed"], result["msg"]
        return result

    (tmp_path / "disk").write_bytes(BUTTON.ljust(1 << 20, b"\0"))
    machine = {"image": str(tmp_path / "disk"), "memory": 32, "cpus": 1}
    try:
        vm("started", _check=True, **machine)
        vm("started", **machine)
        vm("snapshot", snapshot="warm")
        assert vm("started", snapshot="warm")["vm"]["restored_snapshot"] == "warm"
        assert vm("stopped")["stopped_by"] == "acpi"
    finally:
        vm("absent")
