#!/usr/bin/python
# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: kvm_check
short_description: Find out whether KVM works on a machine and whether it is hardware-accelerated
version_added: "0.1.0"
author: goldsmith.images contributors (@goldsmith-images)
description:
  - Opens the KVM device, makes a virtual machine of 2 MiB and lets it count down in a loop, timed.
  - A device node, a CPU flag, the right API version, even a guest that runs to its end do not mean that KVM is fast.
    There are kernels that offer KVM in software, a thousand times slower than hardware and slower than QEMU's own
    emulation (TCG). Only the time of the loop tells. So RV(usable) and RV(accelerated) are different answers.
  - Takes less than 0.2 seconds, changes nothing, needs no privileges except access to the device, and uses no network.
    The probe runs in a child process with a deadline, so it cannot hang.
extends_documentation_fragment:
  - goldsmith.images.attributes
attributes:
  check_mode:
    support: full
    details: The module never changes anything.
  diff_mode:
    support: N/A
    details: The module never changes anything.
  idempotent:
    support: full
  platform:
    platforms: linux
options:
  device:
    description: The KVM device.
    type: path
    default: /dev/kvm
  level:
    description:
      - What O(fail=true) demands.
    type: str
    choices:
      usable: A guest ran.
      accelerated: A guest ran at the speed of hardware.
    default: accelerated
  fail:
    description: Fail if the machine does not reach O(level). Otherwise the module only reports.
    type: bool
    default: false
  max_ns_per_iteration:
    description:
      - Up to this many nanoseconds for one turn of the loop count as accelerated.
      - Hardware takes about 1, software-only KVM more than 1000.
    type: float
    default: 50.0
  iterations:
    description: Length of the shortest timed loop; the longest on fast hardware is a thousand times as long.
    type: int
    default: 1000
  timeout:
    description: Seconds after which a guest that does not come back is given up.
    type: float
    default: 2.0
"""

EXAMPLES = r"""
---
- name: Look whether this machine can run VMs
  goldsmith.images.kvm_check:
  register: kvm

- name: Show the accelerator to use
  ansible.builtin.debug:
    msg: "{{ 'kvm' if kvm.accelerated else 'tcg' }} {{ kvm.hint }}"

- name: Insist on hardware virtualisation
  goldsmith.images.kvm_check:
    level: accelerated
    fail: true
"""

RETURN = r"""
usable:
  description: A guest ran to its end.
  returned: always
  type: bool
  sample: true
accelerated:
  description: The guest ran at the speed of hardware.
  returned: always
  type: bool
  sample: false
reason:
  description:
    - V(ok), or V(emulated) if the guest ran but slowly.
    - "The device: V(no_device), V(eacces) (permission), V(eperm) (container policy), V(enodev) (no driver), V(ebusy)
      (another hypervisor), V(open_failed), V(api_version)."
    - "The guest: V(create_vm_failed), V(run_failed), V(unsupported_architecture)."
  returned: always
  type: str
  sample: emulated
backend:
  description: V(kvm_intel), V(kvm_amd), V(kvm_pvm), V(arm64) or V(unknown).
  returned: always
  type: str
  sample: kvm_pvm
errno:
  description: Name of the system's error in the step that failed; V(ETIMEDOUT) for a guest that did not come back.
  returned: always, null without an error
  type: str
  sample: EACCES
api_version:
  description: The KVM API's version.
  returned: always, null if the device could not be opened
  type: int
  sample: 12
caps:
  description: Some of the capabilities the kernel reports.
  returned: always, empty if the device could not be opened
  type: dict
  sample: {irqchip: 1, max_vcpus: 1024, nested_state: 0, user_memory: 1}
device:
  description: The device node.
  returned: always
  type: dict
  sample: {exists: true, group: kvm, mode: "0660", owner: root, path: /dev/kvm}
cpu_flags:
  description: Which of vmx, svm and hypervisor the CPU shows.
  returned: always
  type: list
  elements: str
  sample: [hypervisor]
hypervisor:
  description: Who runs this machine, if it is a virtual one; V(unknown) if it does not say.
  returned: always, null on a physical machine
  type: str
  sample: Amazon EC2
nested_param:
  description: Whether guests of this machine may themselves use KVM. Says nothing about this machine.
  returned: always, null if the kernel does not say
  type: bool
  sample: true
probe:
  description: How far the probe came (step V(done) is the end), why the guest stopped, and the time of one iteration.
  returned: always
  type: dict
  sample: {exit_reason: hlt, ns_per_iteration: 1131.4, step: done}
kvm_ok_equivalent:
  description: What kvm-ok of the package cpu-checker would have said, for comparison.
  returned: always
  type: dict
  sample: {message: Your CPU does not support KVM extensions, usable: false}
hint:
  description: What to do.
  returned: always, empty if all is well
  type: str
  sample: Join the group kvm (usermod -aG kvm USER, then log in again).
ec2:
  description: The instance type if this is an EC2 instance, from DMI.
  returned: always
  type: dict
  sample: {instance_type: m8i.large}
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.goldsmith.images.plugins.module_utils import _kvm


def main() -> t.NoReturn:
    module = AnsibleModule(
        argument_spec={
            "device": {"type": "path", "default": "/dev/kvm"},
            "level": {"type": "str", "choices": ["usable", "accelerated"], "default": "accelerated"},
            "fail": {"type": "bool", "default": False},
            "max_ns_per_iteration": {"type": "float", "default": 50.0},
            "iterations": {"type": "int", "default": 1000},
            "timeout": {"type": "float", "default": 2.0},
        },
        supports_check_mode=True,
    )
    wanted = module.params
    for name in ("max_ns_per_iteration", "iterations", "timeout"):
        if wanted[name] <= 0:
            module.fail_json(msg=f"{name} must be greater than 0, not {wanted[name]}")
    host = _kvm.gather_host(wanted["device"])
    try:
        seen = _kvm.probe(
            wanted["device"], host.machine, wanted["iterations"], wanted["max_ns_per_iteration"], wanted["timeout"]
        )
    except _kvm.KvmError as exc:
        module.fail_json(msg=str(exc))
    verdict = _kvm.judge(seen, wanted["max_ns_per_iteration"])
    result = _kvm.report(verdict, seen, host)
    if wanted["fail"] and not result[wanted["level"]]:
        module.fail_json(
            msg=f"KVM is not {wanted['level']} here ({verdict.reason}). {result['hint']}", changed=False, **result
        )
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
