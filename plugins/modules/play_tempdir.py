#!/usr/bin/python
# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: play_tempdir
short_description: A private directory that is gone when the play has ended
version_added: 0.1.0
author: goldsmith.images contributors (@goldsmith-images)
description:
  - Makes a directory (mode 0700) for keys and other things that must not outlive the play.
  - Ansible runs no C(always) section after Ctrl-C or SIGKILL, so a small process waits for the end of the play and
    removes the directory, however the play has ended. Over SSH it is the session that counts.
extends_documentation_fragment:
  - goldsmith.images.attributes
attributes:
  check_mode:
    support: none
    details: Is skipped in check mode.
  diff_mode:
    support: none
  idempotent:
    support: none
    details: Each call makes a directory of its own.
  platform:
    platforms: linux
options:
  prefix:
    description: How the name of the directory begins.
    type: str
    default: gi-play-
  files:
    description:
      - Files to put into it (mode 0600), path in the directory and content. Ansible shows the content to nobody.
    type: dict
    default: {}
  link:
    description: A symbolic link to the directory, for those who need a name that stays. Replaced if it exists.
    type: path
"""

EXAMPLES = r"""
- name: Make a place for the key of this play
  goldsmith.images.play_tempdir:
    files:
      token: "{{ lookup('ansible.builtin.env', 'TOKEN') }}"
  register: private
"""

RETURN = r"""
path:
  description: The directory.
  returned: success
  type: str
  sample: /tmp/gi-play-x1y2z3
"""

import os
import select
import shutil
import signal
import tempfile

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.goldsmith.images.plugins.module_utils._owner import Process, find_owner


def remove_after(owner: Process, path: str) -> None:
    """Leave a process behind that removes *path* once *owner* has ended."""
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    # Nothing may return from here, or the module would run twice.
    try:
        os.setsid()
        if os.fork() == 0:
            _wait_and_remove(owner, path)
    finally:
        os._exit(0)


def _wait_and_remove(owner: Process, path: str) -> None:
    # Who waits for the module's output must not wait for this process.
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    os.closerange(3, 1024)
    os.chdir("/")
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    try:
        descriptor: int | None = os.pidfd_open(owner.pid)
    except ProcessLookupError:
        descriptor = None
    if descriptor is not None and owner.alive():
        select.select([descriptor], [], [])
    shutil.rmtree(path, ignore_errors=True)


def write_private(path: str, content: str) -> None:
    """Write a file that nobody else can read, not even for a moment."""
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as handle:
        handle.write(content)


def replace_link(link: str, target: str) -> None:
    """Make a symbolic link; one that exists goes in the same moment."""
    new = f"{link}.{os.path.basename(target)}"
    os.symlink(target, new)
    os.replace(new, link)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "prefix": {"type": "str", "default": "gi-play-"},
            "files": {"type": "dict", "default": {}, "no_log": True},
            "link": {"type": "path"},
        }
    )
    params = module.params
    try:
        path = tempfile.mkdtemp(prefix=params["prefix"])
        remove_after(find_owner(), path)
        for name, content in params["files"].items():
            write_private(os.path.join(path, name), content)
        if params["link"]:
            replace_link(params["link"], path)
    except OSError as exc:
        module.fail_json(msg=f"Cannot make a directory for this play: {exc}")
    module.exit_json(changed=True, path=path)


if __name__ == "__main__":
    main()
