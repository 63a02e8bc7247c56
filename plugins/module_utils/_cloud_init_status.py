# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is PRIVATE to the collection. It can have breaking changes at any time.
# Do not use it from other collections or standalone scripts.
"""How cloud-init's run on this machine went, whichever version of it runs."""

from __future__ import annotations

import dataclasses
import json
import time
import typing as t

from ansible_collections.goldsmith.images.plugins.module_utils._cloud_init_shell import NoAnswer

if t.TYPE_CHECKING:
    from ansible_collections.goldsmith.images.plugins.module_utils._cloud_init_shell import Tools

_POLL = 1.0
#: Versions before 24 say "not run"; before 23.4 a machine with recoverable errors is simply "done".
_STATES = {"not run": "not_started", "not started": "not_started"}
_UNITS_HINT = (
    "cloud-init says this too when one of its units is disabled, which a hardening may have done: "
    "systemctl list-unit-files 'cloud-*'."
)


@dataclasses.dataclass(frozen=True)
class Status:
    """What `cloud-init status` said last."""

    state: str
    status: str | None = None
    extended_status: str | None = None
    exit_code: int | None = None
    boot_status_code: str | None = None
    datasource: str | None = None
    detail: str | None = None
    errors: list[str] = dataclasses.field(default_factory=list)
    recoverable_errors: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    last_update: str | None = None
    timed_out: bool = False
    waited: float = 0.0

    @property
    def problems(self) -> list[tuple[str, str, str, str]]:
        """Severity, code, message and suggestion of everything that is not as it should be."""
        logs = "Look into /var/log/cloud-init.log and /var/log/cloud-init-output.log."
        found = [
            ("error", "status-error", error, _UNITS_HINT if "systemd unit" in error else logs) for error in self.errors
        ]
        for level, messages in self.recoverable_errors.items():
            # cloud-init's own levels; a deprecated key is no failure.
            severity = "info" if level == "DEPRECATED" else "warning"
            found += [(severity, "status-degraded", f"{level}: {message}", logs) for message in messages]
        if self.state == "error" and not self.errors:
            found.append(
                ("error", "status-error", f"cloud-init ended with an error: {self.detail or 'no detail'}.", logs)
            )
        if self.timed_out:
            found.append(
                (
                    "error",
                    "status-timeout",
                    f"After {self.waited:.0f} s cloud-init was still {self.state.replace('_', ' ')}: {self.detail}.",
                    "Wait longer (status_wait), or look at what it is waiting for: systemctl list-jobs.",
                )
            )
        elif self.state in ("running", "not_started"):
            found.append(
                ("warning", "status-unfinished", f"cloud-init is {self.state.replace('_', ' ')}.", "Set status_wait.")
            )
        elif self.state == "disabled":
            found.append(
                (
                    "warning",
                    "status-disabled",
                    f"cloud-init is disabled here, no user-data was applied: {self.detail or self.boot_status_code}.",
                    "",
                )
            )
        return found


def ask(tools: Tools, wait: float) -> Status:
    """Ask until cloud-init has ended or `wait` seconds are over.

    Not with `--wait`: that never ends when it is called by something cloud-init itself runs.
    """
    program = tools.find("cloud-init")
    if program is None:
        return Status("missing")
    started = time.monotonic()
    while True:
        try:
            done = tools.run([program, "status", "--format", "json"])
        except NoAnswer:
            return Status("unknown", detail="cloud-init status did not answer", timed_out=True, waited=_since(started))
        status = read(done.stdout, done.returncode, done.stderr)
        waited = _since(started)
        pending = status.state in ("running", "not_started")
        if not pending or waited >= wait:
            return dataclasses.replace(status, waited=waited, timed_out=pending and wait > 0)
        time.sleep(min(_POLL, max(wait - waited, 0.01)))


def read(stdout: str, code: int, stderr: str = "") -> Status:
    """Understand the answer; from 23.4 exit code 2 is a boot that went through with errors."""
    try:
        told = json.loads(stdout[stdout.index("{") :])
    except ValueError:
        last = (stderr.strip() or stdout.strip() or "no answer").splitlines()[-1]
        return Status("unknown", exit_code=code, detail=last)
    status = str(told.get("status", "unknown"))
    extended = told.get("extended_status")
    recoverable = told.get("recoverable_errors") or {}
    errors = list(told.get("errors") or [])
    if errors or code == 1 or status == "error":
        state = "error"
    elif status == "done" and (code == 2 or recoverable):
        state = "degraded"
    else:
        state = _STATES.get(status, status)
    # "error - running": an error so far, and not the end yet.
    if status == "running" or (extended or "").endswith("running"):
        state = "running"
    return Status(
        state=state,
        status=status,
        extended_status=extended,
        exit_code=code,
        boot_status_code=told.get("boot_status_code"),
        datasource=told.get("datasource") or None,
        detail=told.get("detail"),
        errors=errors,
        recoverable_errors=recoverable,
        last_update=told.get("last_update") or None,
    )


def _since(started: float) -> float:
    return round(time.monotonic() - started, 1)
