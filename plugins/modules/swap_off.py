#!/usr/bin/python
# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: swap_off
short_description: Switch swap off for good, whatever it comes from
version_added: "0.1.0"
author: goldsmith.images contributors (@goldsmith-images)
description:
  - Comments out the swap entries of C(/etc/fstab).
  - Masks C(swap.target), so that neither a unit of C(fstab) nor a swap partition that systemd discovers on a GPT disk
    is used after the next boot.
  - Masks every C(.swap) unit of a package and the services of zram and swap file tools, also of those that are not
    installed yet; an administrator's own C(.swap) unit in C(/etc/systemd/system) is kept, but not started at boot.
  - Switches off what is in use.
  - Swap partitions and files are left as they are. Swap that user data of cloud-init asks for (C(swap:)) is still made.
extends_documentation_fragment:
  - goldsmith.images.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
  platform:
    platforms: posix
options:
  offline:
    description:
      - The system is not booted, so only its files are changed. In roles pass C(ansible_facts['is_chroot']).
    type: bool
    default: false
"""

EXAMPLES = r"""
---
- name: Switch swap off for good
  goldsmith.images.swap_off:
    offline: "{{ ansible_facts['is_chroot'] }}"
"""

RETURN = r"""
changed_paths:
  description: The files and links that were changed, made or removed, or would be in check mode.
  returned: success
  type: list
  elements: str
  sample: [/etc/fstab, /etc/systemd/system/swap.target]
swapoff:
  description: The devices and files that were in use as swap and are no longer, or would no longer be in check mode.
  returned: success
  type: list
  elements: str
  sample: [/dev/vda3]
"""

import os
import tempfile
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.goldsmith.images.plugins.module_utils import _swap_off as logic


def run_checked(module: AnsibleModule, *command: str) -> None:
    code, out, err = module.run_command([module.get_bin_path(command[0], required=True), *command[1:]])
    if code != 0:
        raise logic.SwapOffError(f"{' '.join(command)} failed (exit {code}): {(err or out).strip()}")


def write_fstab(module: AnsibleModule, text: str) -> None:
    handle, path = tempfile.mkstemp(prefix="fstab.", dir=module.tmpdir)
    module.add_cleanup_file(path)
    with os.fdopen(handle, "w", encoding="utf-8", errors="surrogateescape") as stream:
        stream.write(text)
    module.atomic_move(path, "/etc/fstab")


def run(module: AnsibleModule) -> dict[str, t.Any]:
    offline = module.params["offline"]
    plan = logic.decide(offline)
    fstab = ["/etc/fstab"] if plan.fstab_before != plan.fstab_after else []
    result: dict[str, t.Any] = {
        "changed": plan.changed,
        "changed_paths": [*fstab, *plan.masks, *plan.unlinks],
        "swapoff": list(plan.swapoff),
    }
    if module._diff:
        result["diff"] = logic.diff_of(plan)
    if module.check_mode:
        return result
    if fstab:
        write_fstab(module, plan.fstab_after)
    logic.apply_links(plan)
    if plan.swapoff:
        run_checked(module, "swapoff", "--", *plan.swapoff)
    if plan.written and not offline:
        # The units that were made of the old fstab are forgotten.
        run_checked(module, "systemctl", "daemon-reload")
    return result


def main() -> t.NoReturn:
    module = AnsibleModule(argument_spec={"offline": {"type": "bool", "default": False}}, supports_check_mode=True)
    try:
        result = run(module)
    except logic.SwapOffError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error.filename}: {error.strerror}")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
