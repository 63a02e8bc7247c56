#!/usr/bin/python
# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: kubernetes_preflight
short_description: Look at a machine or a root tree as kubeadm's preflight does, without kubeadm
version_added: "0.1.0"
author: goldsmith.images contributors (@goldsmith-images)
description:
  - Answers everything that C(kubeadm init) and C(kubeadm join) ask of a machine before they touch it, by kubeadm's
    names, so that C(--ignore-preflight-errors) takes them. kubeadm is silent about what is right; here it is said as
    well what passed, and what could not be looked at.
  - Two checks are not kubeadm's. V(ContainerdConfig) is an error for a configuration of a version that the daemon does
    not read, for a CRI that is switched off and for a runtime without the systemd cgroup driver. V(CgroupVersion) is an
    error for cgroup v1 with Kubernetes 1.35 and later.
  - Of a system that is not booted (O(offline), or another O(root)) the files are judged. What needs the running system
    is V(skipped), never V(passed).
  - An external etcd is not asked, and images are not pulled.
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
  root:
    description: The folder that holds the system. Another one than V(/) implies O(offline).
    type: path
    default: /
  offline:
    description:
      - The system is not booted; the running kernel is not its own. In roles pass C(ansible_facts['is_chroot']).
    type: bool
    default: false
  commands:
    description: What the machine has to be ready for.
    type: list
    elements: str
    choices: [init, join]
    default: [init, join]
  only:
    description:
      - Only these checks. Of the checks with a path or a program in their name, what stands before the dash
        (V(FileExisting), V(FileAvailable), V(FileContent), V(DirAvailable)).
    type: list
    elements: str
    default: []
  ignore:
    description: Checks whose errors become warnings, in any case of letters, or V(all), as for kubeadm.
    type: list
    elements: str
    default: []
  fail:
    description: Fail if a check is an error. Otherwise the module only reports.
    type: bool
    default: false
  kubernetes_version:
    description: The version that is to run, such as V(1.36). Left out, it is that of the installed kubeadm or kubelet.
    type: str
  containerd_version:
    description: The version of containerd, where it is known already. Left out, it is found out.
    type: str
  cri_socket:
    description: The runtime's socket.
    type: path
    default: /run/containerd/containerd.sock
  advertise_address:
    description: The address of the API server. Decides, with O(subnets), whether IPv4 or IPv6 forwarding is looked at.
    type: str
    default: ""
  bind_port:
    description: The port of the API server.
    type: int
    default: 6443
  subnets:
    description: Networks of services and pods. They must be reached without a proxy.
    type: list
    elements: str
    default: [10.96.0.0/12]
  node_name:
    description: The name of the node. Left out, it is the machine's.
    type: str
    default: ""
"""

EXAMPLES = r"""
---
- name: Look whether this machine can become a node
  goldsmith.images.kubernetes_preflight:
    kubernetes_version: "1.36"
  register: preflight

- name: Show what is in the way
  ansible.builtin.debug:
    msg: "{{ preflight.checks | selectattr('level', 'in', ['warning', 'error']) }}"

- name: Insist on a worker node of the tree of an image, whatever the size of the build machine
  goldsmith.images.kubernetes_preflight:
    root: /var/lib/machines/node
    commands: [join]
    ignore: [KubeletVersion]
    fail: true
"""

RETURN = r"""
ready:
  description: No check is an error.
  returned: always
  type: bool
  sample: false
checks:
  description: All answers, in kubeadm's order.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: The check's name.
      type: str
      returned: always
      sample: FileExisting-socat
    level:
      description: V(passed), V(warning), V(error), or V(skipped) for what cannot be looked at here.
      type: str
      returned: always
      sample: warning
    message:
      description: What was found.
      type: str
      returned: always
      sample: socat not found in system path
errors:
  description: Names of the checks that are errors.
  returned: always
  type: list
  elements: str
  sample: [KubeletVersion]
kubernetes_version:
  description: The version that was compared with.
  returned: always, empty if it is not known
  type: str
  sample: "1.36"
kubeadm_version:
  description: The version of the kubeadm that is installed.
  returned: always, empty without kubeadm
  type: str
  sample: 1.36.2
containerd_version:
  description: containerd's version.
  returned: always, empty without containerd
  type: str
  sample: 2.2.1
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.goldsmith.images.plugins.module_utils import _kubernetes_preflight as logic
from ansible_collections.goldsmith.images.plugins.module_utils._containerd import parse_version


def version(module: AnsibleModule, name: str) -> tuple[int, ...] | None:
    text = module.params[name]
    if not text:
        return None
    parsed = parse_version(text)
    if parsed is None:
        module.fail_json(msg=f"{name}: {text!r} is not a version such as 1.36 or v1.36.2")
    return parsed


def main() -> t.NoReturn:
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "default": "/"},
            "offline": {"type": "bool", "default": False},
            "commands": {
                "type": "list",
                "elements": "str",
                "choices": [logic.INIT, logic.JOIN],
                "default": [logic.INIT, logic.JOIN],
            },
            "only": {"type": "list", "elements": "str", "default": []},
            "ignore": {"type": "list", "elements": "str", "default": []},
            "fail": {"type": "bool", "default": False},
            "kubernetes_version": {"type": "str"},
            "containerd_version": {"type": "str"},
            "cri_socket": {"type": "path", "default": "/run/containerd/containerd.sock"},
            "advertise_address": {"type": "str", "default": ""},
            "bind_port": {"type": "int", "default": 6443},
            "subnets": {"type": "list", "elements": "str", "default": ["10.96.0.0/12"]},
            "node_name": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    wanted = module.params
    root = wanted["root"].rstrip("/") or "/"
    question = logic.Question(
        root=root,
        offline=wanted["offline"] or root != "/",
        commands=tuple(wanted["commands"]),
        kubernetes_version=version(module, "kubernetes_version"),
        containerd_version=version(module, "containerd_version"),
        cri_socket=wanted["cri_socket"],
        bind_port=wanted["bind_port"],
        advertise_address=wanted["advertise_address"],
        subnets=tuple(wanted["subnets"]),
        node_name=wanted["node_name"],
    )
    try:
        logic.validate(question)
        preflight = logic.Preflight(question, module.run_command)
        checks = logic.forgive(preflight.answers(wanted["only"]), wanted["ignore"])
    except logic.PreflightError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error.filename}: {error.strerror}")
    errors = [check for check in checks if check.level == logic.ERROR]
    result = {
        "changed": False,
        "ready": not errors,
        "checks": [vars(check) for check in checks],
        "errors": sorted({check.name for check in errors}),
        "kubernetes_version": logic.dotted(preflight.kubernetes or ()),
        "kubeadm_version": logic.dotted(preflight.version_of("kubeadm") or ()),
        "containerd_version": logic.dotted(preflight.containerd() or ()),
    }
    for check in checks:
        if check.level == logic.WARNING:
            module.warn(f"{check.name}: {check.message}")
    if errors and wanted["fail"]:
        reasons = "\n".join(f"[ERROR {check.name}]: {check.message}" for check in errors)
        module.fail_json(
            msg=f"This system is not ready for Kubernetes. Put it right, or name the check in 'ignore':\n{reasons}",
            **result,
        )
    module.exit_json(**result)


if __name__ == "__main__":
    main()
