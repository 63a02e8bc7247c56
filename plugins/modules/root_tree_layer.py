#!/usr/bin/python
# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: root_tree_layer
short_description: Keep what has changed in a root tree since the last look
version_added: 0.1.0
author: goldsmith.images contributors (@goldsmith-images)
description:
  - Finds what has changed in a root tree and keeps it in a content-addressed cache, so that a later build with the same
    beginning starts from there. The playbook C(provision.yml) calls it after each role when it works on a tree.
  - Changes are found by inode and change time; what is mounted in the tree is not looked at.
  - It runs in Ansible itself, on the controller, where the tree of a build is.
requirements:
  - Python 3.11 or later
  - tar and zstd
extends_documentation_fragment:
  - goldsmith.images.attributes
attributes:
  check_mode:
    support: none
  diff_mode:
    support: none
  idempotent:
    support: full
    details:
      - What is in the cache already is not made again.
  platform:
    platforms: linux
options:
  path:
    description: Folder of the root tree.
    type: path
    required: true
  state_path:
    description: File with the state of the tree at the last look. It is replaced by the state now.
    type: path
    required: true
  key:
    description: What the layer is called, the digest (sha256) of all that decides about it.
    type: str
    required: true
  title:
    description: What the layer holds, for the list of the cache.
    type: str
    required: true
  cache_dir:
    description: Folder of the cache.
    type: path
    required: true
  cache_max_size:
    description: Bytes that the cache may hold; what was not used for longest goes first.
    type: int
    required: true
  log_path:
    description: File that gets the output of the commands.
    type: path
    required: true
"""

EXAMPLES = r"""
- name: Keep the tree as the role has left it
  goldsmith.images.root_tree_layer:
    path: /var/tmp/build/tree
    state_path: /var/tmp/build/state.json
    key: 9b74c9897bac770ffc029102a200c5de9b74c9897bac770ffc029102a200c5de
    title: after the role hardening
    cache_dir: /var/cache/goldsmith-images/trees
    cache_max_size: 10737418240
    log_path: /var/tmp/build/tree.log
"""

RETURN = r"""
entries:
  description: How many files, folders and links are new, changed or gone.
  returned: success
  type: int
  sample: 12
"""
