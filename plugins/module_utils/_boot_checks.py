# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: may change at any time, not for use by other collections.
"""What the role boot_checks runs at every boot, without Ansible: the checks, and the places that hear of them.

The role copies this file and those it imports into the image, under the same package path.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import select
import sys
import time
import typing as t
from dataclasses import asdict
from functools import partial
from pathlib import Path

from ansible_collections.goldsmith.images.plugins.module_utils import (
    _boot_cloud_init,
    _kvm,
    _net_plan,
    _net_run,
    _net_spec,
)
from ansible_collections.goldsmith.images.plugins.module_utils._net_result import (
    Check,
    Deadline,
    Finding,
    InputError,
    Problem,
    Result,
)

CONFIG = "/etc/goldsmith-images/boot_checks.json"
CONSOLES = "/sys/class/tty/console/active"
CONSOLE_PATIENCE = 5.0
ITERATIONS, MAX_NS, KVM_TIMEOUT = 1000, 50.0, 2.0  # kvm_check's defaults

SPEC: dict[str, t.Any] = {
    "network": {"type": "dict"},
    "kvm_level": {"type": "str", "choices": list(_kvm.LEVELS)},
    "cloud_init_timeout": {"type": "float"},
    "fail_on": {"type": "list", "elements": "str", "choices": ["fail", "warn", "skip"], "default": ["fail"]},
    "log": {"type": "path", "required": True},
    "consoles": {"type": "bool", "default": True},
}


def load(path: str) -> dict[str, t.Any]:
    """The configuration with all defaults; InputError names the file and what is wrong in it."""
    try:
        options = _net_spec.complete(json.loads(Path(path).read_text(encoding="utf-8")), SPEC)
        if options["network"] is not None:
            if "fail_on" in options["network"]:
                raise InputError("network.fail_on: how the unit fails is said by fail_on beside it")
            options["network"] = _net_spec.complete(options["network"], where="network")
            _net_plan.plan(options["network"])
    except (OSError, ValueError, InputError) as exc:
        raise InputError(f"{path}: {exc}") from exc
    return options


def check_kvm(level: str, _deadline: Deadline) -> Finding:
    host = _kvm.gather_host("/dev/kvm")
    seen = _kvm.probe("/dev/kvm", platform.machine(), ITERATIONS, MAX_NS, KVM_TIMEOUT)
    verdict = _kvm.judge(seen, MAX_NS)
    detail = f"{verdict.reason} ({host.backend})"
    if not _kvm.reaches(level, verdict, seen):
        problem = Problem(f"kvm_{verdict.reason}", f"{detail}, wanted is the level {level}", method="probe")
        problem.hint = _kvm.hint(verdict, seen, host)
        raise problem
    return Finding(detail, "probe")


def rounds(options: t.Mapping[str, t.Any]) -> t.Iterator[list[Result]]:
    """The results, in the order in which they come: what waits for cloud-init does not hold up the rest."""
    if options["kvm_level"] is not None:
        # By itself: the probe forks, which a process should not do while it has threads.
        check = Check("kvm", "/dev/kvm", partial(check_kvm, options["kvm_level"]))
        yield [_net_run.run_here(check, KVM_TIMEOUT)]
    network = options["network"]
    if network is not None:
        start = time.monotonic()
        checks = _net_plan.plan(network)
        left = network["timeout"] - (time.monotonic() - start)
        yield _net_run.run(checks, left, network["retries"], network["parallel"])
    if options["cloud_init_timeout"] is not None:
        look = partial(_boot_cloud_init.check_cloud_init, _boot_cloud_init.RUN)
        yield [_net_run.run_here(Check("cloud_init", "this boot", look), options["cloud_init_timeout"])]


def consoles(active: str = CONSOLES) -> list[str]:
    """The devices that the kernel writes its messages to: the serial line of a virtual machine, above all."""
    try:
        return [f"/dev/{name}" for name in Path(active).read_text(encoding="ascii").split()]
    except OSError:
        return []


def write_console(path: str, text: str) -> None:
    """Write to a terminal that may not take it, which must not hold up anybody."""
    data = text.replace("\n", "\r\n").encode("ascii", "replace")
    deadline = Deadline(CONSOLE_PATIENCE)
    with contextlib.suppress(OSError):
        terminal = os.open(path, os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)
        try:
            while data and select.select([], [terminal], [], deadline.remaining())[1]:
                with contextlib.suppress(BlockingIOError):
                    data = data[os.write(terminal, data[:1024]) :]
                if deadline.remaining() <= 0:
                    break
        finally:
            os.close(terminal)


class Audience:
    """The journal, the log of this boot and the consoles. Who cannot be told keeps nothing from the others."""

    def __init__(self, log: str, *, consoles: bool) -> None:
        self._log = log
        self._consoles = consoles
        self._mode = os.O_TRUNC
        self._log_failed = False

    def tell(self, text: str) -> None:
        try:
            self._write_log(text)
        except OSError as exc:
            text += "" if self._log_failed else f"boot checks: cannot write {self._log}: {exc.strerror}\n"
            self._log_failed = True
        sys.stdout.write(text)
        sys.stdout.flush()
        for path in consoles() if self._consoles else []:
            write_console(path, text)

    def _write_log(self, text: str) -> None:
        log = os.open(self._log, os.O_WRONLY | os.O_CREAT | self._mode, 0o640)
        self._mode = os.O_APPEND
        with os.fdopen(log, "w", encoding="utf-8") as stream:
            stream.write(text)


def run(options: t.Mapping[str, t.Any]) -> int:
    results: list[Result] = []
    audience = Audience(options["log"], consoles=options["consoles"])
    audience.tell(f"boot checks: started {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}\n")
    for found in rounds(options):
        results += found
        audience.tell("".join(_net_run.line(asdict(result)) + "\n" for result in found))
    report = _net_run.report(results)
    bad = sum(result.status in options["fail_on"] for result in results)
    said = ", ".join(f"{count} {status}" for status, count in report["summary"].items() if count)
    verdict = "FAILED" if bad else "passed"
    # The last line is for programs.
    audience.tell(f"boot checks: {verdict} ({said or 'nothing to check'})\n{json.dumps(report)}\n")
    return 1 if bad else 0


def main() -> int:
    """The exit status: 0 passed, 1 failed, 2 the configuration is not possible."""
    parser = argparse.ArgumentParser(description="Check the network, KVM and cloud-init of this boot.")
    parser.add_argument("--config", default=CONFIG, help="the checks and where to tell of them (default: %(default)s)")
    parser.add_argument("--validate", action="store_true", help="only say whether the configuration is possible")
    arguments = parser.parse_args()
    try:
        options = load(arguments.config)
    except InputError as exc:
        sys.stderr.write(f"boot checks: {exc}\n")
        return 2
    return 0 if arguments.validate else run(options)
