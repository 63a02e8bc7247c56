# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Keep a layer of a root tree; not as a module, whose start takes longer than the work, after every role."""

from __future__ import annotations

import json
import typing as t
from pathlib import Path

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.goldsmith.images.plugins.module_utils import _tree_layers
from ansible_collections.goldsmith.images.plugins.module_utils._cache import Cache, CacheError
from ansible_collections.goldsmith.images.plugins.module_utils._command import CommandError, Interrupted, Runner
from ansible_collections.goldsmith.images.plugins.module_utils._root_tree import remove

TIMEOUT = 600

ARGUMENTS: dict[str, t.Any] = {
    "path": {"type": "path", "required": True},
    "state_path": {"type": "path", "required": True},
    "key": {"type": "str", "required": True, "no_log": False},
    "title": {"type": "str", "required": True},
    "cache_dir": {"type": "path", "required": True},
    "cache_max_size": {"type": "int", "required": True},
    "log_path": {"type": "path", "required": True},
}


class ActionModule(ActionBase):
    """Compare the tree with its last state, and put what has changed into the cache."""

    TRANSFERS_FILES = False
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        """Return how much has changed."""
        super().run(tmp, task_vars)
        _validated, params = self.validate_argument_spec(ARGUMENTS)
        state = Path(params["state_path"])
        cache = Cache(Path(params["cache_dir"]), params["cache_max_size"], remove=remove)
        try:
            before = json.loads(state.read_text(encoding="utf-8"))
            cache.open()
            tree = Path(params["path"])
            runner = Runner(Path(params["log_path"]))
            after = _tree_layers.save(runner, cache, params["key"], params["title"], tree, before, TIMEOUT)
            state.write_text(json.dumps(after), encoding="utf-8")
        except (CacheError, CommandError, Interrupted, OSError, ValueError) as error:
            raise AnsibleActionFail(f"The layer cannot be kept: {error}") from error
        changed, removed = _tree_layers.differences(before, after)
        return {"changed": False, "entries": len(changed) + len(removed)}
