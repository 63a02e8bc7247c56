#!/usr/bin/python
# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: image_lock
short_description: Let one play at a time work on an image
version_added: 0.1.0
author: goldsmith.images contributors (@goldsmith-images)
description:
  - Takes a lock in the name of the play that runs this module. It ends with that play, however the play ends.
  - A second play is refused with the process that holds the lock and since when.
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
    platforms: linux
options:
  path:
    description: The lock file. It stays in place when the lock is given up.
    type: path
    required: true
  state:
    description: Whether the play holds the lock.
    type: str
    choices: [present, absent]
    default: present
"""

EXAMPLES = r"""
- name: Be the only one that builds this image
  goldsmith.images.image_lock:
    path: /var/lib/images/cloud_base.lock
"""

RETURN = r"""
owner:
  description: The process that stands for the play.
  returned: always
  type: dict
  sample: {"pid": 4711, "start_time": 123456, "command": "ansible-playbook build.yml"}
"""

import datetime
from dataclasses import asdict
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.goldsmith.images.plugins.module_utils._owner import (
    LockError,
    acquire_lock,
    find_owner,
    release_lock,
)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
        supports_check_mode=True,
    )
    path, owner = Path(module.params["path"]), find_owner()
    if module.check_mode:
        module.exit_json(changed=False, owner=asdict(owner))
    try:
        if module.params["state"] == "present":
            acquire_lock(path, owner, since=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"))
        else:
            release_lock(path, owner)
    except LockError as exc:
        module.fail_json(msg=f"Somebody else is at work here: {exc}. Wait for it, or end it.")
    except OSError as exc:
        module.fail_json(msg=f"Cannot use the lock file {path}: {exc}")
    # A lock is no change of the machine that a user would want to see.
    module.exit_json(changed=False, owner=asdict(owner))


if __name__ == "__main__":
    main()
