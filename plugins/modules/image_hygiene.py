#!/usr/bin/python
# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: image_hygiene
short_description: Check that nothing of the build is left in an image
version_added: "0.1.0"
author: goldsmith.images contributors (@goldsmith-images)
description:
  - Reads a finished disk image as it lies there, and returns everything that breaks the contract of the clean-up, with
    path and rule. Nothing is booted, mounted or written, and no privileges are needed.
  - It can also look at a folder that is a machine's root, and at the running machine itself (O(path=/)).
  - It shares no code with the role P(goldsmith.images.cleanup#role), only the contract, the role's file
    C(contract.yml). Where the role leaves alone what lies behind a link, this module follows the link, within the
    image, and says what it finds.
requirements:
  - For disk images C(dissect.hypervisor), C(dissect.volume), C(dissect.extfs), C(dissect.fat) and C(backports.zstd),
    Python packages, on the host that runs the module; Python 3.10 or later. Folders need the standard library alone.
extends_documentation_fragment:
  - goldsmith.images.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
  platform:
    platforms: posix
options:
  path:
    description:
      - The disk image, qcow2 (compressed with zlib or zstd, or not) or raw, or a block device. It must hold an ext4
        file system with the root directory, alone or in a partition table. Other ext4 and FAT file systems are read
        where its C(/etc/fstab) mounts them.
      - Or a folder that is a machine's root; V(/) is the running machine.
    type: path
    required: true
  contract:
    description: The contract, a file on the controller. By default that of the role P(goldsmith.images.cleanup#role).
    type: path
  rules:
    description: The rules themselves, in place of O(contract).
    type: list
    elements: dict
  extra_rules:
    description: More rules, in the form of the contract.
    type: list
    elements: dict
    default: []
  choices:
    description:
      - What the image was made with where the contract leaves a choice, C(machine_id) (V(empty), V(uninitialized) or
        V(absent)) and C(ssh_host_keys) (V(remove) or V(keep)). Those left out are the first ones.
    type: dict
    default: {}
  keep_paths:
    description: Globs of paths that may stay although a rule names them.
    type: list
    elements: str
    default: []
  skip_rules:
    description: Identifiers of rules that are not checked. One that no rule has is an error.
    type: list
    elements: str
    default: []
  build_user:
    description: The throw-away user of the build, for the rules that name it.
    type: str
    default: ""
  secrets:
    description:
      - Strings that must not be found anywhere, for example the passwords of the build. A disk is searched from its
        first to its last byte, what deleted files have left included; of a folder, all files.
    type: list
    elements: str
    default: []
  live:
    description:
      - The machine runs. What its services and this connection are using (C(live_keep) of the rules) may be there, and
        what a running machine writes again at once (C(volatile)) is returned apart.
      - By default true for O(path=/), false for everything else.
    type: bool
  final:
    description: Whether the rules marked C(final) hold, which lock out whoever is connected.
    type: bool
    default: true
  fail:
    description: Whether a violation makes the task fail.
    type: bool
    default: false
"""

EXAMPLES = r"""
---
- name: Refuse an image in which something of the build is left
  goldsmith.images.image_hygiene:
    path: /srv/images/node.qcow2
    build_user: packer
    secrets: ["{{ build_token }}"]
    fail: true

- name: Look at this machine, which was cleaned and runs on
  goldsmith.images.image_hygiene:
    path: /
    final: false
  register: hygiene

- name: Show what is left
  ansible.builtin.debug:
    msg: "{{ item.path }}: {{ item.problem }} ({{ item.rule }})"
  loop: "{{ hygiene.violations }}"
"""

RETURN = r"""
passed:
  description: Whether there is no violation.
  returned: always, unless the image cannot be read
  type: bool
  sample: false
violations:
  description: Everything that breaks a rule.
  returned: always, unless the image cannot be read
  type: list
  elements: dict
  contains: &violation
    rule:
      description: Identifier of the rule; V(secrets) for a string of O(secrets).
      type: str
      returned: always
    path:
      description: Path in the image; for one of O(secrets) on a disk, the place on the disk.
      type: str
      returned: always
    problem:
      description: What is wrong with it. Never holds what the file says.
      type: str
      returned: always
  sample: [{rule: histories, path: /root/.bash_history, problem: must not be there}]
rewritten:
  description: What a running machine has written again since it was cleaned (C(volatile) rules). No violations.
  returned: always, unless the image cannot be read
  type: list
  elements: dict
  contains: *violation
  sample: []
rules:
  description: Identifiers of the rules that were checked; the others do not hold for this image.
  returned: always, unless the image cannot be read
  type: list
  elements: str
  sample: [machine_id_empty, ssh_host_keys]
read:
  description: What was read.
  returned: always, unless the image cannot be read
  type: dict
  contains:
    format:
      description: V(qcow2), V(raw) or V(folder).
      type: str
      returned: always
    mounts:
      description: File systems of the disk by the place where they are mounted.
      type: dict
      returned: always
    unread:
      description: File systems and partitions that could not be looked into.
      type: list
      elements: str
      returned: always
  sample:
    format: qcow2
    mounts: {"/": partition 3 (ext4), "/boot/efi": partition 2 (vfat)}
    unread: []
"""

import os
import typing as t

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible_collections.goldsmith.images.plugins.module_utils import _image_hygiene as logic
from ansible_collections.goldsmith.images.plugins.module_utils import _image_tree

SHOWN = 20


def argument_spec() -> dict[str, t.Any]:
    return {
        "path": {"type": "path", "required": True},
        "contract": {"type": "path"},
        "rules": {"type": "list", "elements": "dict"},
        "extra_rules": {"type": "list", "elements": "dict", "default": []},
        "choices": {"type": "dict", "default": {}},
        "keep_paths": {"type": "list", "elements": "str", "default": []},
        "skip_rules": {"type": "list", "elements": "str", "default": []},
        "build_user": {"type": "str", "default": ""},
        "secrets": {"type": "list", "elements": "str", "default": [], "no_log": True},
        "live": {"type": "bool"},
        "final": {"type": "bool", "default": True},
        "fail": {"type": "bool", "default": False},
    }


def run(params: dict[str, t.Any]) -> dict[str, t.Any]:
    path = params["path"]
    rules = (params["rules"] or []) + params["extra_rules"]
    if not rules:
        raise logic.ImageHygieneError("rules: there are none, so nothing could be found")
    if not all(params["secrets"]):
        raise logic.ImageHygieneError("secrets: an empty string is everywhere")
    live = path == "/" if params["live"] is None else params["live"]
    terms = logic.Terms(
        choices=params["choices"],
        keep_paths=tuple(params["keep_paths"]),
        skip_rules=tuple(params["skip_rules"]),
        build_user=params["build_user"],
        live=live,
        final=params["final"],
    )
    tree = _image_tree.open_tree(path)
    checked, found = logic.check(tree, rules, terms)
    volatile = {rule["id"] for rule in rules if rule.get("volatile")} if live else set()
    violations = [one for one in found if one.rule not in volatile] + logic.search_secrets(tree, params["secrets"])
    return {
        "changed": False,
        "passed": not violations,
        "violations": [one.as_dict() for one in violations],
        "rewritten": [one.as_dict() for one in found if one.rule in volatile],
        "rules": checked,
        "read": logic.describe(tree),
    }


def complaint(path: str, violations: t.Sequence[dict[str, str]]) -> str:
    lines = [f"{one['path']}: {one['problem']} ({one['rule']})" for one in violations[:SHOWN]]
    more = [f"and {len(violations) - SHOWN} more, see 'violations'"] if len(violations) > SHOWN else []
    return "\n".join([f"{path}: {len(violations)} violations of the contract of the clean-up", *lines, *more])


def main() -> t.NoReturn:
    module = AnsibleModule(
        argument_spec=argument_spec(),
        mutually_exclusive=[("contract", "rules")],
        supports_check_mode=True,
    )
    path = module.params["path"]
    if not os.path.isdir(path) and not _image_tree.HAS_DISSECT:
        module.fail_json(msg=missing_required_lib(_image_tree.DISSECT), exception=_image_tree.DISSECT_IMPORT_ERROR)
    try:
        result = run(module.params)
    except logic.ImageHygieneError as error:
        module.fail_json(msg=str(error))
    except _image_tree.TreeError as error:
        module.fail_json(msg=str(error) if path in str(error) else f"{path}: {error}")
    except OSError as error:
        module.fail_json(msg=f"{error.filename or path}: {error.strerror}")
    if module.params["fail"] and not result["passed"]:
        module.fail_json(msg=complaint(path, result["violations"]), **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
