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
  - Takes less than 0.2 seconds, changes nothing, needs no privileges except access to the device, and uses no network
    unless O(imds=true). The probe runs in a child process with a deadline, so it cannot hang.
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
      - How far the probe must come with O(fail=true). Each level includes those before it.
    type: str
    choices:
      device: The device could be opened.
      api: It answered with the right API version.
      vm: A virtual machine could be made.
      run: A guest ran to its end, which is RV(usable).
      accelerated: A guest ran at the speed of hardware, which is RV(accelerated).
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
  ec2:
    description:
      - What the caller knows about the EC2 instance that this machine is, for RV(ec2). What is left out is found out
        from DMI, or is not known.
    type: dict
    suboptions:
      instance_type:
        description: The instance's type.
        type: str
      supported_features:
        description:
          - C(ProcessorInfo.SupportedFeatures) of the type, as C(aws ec2 describe-instance-types) returns it. It counts
            more than what this module knows about types.
        type: list
        elements: str
      nested_virtualization:
        description: C(CpuOptions.NestedVirtualization) of the instance, as C(aws ec2 describe-instances) returns it.
        type: str
        choices: [enabled, disabled]
  imds:
    description:
      - Ask the instance metadata service (IMDSv2) for the instance's type, for machines that DMI says nothing about.
        Takes up to 2 seconds where there is none.
    type: bool
    default: false
  imds_endpoint:
    description: Where the metadata service is; over IPv6 V(http://[fd00:ec2::254]).
    type: str
    default: http://169.254.169.254
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

- name: Find out why an EC2 instance has no KVM
  goldsmith.images.kvm_check:
    ec2:
      instance_type: m8i.large
      supported_features: [nested-virtualization]
      nested_virtualization: disabled
  register: kvm
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
  description: Why this machine, if it is an EC2 instance, has no KVM. What is not known is null.
  returned: always
  type: dict
  contains:
    instance_type:
      description: The instance's type.
      type: str
      returned: always
      sample: m8i.large
    source:
      description: Who said so, V(caller) (O(ec2)), V(imds) or V(dmi).
      type: str
      returned: always
      sample: dmi
    nested_capable:
      description: Whether the type can run VMs.
      type: bool
      returned: always
      sample: true
    nested_enabled:
      description: Whether nested virtualisation is switched on for the instance, as the caller said.
      type: bool
      returned: always
      sample: false
    diagnosis:
      description:
        - "V(ok), V(module_missing) (the CPU flag is there, the kernel module is not), V(type_cannot), V(opt_in_missing)
          (the type can, but it is not switched on), V(flag_missing) (switched on, but the CPU flag does not show) or
          V(type_unknown). RV(hint) says what to do."
        - Null on other machines, and when RV(reason) has nothing to do with EC2.
      type: str
      returned: always
      sample: opt_in_missing
    imds_error:
      description: Why the metadata service did not answer.
      type: str
      returned: always
      sample: "http://169.254.169.254: timed out"
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.goldsmith.images.plugins.module_utils import _kvm


def main() -> t.NoReturn:
    module = AnsibleModule(
        argument_spec={
            "device": {"type": "path", "default": "/dev/kvm"},
            "level": {"type": "str", "choices": list(_kvm.LEVELS), "default": "accelerated"},
            "fail": {"type": "bool", "default": False},
            "max_ns_per_iteration": {"type": "float", "default": 50.0},
            "iterations": {"type": "int", "default": 1000},
            "timeout": {"type": "float", "default": 2.0},
            "ec2": {
                "type": "dict",
                "options": {
                    "instance_type": {"type": "str"},
                    "supported_features": {"type": "list", "elements": "str"},
                    "nested_virtualization": {"type": "str", "choices": ["enabled", "disabled"]},
                },
            },
            "imds": {"type": "bool", "default": False},
            "imds_endpoint": {"type": "str", "default": "http://169.254.169.254"},
        },
        supports_check_mode=True,
    )
    wanted = module.params
    for name in ("max_ns_per_iteration", "iterations", "timeout"):
        if wanted[name] <= 0:
            module.fail_json(msg=f"{name} must be greater than 0, not {wanted[name]}")
    endpoint = wanted["imds_endpoint"] if wanted["imds"] else None
    host = _kvm.gather_host(wanted["device"], ec2=wanted["ec2"], imds_endpoint=endpoint)
    try:
        seen = _kvm.probe(
            wanted["device"], host.machine, wanted["iterations"], wanted["max_ns_per_iteration"], wanted["timeout"]
        )
    except _kvm.KvmError as exc:
        module.fail_json(msg=str(exc))
    verdict = _kvm.judge(seen, wanted["max_ns_per_iteration"])
    result = _kvm.report(verdict, seen, host)
    if wanted["fail"] and not _kvm.reaches(wanted["level"], verdict, seen):
        module.fail_json(
            msg=f"KVM does not reach the level {wanted['level']} here ({verdict.reason}). {result['hint']}",
            changed=False,
            **result,
        )
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
