#!/usr/bin/python
# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: image_cleanup
short_description: Enforce the rules of a clean-up contract on a machine that becomes an image
version_added: "0.1.0"
author: goldsmith.images contributors (@goldsmith-images)
description:
  - Removes what must not be in an image, and writes what must be, by a list of rules. The role
    P(goldsmith.images.cleanup#role) has such a list in its file C(contract.yml).
  - Links are never followed and mounted file systems below a path are left alone.
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
  rules:
    description:
      - The rules. Each needs C(id), C(state) (C(absent), C(empty_directory), C(no_files), C(content), C(link) or
        C(no_lines)) and C(paths), a list of globs. The other keys are described at the top of the role's
        C(contract.yml).
    type: list
    elements: dict
    required: true
  choices:
    description: Values for the C(choice) of rules; a rule holds only if each of its choices has the value it names.
    type: dict
    default: {}
  keep_paths:
    description: Globs that no rule touches.
    type: list
    elements: str
    default: []
  skip_rules:
    description: Identifiers of rules that are not enforced. One that no rule has is an error.
    type: list
    elements: str
    default: []
  live:
    description:
      - The machine is booted and is to stay reachable. What its services and this connection are using (C(live_keep) of
        the rules) stays, and what a running machine writes again at once (C(volatile)) does not count as a change.
    type: bool
    default: false
  final:
    description: Whether the rules marked C(final) are enforced, which lock out whoever is connected.
    type: bool
    default: true
  build_user:
    description:
      - The throw-away user of the build, for the rules that name it. It is removed, with its group and home, if
        O(final).
    type: str
    default: ""
"""

EXAMPLES = r"""
---
- name: Remove the package lists and empty the machine-id
  goldsmith.images.image_cleanup:
    rules:
      - id: apt_lists
        state: no_files
        paths: [/var/lib/apt/lists]
      - id: machine_id
        state: content
        paths: [/etc/machine-id]
        content: ""
        mode: "0444"
    live: "{{ not ansible_facts['is_chroot'] }}"
"""

RETURN = r"""
rules:
  description: The rules that had something to do, with the number of paths and whether it counts as a change.
  returned: success
  type: list
  elements: dict
  contains:
    id:
      description: Identifier of the rule.
      type: str
      returned: success
    paths:
      description: Number of paths that were removed or written, or would be in check mode.
      type: int
      returned: success
    counted:
      description: Whether this makes the task changed.
      type: bool
      returned: success
  sample: [{id: apt_lists, paths: 12, counted: true}]
paths:
  description: The first 200 paths that were removed or written, or would be in check mode.
  returned: success
  type: list
  elements: str
  sample: [/etc/machine-id]
bytes_freed:
  description: Bytes on disk that were given back, or would be in check mode.
  returned: success
  type: int
  sample: 52428800
user_removed:
  description: Whether O(build_user) existed and was removed, or would be in check mode.
  returned: success
  type: bool
  sample: false
"""

import os
import sys
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.goldsmith.images.plugins.module_utils import _image_cleanup as logic

PATHS_RETURNED = 200


def argument_spec() -> dict[str, t.Any]:
    return {
        "rules": {"type": "list", "elements": "dict", "required": True},
        "choices": {"type": "dict", "default": {}},
        "keep_paths": {"type": "list", "elements": "str", "default": []},
        "skip_rules": {"type": "list", "elements": "str", "default": []},
        "live": {"type": "bool", "default": False},
        "final": {"type": "bool", "default": True},
        "build_user": {"type": "str", "default": ""},
    }


def own_paths() -> tuple[str, ...]:
    """Where this module's own code lies: it may be under a path that is cleaned, and parts of it are loaded late.

    Not module.tmpdir: asking for it makes it, in a folder that the contract removes.
    """
    candidates = [os.path.dirname(os.path.abspath(sys.argv[0]))]
    candidates += [path if os.path.isdir(path) else os.path.dirname(path) for path in sys.path if "ansible" in path]
    return tuple(path for path in dict.fromkeys(map(os.path.realpath, candidates)) if path.count("/") > 1)


def remove_user(module: AnsibleModule, name: str) -> bool:
    """Remove the user even while it is logged in; this process's sudo has done its work already."""
    if not name or not logic.user_exists(name):
        return False
    if not module.check_mode:
        userdel = module.get_bin_path("userdel", required=True)
        code, out, err = module.run_command([userdel, "--force", "--remove", name])
        if logic.user_exists(name):
            raise logic.ImageCleanupError(f"userdel {name} (exit {code}): {(err or out).strip()}")
    return True


def run(module: AnsibleModule) -> dict[str, t.Any]:
    params = module.params
    rules = [logic.make_rule(data) for data in params["rules"]]
    unknown = sorted(set(params["skip_rules"]) - {rule.id for rule in rules})
    if unknown:
        raise logic.ImageCleanupError(f"skip_rules: no such rule: {', '.join(unknown)}")
    context = logic.Context(
        choices={key: str(value) for key, value in params["choices"].items()},
        keep_paths=tuple(params["keep_paths"]),
        in_use=own_paths(),
        skip_rules=tuple(params["skip_rules"]),
        live=params["live"],
        final=params["final"],
        build_user=params["build_user"],
    )
    user_removed = remove_user(module, params["build_user"]) if params["final"] else False
    counts: list[dict[str, t.Any]] = []
    paths: list[str] = []
    freed = 0
    for rule in rules:
        if not logic.holds(rule, context):
            continue
        actions = logic.decide(rule, context)
        if not actions:
            continue
        for action in actions:
            if not module.check_mode:
                freed += logic.apply(action)
            elif action.verb == "remove":
                freed += logic.size_of(action.path)
        counts.append({"id": rule.id, "paths": len(actions), "counted": not (params["live"] and rule.volatile)})
        paths += [action.path for action in actions]
    return {
        "changed": user_removed or any(entry["counted"] for entry in counts),
        "rules": counts,
        "paths": paths[:PATHS_RETURNED],
        "bytes_freed": freed,
        "user_removed": user_removed,
    }


def main() -> t.NoReturn:
    module = AnsibleModule(argument_spec=argument_spec(), supports_check_mode=True)
    try:
        result = run(module)
    except logic.ImageCleanupError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error.filename}: {error.strerror}")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
