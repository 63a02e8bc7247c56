# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: image_summary
type: notification
short_description: Ends the output of a build with what came of it
version_added: 0.1.0
author: goldsmith.images contributors (@goldsmith-images)
description:
  - Repeats the C(summary) of M(goldsmith.images.image_release) and M(goldsmith.images.ami_release) below the play
    recap, where a user looks first.
  - Needs to be enabled with C(callbacks_enabled=goldsmith.images.image_summary).
"""

import typing as t

from ansible.plugins.callback import CallbackBase


class CallbackModule(CallbackBase):
    """Keeps the summaries that tasks returned and shows them at the end."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "goldsmith.images.image_summary"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        self._lines: list[str] = []

    def v2_runner_on_ok(self, result: t.Any) -> None:
        """Keep the summary of a task that has one."""
        if result.task.action in ("goldsmith.images.ami_release", "goldsmith.images.image_release"):
            self._lines += result.result.get("summary", [])

    def v2_playbook_on_stats(self, stats: t.Any) -> None:
        """Show what was kept."""
        if self._lines:
            self._display.display("\n".join(["", *self._lines]))
