#!/usr/bin/python
# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: image_cache
short_description: List and prune what builds keep for the next ones
version_added: 0.1.0
author: goldsmith.images contributors (@goldsmith-images)
description:
  - Lists base disks, root trees and layers of root trees in the cache, and removes those that were not used for longest
    until the rest fits into a size.
  - What a killed build has left is removed too.
  - Every entry can be made again. A build that needs a removed one takes longer.
requirements:
  - Python 3.11 or later
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
    description: Folder of the cache. By default C(goldsmith-images) in C(~/.cache) or E(XDG_CACHE_HOME).
    type: path
  max_size:
    description:
      - How much room each part of the cache may take, such as V(5G), in powers of 1024. Without it, nothing is removed.
    type: str
  unused_for:
    description:
      - Seconds for which an entry must not have been used to be removed. A running build may need a younger one.
    type: int
    default: 14400
"""

EXAMPLES = r"""
- name: List the cache
  goldsmith.images.image_cache:
  register: cache

- name: Make room
  goldsmith.images.image_cache:
    max_size: 5G
"""

RETURN = r"""
entries:
  description: What is in the cache, the entry that was used longest ago first.
  returned: success
  type: list
  elements: dict
  sample:
    - key: 0f3ac1b2d0a24cf0...
      part: trees
      title: tree after the role hardening
      size: 48213
      used: "2026-01-31T10:20:30+00:00"
      path: /root/.cache/goldsmith-images/trees/entries/0f3ac1b2d0a24cf0...
removed:
  description: The keys of the entries that were removed, or would be in check mode.
  returned: success
  type: list
  elements: str
size:
  description: Bytes of all entries that are left.
  returned: success
  type: int
lines:
  description: The list in words, one entry a line.
  returned: success
  type: list
  elements: str
"""

import datetime
import typing as t
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.goldsmith.images.plugins.module_utils._base_disk import default_cache_dir
from ansible_collections.goldsmith.images.plugins.module_utils._cache import Cache, CacheError
from ansible_collections.goldsmith.images.plugins.module_utils._disk import DiskError, parse_size
from ansible_collections.goldsmith.images.plugins.module_utils._root_tree import remove

PARTS = ("base_disks", "trees")


def describe(part: str, cache: Cache) -> list[dict[str, t.Any]]:
    """Return the entries of one part of the cache."""
    return [
        {
            "key": entry.key,
            "part": part,
            "title": entry.data.get("title", ""),
            "size": entry.size,
            "used": datetime.datetime.fromtimestamp(int(entry.path.stat().st_mtime), datetime.timezone.utc).isoformat(),
            "path": str(entry.path),
        }
        for entry in cache.entries()
    ]


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path"},
            "max_size": {"type": "str"},
            "unused_for": {"type": "int", "default": 14400},
        },
        supports_check_mode=True,
    )
    params = module.params
    folder = Path(params["path"] or default_cache_dir()).absolute()
    entries: list[dict[str, t.Any]] = []
    removed: list[str] = []
    try:
        limit = parse_size(params["max_size"]) if params["max_size"] else None
        for part in PARTS:
            if not (folder / part).exists():
                continue
            cache = Cache(folder / part, limit or 0, remove=remove, keep_seconds=params["unused_for"])
            cache.check()
            if limit is not None:
                if not module.check_mode:
                    cache.open()
                removed += cache.evict(dry_run=module.check_mode)
            entries += [entry for entry in describe(part, cache) if entry["key"] not in removed]
    except (CacheError, DiskError, OSError) as error:
        module.fail_json(msg=str(error))
    entries.sort(key=lambda entry: entry["used"])
    size = sum(entry["size"] for entry in entries)
    lines = [f"{item['used']}  {item['size'] / 1e6:8.1f} MB  {item['key'][:16]}  {item['title']}" for item in entries]
    module.exit_json(
        changed=bool(removed),
        entries=entries,
        removed=removed,
        size=size,
        lines=[*lines, f"{len(entries)} entries, {size / 1e6:.1f} MB in {folder}; {len(removed)} removed"],
    )


if __name__ == "__main__":
    main()
