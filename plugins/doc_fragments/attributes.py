# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What each module promises, described once; a module states its own support beside it."""

from __future__ import annotations


class ModuleDocFragment:
    """The fragment C(goldsmith.images.attributes)."""

    DOCUMENTATION = r"""
options: {}
attributes:
  check_mode:
    description: Can run in C(check_mode) and return the changed status prediction without modifying the target.
  diff_mode:
    description: Returns details on what has changed (or possibly needs changing in C(check_mode)), when in diff mode.
  idempotent:
    description: When run twice in a row without outside changes between the runs, the second run changes nothing.
  platform:
    description: The operating systems that the module runs on.
    support: full
"""
