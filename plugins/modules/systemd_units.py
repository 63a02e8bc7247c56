#!/usr/bin/python
# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: systemd_units
short_description: Enable, mask and start many systemd units in one task, also in a root tree that is not booted
version_added: "0.1.0"
author: goldsmith.images contributors (@goldsmith-images)
description:
  - Brings lists of system units into their wanted state with as few C(systemctl) processes as possible - one to look,
    one for each kind of change, one reload of the manager.
  - Works in a root tree without a running systemd, for example over the chroot connection, when O(offline) is set.
    Units are then enabled, disabled and masked, but not started or stopped.
  - A name without a suffix is a service.
extends_documentation_fragment:
  - goldsmith.images.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: partial
    details:
      - O(restarted) and O(reloaded) always act.
  platform:
    platforms: posix
options:
  enabled:
    description:
      - Units that are started at boot. One that has nothing to enable (C(static), C(generated)) is left as it is.
    type: list
    elements: str
    default: []
  disabled:
    description: Units that are not started at boot by their own enablement.
    type: list
    elements: str
    default: []
  masked:
    description: Units that cannot be started at all. The unit need not exist. A running unit is not stopped by this.
    type: list
    elements: str
    default: []
  unmasked:
    description: Units whose mask is removed, before anything else is done.
    type: list
    elements: str
    default: []
  started:
    description: Units that run now. One that is active is left alone.
    type: list
    elements: str
    default: []
  stopped:
    description: Units that do not run now.
    type: list
    elements: str
    default: []
  restarted:
    description: Units that are restarted in any case. One that has failed does not stay so if its condition is not met.
    type: list
    elements: str
    default: []
  reloaded:
    description: Units that are told to read their configuration again in any case, restarted if they cannot.
    type: list
    elements: str
    default: []
  restarted_for:
    description:
      - Units, and for each the files that it reads when it starts. A unit that runs since before the last change of one
        of them is restarted. It looks at times and not at what another task has changed, so it also repairs what an
        interrupted run has left.
    type: dict
    default: {}
  daemon_reload:
    description:
      - Let the manager read its unit files again, after units were enabled and before units are started. It happens
        without asking when this task enables, disables or masks anything. Not counted as a change.
    type: bool
    default: false
  default_target:
    description: The target that is booted, for example V(multi-user.target).
    type: str
  offline:
    description:
      - The system is not booted. Nothing is started or stopped; such units are returned in RV(skipped_units). In roles
        pass C(ansible_facts['is_chroot']).
    type: bool
    default: false
  missing_ok:
    description:
      - Leave units that do not exist alone instead of failing. In check mode they are never an error.
    type: bool
    default: false
"""

EXAMPLES = r"""
---
- name: Run containerd, and nothing of swap
  goldsmith.images.systemd_units:
    enabled: [containerd]
    started: [containerd]
    restarted_for:
      containerd: [/etc/containerd/config.toml]
    masked: [swap.target]
    offline: "{{ ansible_facts['is_chroot'] }}"

- name: Keep the timers quiet while the image is made
  goldsmith.images.systemd_units:
    stopped: [apt-daily.timer, apt-daily-upgrade.timer]
    missing_ok: true
"""

RETURN = r"""
changed_units:
  description: The units that were changed, or would be in check mode, sorted.
  returned: success
  type: list
  elements: str
  sample: [containerd.service, swap.target]
skipped_units:
  description: Units that would have been started, stopped, restarted or reloaded if the system were booted, sorted.
  returned: success
  type: list
  elements: str
  sample: [containerd.service]
missing_units:
  description: Named units that do not exist, sorted. Those that are only to be masked or unmasked are not among them.
  returned: success
  type: list
  elements: str
  sample: []
commands:
  description: The C(systemctl) commands that were run, or would be in check mode.
  returned: success
  type: list
  elements: list
  sample: [[enable, --no-reload, containerd.service], [daemon-reload], [start, containerd.service]]
"""

import os
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.goldsmith.images.plugins.module_utils import _systemd_units as logic

LISTS = ("enabled", "disabled", "masked", "unmasked", "started", "stopped", "restarted", "reloaded")


def argument_spec() -> dict[str, t.Any]:
    spec: dict[str, t.Any] = {name: {"type": "list", "elements": "str", "default": []} for name in LISTS}
    spec["restarted_for"] = {"type": "dict", "default": {}}
    spec["daemon_reload"] = {"type": "bool", "default": False}
    spec["default_target"] = {"type": "str"}
    spec["offline"] = {"type": "bool", "default": False}
    spec["missing_ok"] = {"type": "bool", "default": False}
    return spec


class Systemctl:
    """The program, in the one way or the other for all calls."""

    def __init__(self, module: AnsibleModule, offline: bool) -> None:
        self._module = module
        self._program = module.get_bin_path("systemctl")
        if self._program is None:
            raise logic.SystemdUnitsError("systemctl is not installed")
        # systemctl notices a chroot by comparing the roots of process 1 and itself, which needs /proc: say it instead.
        self._environment = {"SYSTEMD_OFFLINE": "1"} if offline else {}

    def call(self, *arguments: str) -> tuple[int, str, str]:
        command = [self._program, *arguments]
        return self._module.run_command(command, environ_update=self._environment)

    def states(self, names: list[str], offline: bool) -> dict[str, logic.UnitState]:
        if not names:
            return {}
        if not offline:
            code, out, err = self.call("show", f"--property={logic.SHOW_PROPERTIES}", "--", *names)
            if code != 0:
                raise logic.SystemdUnitsError(f"systemctl show failed (exit {code}): {(err or out).strip()}")
            return logic.parse_show(names, out)
        # Old versions stop at the first unit that does not exist, so those are not asked for.
        existing = [name for name in names if logic.unit_file_exists(name)]
        result = {name: logic.UnitState() for name in names}
        if existing:
            # The exit code only says whether one of them is enabled.
            out = self.call("is-enabled", "--", *existing)[1]
            result.update(logic.parse_is_enabled(existing, out))
        return result

    def run(self, command: tuple[str, ...]) -> None:
        code, out, err = self.call(*command)
        if code == 0:
            return
        message = f"systemctl {' '.join(command)} failed (exit {code}): {(err or out).strip()}"
        if command[0] in ("start", "restart", "stop", "reload-or-restart"):
            message += "\n" + self.call("status", "--no-pager", "--full", "--lines=20", "--", *command[1:])[1].strip()
        raise logic.SystemdUnitsError(message)


def run(module: AnsibleModule) -> dict[str, t.Any]:
    wishes = logic.make_wishes(module.params)
    if not wishes.offline and not os.path.isdir("/run/systemd/system"):
        raise logic.SystemdUnitsError("systemd does not run here; for a system that is not booted set 'offline'")
    systemctl = Systemctl(module, wishes.offline)
    states = systemctl.states(wishes.all_units(), wishes.offline)
    default_target = logic.current_default_target()
    outdated = [] if wishes.offline else logic.outdated(wishes, states, time.time() - time.monotonic())
    plan = logic.decide(wishes, states, default_target, module.check_mode, outdated)
    if not module.check_mode:
        for command in plan.commands:
            systemctl.run(command)
    result: dict[str, t.Any] = {
        "changed": plan.changed,
        "changed_units": list(plan.changed_units),
        "skipped_units": list(plan.skipped_units),
        "missing_units": list(plan.missing_units),
        "commands": [list(command) for command in plan.commands],
    }
    if module._diff:
        shown = wishes.default_target and default_target
        result["diff"] = {
            "before": logic.text_of(states, shown, wishes.offline),
            "after": logic.text_of(logic.expected(wishes, plan, states), wishes.default_target, wishes.offline),
        }
    return result


def main() -> t.NoReturn:
    module = AnsibleModule(argument_spec=argument_spec(), supports_check_mode=True)
    try:
        result = run(module)
    except logic.SystemdUnitsError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
