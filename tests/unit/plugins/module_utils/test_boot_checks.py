# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The checks of a boot: what cloud-init leaves, what the configuration may say, and who is told."""

from __future__ import annotations

import json
import os
import pty
import time
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.goldsmith.images.plugins.module_utils import _boot_checks, _boot_cloud_init
from ansible_collections.goldsmith.images.plugins.module_utils._net_result import Deadline, InputError, Problem

# As 25.1.4 writes them.
STAGE: dict[str, Any] = {"errors": [], "recoverable_errors": {}, "start": 5.1, "finished": 6.2}
STAGES = ("init-local", "init", "modules-config", "modules-final")
STATUS: dict[str, Any] = {"datasource": "DataSourceNoCloud", "stage": None, **dict.fromkeys(STAGES, STAGE)}
RESULT = {"datasource": "DataSourceNoCloud [seed=/dev/vdb]", "errors": []}


def cloud_init(folder: Path, status: Any, result: Any) -> tuple[str, str]:
    """Status and error class of what these files say."""
    (folder / "status.json").write_text(json.dumps({"v1": status}))
    (folder / "result.json").write_text(json.dumps(result))
    try:
        return "pass", _boot_cloud_init.check_cloud_init(folder, Deadline(5)).detail
    except Problem as problem:
        return problem.status, f"{problem.error_class}: {problem.detail}"


def test_cloud_init_that_ended_well(tmp_path: Path) -> None:
    assert cloud_init(tmp_path, STATUS, {"v1": RESULT}) == ("pass", "done, DataSourceNoCloud [seed=/dev/vdb]")
    # 22.4 has no recoverable errors.
    old = {name: {"errors": [], "start": 1.0, "finished": 2.0} for name in STAGES}
    assert cloud_init(tmp_path, {**STATUS, **old}, {"v1": RESULT})[0] == "pass"


def test_cloud_init_with_errors(tmp_path: Path) -> None:
    text = "('scripts_user', RuntimeError('Runparts: 1 failures (runcmd) in 1 attempted commands'))"
    status = {**STATUS, "modules-final": {**STAGE, "errors": [text]}}
    assert cloud_init(tmp_path, status, {"v1": {**RESULT, "errors": [text]}}) == (
        "fail",
        f"cloud_init_error: modules-final: {text}",
    )
    many = {**STATUS, "init": {**STAGE, "errors": [f"error {number}" for number in range(9)]}}
    assert "error 2 (and 6 more)" in cloud_init(tmp_path, many, {"v1": RESULT})[1]
    recoverable = {**STATUS, "init": {**STAGE, "recoverable_errors": {"WARNING": ["unknown key"], "DEPRECATED": []}}}
    assert cloud_init(tmp_path, recoverable, {"v1": RESULT}) == (
        "warn",
        "cloud_init_degraded: init: WARNING: unknown key",
    )


def test_cloud_init_whose_files_cannot_be_read(tmp_path: Path) -> None:
    assert cloud_init(tmp_path, STATUS, [])[1].startswith("cloud_init_error: ")


def test_cloud_init_that_is_not_there(tmp_path: Path) -> None:
    for folder in (tmp_path / "none", tmp_path):
        (tmp_path / "disabled").touch()
        with pytest.raises(Problem) as absent:
            _boot_cloud_init.check_cloud_init(folder, Deadline(5))
        assert (absent.value.status, absent.value.error_class) == ("skip", "cloud_init_absent")


def test_cloud_init_that_does_not_end(tmp_path: Path) -> None:
    deadline = Deadline(0.3)
    with pytest.raises(TimeoutError):
        _boot_cloud_init.check_cloud_init(tmp_path, deadline)
    assert deadline.waiting_for[0] == "cloud_init_running"


def config(folder: Path, **options: Any) -> str:
    path = folder / "config.json"
    path.write_text(json.dumps({"log": str(folder / "log"), "consoles": False, **options}))
    return str(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"netwrok": {}}, "netwrok: there is no such option; did you mean network?"),
        ({"network": {"tpc": []}}, "network.tpc: there is no such option; did you mean tcp?"),
        ({"network": {"tcp": ["a"]}}, "has no port"),
        ({"network": {"fail_on": ["warn"]}}, "network.fail_on"),
        ({"kvm_level": "full"}, "there are device, api, vm, run, accelerated"),
        ({"log": None}, "log: this option is required"),
    ],
)
def test_configuration_that_is_not_possible(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    path = config(tmp_path, **options)
    with pytest.raises(InputError) as refused:
        _boot_checks.load(path)
    assert message in str(refused.value) and path in str(refused.value)


def test_configuration_that_is_no_json(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("{")
    for path in (tmp_path / "x", tmp_path / "none"):
        with pytest.raises(InputError, match=str(path)):
            _boot_checks.load(str(path))


LOCAL = {"interfaces": ["lo"], "default_route": False}


def test_all_is_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "log").write_text("of the boot before\n" * 99)
    assert _boot_checks.run(_boot_checks.load(config(tmp_path, network=LOCAL))) == 0
    log = (tmp_path / "log").read_text()
    assert capsys.readouterr().out == log
    lines = log.splitlines()
    assert lines[0].startswith("boot checks: started 20")
    assert lines[1].startswith("PASS interface lo (")
    assert lines[2] == "boot checks: passed (1 pass)"
    assert json.loads(lines[3])["checks"][0]["target"] == "lo"
    assert (tmp_path / "log").stat().st_mode & 0o777 in (0o640, 0o644)  # the second: it was there before


def test_log_that_cannot_be_written_keeps_nothing_from_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = str(tmp_path / "no/such/folder/log")
    assert _boot_checks.run(_boot_checks.load(config(tmp_path, network=LOCAL, log=log))) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == f"boot checks: cannot write {log}: No such file or directory"
    assert lines[2].startswith("PASS interface lo (")
    assert lines[3] == "boot checks: passed (1 pass)"
    assert len(lines) == 5


def test_what_fails_is_said_with_its_hint(tmp_path: Path) -> None:
    network = {**LOCAL, "tcp": ["127.0.0.1:1"]}
    path = config(tmp_path, network=network, kvm_level="accelerated")
    assert _boot_checks.run(_boot_checks.load(path)) == 1
    log = (tmp_path / "log").read_text()
    assert "FAIL tcp 127.0.0.1:1" in log and "boot checks: FAILED" in log
    report = json.loads(log.splitlines()[-1])
    kvm, _interface, tcp = report["checks"]
    assert (tcp["status"], tcp["error_class"]) == ("fail", "refused")
    assert kvm["name"] == "kvm" and (kvm["status"] == "pass" or (kvm["error_class"].startswith("kvm_") and kvm["hint"]))


def test_what_counts_as_a_failure_is_configured(tmp_path: Path) -> None:
    network = {"interfaces": [], "default_route": False, "icmp": {"targets": ["255.255.255.255"]}, "timeout": 0.5}
    for fail_on, code in ((["fail"], 0), (["fail", "warn"], 1)):
        assert _boot_checks.run(_boot_checks.load(config(tmp_path, network=network, fail_on=fail_on))) == code


def test_console_gets_the_text(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    try:
        _boot_checks.write_console(os.ttyname(theirs), "first\nsecond \u00fc\n")
        os.set_blocking(ours, False)
        assert os.read(ours, 1000).replace(b"\r", b"") == b"first\nsecond ?\n"
    finally:
        os.close(ours)
        os.close(theirs)


def test_console_that_takes_nothing_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_boot_checks, "CONSOLE_PATIENCE", 0.5)
    ours, theirs = pty.openpty()
    try:
        start = time.monotonic()
        _boot_checks.write_console(os.ttyname(theirs), "x" * 1_000_000)  # nobody reads: its buffer is soon full
        assert time.monotonic() - start < 5
    finally:
        os.close(ours)
        os.close(theirs)
    _boot_checks.write_console("/nowhere/tty", "x")


def test_consoles_are_those_of_the_kernel(tmp_path: Path) -> None:
    (tmp_path / "active").write_text("tty0 ttyS0\n")
    assert _boot_checks.consoles(str(tmp_path / "active")) == ["/dev/tty0", "/dev/ttyS0"]
    assert _boot_checks.consoles(str(tmp_path / "none")) == []
