#!/usr/bin/python
# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: kernel_settings
short_description: Load kernel modules and put sysctl values into effect now
version_added: "0.1.0"
author: goldsmith.images contributors (@goldsmith-images)
description:
  - Compares the running kernel with what is wanted, and loads and sets what differs. It looks at the kernel and not at
    whether a file has changed, so it also repairs what an interrupted run or somebody else has left.
  - Writes no files. What is to hold after a reboot belongs into C(/etc/modules-load.d) and C(/etc/sysctl.d), which
    M(goldsmith.images.config_files) can write.
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
    platforms: linux
options:
  modules:
    description: Kernel modules to load, before the values are set. One that is built in counts as loaded.
    type: list
    elements: str
    default: []
  values:
    description:
      - Names and values as in C(sysctl.d). Names may have the wildcards V(*) and V(?). A name that the kernel does not
        have is an error, unless a V(-) stands before it.
    type: dict
    default: {}
"""

EXAMPLES = r"""
---
- name: Route packets, also those of bridges
  goldsmith.images.kernel_settings:
    modules: [br_netfilter]
    values:
      net.ipv4.ip_forward: 1
      net.bridge.bridge-nf-call-iptables: 1
      -net.ipv6.conf.en*.accept_ra: 2
  when: not ansible_facts['is_chroot']
"""

RETURN = r"""
loaded:
  description: Modules that were loaded, or would be in check mode.
  returned: success
  type: list
  elements: str
  sample: [br_netfilter]
set:
  description: Files below C(/proc/sys) that were written, or would be in check mode, with their new values.
  returned: success
  type: dict
  sample: {/proc/sys/net/ipv4/ip_forward: "1"}
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.goldsmith.images.plugins.module_utils import _kernel_settings as logic


def load(module: AnsibleModule, names: tuple[str, ...]) -> None:
    code, out, err = module.run_command([module.get_bin_path("modprobe", required=True), "--all", "--", *names])
    if code != 0:
        raise logic.KernelSettingsError(f"modprobe {' '.join(names)} failed (exit {code}): {(err or out).strip()}")


def run(module: AnsibleModule) -> dict[str, t.Any]:
    wanted = module.params["modules"], module.params["values"]
    plan = logic.decide(*wanted)
    to_load = plan.modules
    if to_load and not module.check_mode:
        load(module, to_load)
        # Modules bring settings of their own.
        plan = logic.decide(*wanted)
    if plan.unknown and not (module.check_mode and to_load):
        raise logic.KernelSettingsError(f"the kernel has no setting {', '.join(plan.unknown)}")
    if not module.check_mode:
        for path, _old, new in plan.values:
            logic.write(path, new)
    result: dict[str, t.Any] = {
        "changed": bool(to_load or plan.values),
        "loaded": list(to_load),
        "set": {path: new for path, _old, new in plan.values},
    }
    if module._diff:
        before = "".join(f"{path} = {old}\n" for path, old, _new in plan.values)
        after = "".join(f"{path} = {new}\n" for path, _old, new in plan.values)
        result["diff"] = {"before": before, "after": "".join(f"module {name}\n" for name in to_load) + after}
    return result


def main() -> t.NoReturn:
    module = AnsibleModule(
        argument_spec={
            "modules": {"type": "list", "elements": "str", "default": []},
            "values": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    try:
        result = run(module)
    except logic.KernelSettingsError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error.filename}: {error.strerror}")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
