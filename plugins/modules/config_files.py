#!/usr/bin/python
# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: config_files
short_description: Bring many files, links and directories into their wanted state in one task
version_added: "0.1.0"
author: goldsmith.images contributors (@goldsmith-images)
description:
  - Writes, links and removes a list of files. In an emulated machine every task costs seconds, so ten configuration
    files in one task instead of ten tasks is the difference between a few seconds and a minute.
  - All new contents are checked with their O(files[].validate) commands before the first file is touched, and every
    file is then replaced atomically.
  - Content is rendered on the controller, for example with the lookup P(ansible.builtin.template#lookup).
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
  files:
    description:
      - The paths and what they should be. They are handled in the order of the list; a path may be named once.
    type: list
    elements: dict
    required: true
    suboptions:
      path:
        description: Absolute path.
        type: path
        required: true
      state:
        description:
          - V(present) writes O(files[].content) to a regular file; a symbolic link in its place is replaced.
          - V(link) makes a symbolic link to O(files[].src); the target need not exist.
          - V(directory) makes an (empty) directory with O(files[].directory_mode).
          - V(absent) removes a file, a link or an empty directory. A directory that is not empty is an error.
        type: str
        choices: [present, absent, link, directory]
        default: present
      content:
        description: The whole content. Required for V(present).
        type: str
      src:
        description: Target of the link, relative or absolute. Required for V(link).
        type: str
      mode:
        description: Mode of the file as a quoted octal number.
        type: str
        default: "0644"
      directory_mode:
        description: Mode of parents that have to be made, and of V(directory) itself.
        type: str
        default: "0755"
      owner:
        description: Name or number of the owner, also of parents that are made.
        type: str
        default: root
      group:
        description: Name or number of the group, also of parents that are made.
        type: str
        default: root
      validate:
        description:
          - Command that checks the new content before anything is replaced; V(%s) stands for the file to check.
          - In check mode a command that is not installed (yet) is left out.
        type: str
      force:
        description:
          - With V(false) a path that exists, as whatever it is, is left as it is. For paths that others may
            take over later. Not used with V(absent).
        type: bool
        default: true
"""

EXAMPLES = r"""
---
- name: Write the kernel settings and take the old file away
  goldsmith.images.config_files:
    files:
      - path: /etc/modules-load.d/kubernetes.conf
        content: |
          overlay
          br_netfilter
      - path: /etc/sudoers.d/operators
        content: "{{ lookup('ansible.builtin.template', 'sudoers.j2') }}"
        mode: "0440"
        validate: visudo -cf %s
      - path: /opt/cni/bin/loopback
        state: link
        src: /usr/lib/cni/loopback
        force: false
      - path: /etc/sysctl.d/90-old.conf
        state: absent
"""

RETURN = r"""
changed_paths:
  description: The paths that were changed, or would be in check mode, in the order of O(files).
  returned: always
  type: list
  elements: str
  sample: [/etc/modules-load.d/kubernetes.conf]
"""

import os
import tempfile
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.goldsmith.images.plugins.module_utils import _config_files as logic


def argument_spec() -> dict[str, t.Any]:
    return {
        "files": {
            "type": "list",
            "elements": "dict",
            "required": True,
            "options": {
                "path": {"type": "path", "required": True},
                "state": {"type": "str", "choices": ["present", "absent", "link", "directory"], "default": "present"},
                "content": {"type": "str"},
                "src": {"type": "str"},
                "mode": {"type": "str", "default": "0644"},
                "directory_mode": {"type": "str", "default": "0755"},
                "owner": {"type": "str", "default": "root"},
                "group": {"type": "str", "default": "root"},
                "validate": {"type": "str"},
                "force": {"type": "bool", "default": True},
            },
        },
    }


def stage(module: AnsibleModule, step: logic.Step) -> str:
    """Write the new content to a temporary file and let the entry's command check it."""
    handle, path = tempfile.mkstemp(prefix="config_files.", dir=module.tmpdir)
    module.add_cleanup_file(path)
    with os.fdopen(handle, "wb") as stream:
        stream.write(step.wish.content or b"")
    if step.wish.validate:
        command = logic.validate_command(step.wish.validate, path)
        if module.check_mode and module.get_bin_path(command[0]) is None:
            return path
        code, out, err = module.run_command(command)
        if code != 0:
            raise logic.ConfigFilesError(
                f"{step.wish.path}: the new content was refused by {step.wish.validate!r} (exit {code}): "
                f"{(err or out).strip()}"
            )
    return path


def run(module: AnsibleModule) -> dict[str, t.Any]:
    wishes = logic.make_wishes(module.params["files"])
    steps = [logic.decide(wish, logic.look(wish.path)) for wish in wishes]
    staged = {step.wish.path: stage(module, step) for step in steps if step.replace and step.wish.state == "present"}
    if not module.check_mode:
        # A new file is open to nobody else until it has its own mode.
        before = os.umask(0o077)
        try:
            for step in steps:
                if step.changed:
                    logic.apply(
                        step,
                        staged.get(step.wish.path),
                        lambda src, dest: module.atomic_move(src, dest, keep_dest_attrs=False),
                    )
        finally:
            os.umask(before)
    changed_paths = [step.wish.path for step in steps if step.changed]
    result: dict[str, t.Any] = {"changed": bool(changed_paths), "changed_paths": changed_paths}
    if module._diff:
        result["diff"] = [entry for step in steps for entry in logic.diff_of(step)]
    return result


def main() -> t.NoReturn:
    module = AnsibleModule(argument_spec=argument_spec(), supports_check_mode=True)
    try:
        result = run(module)
    except logic.ConfigFilesError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error.filename}: {error.strerror}")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
