# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: decimal_bytes
short_description: Turn a size such as 500MB into bytes
version_added: 0.1.0
author: goldsmith.images contributors (@goldsmith-images)
description:
  - Counts in powers of 1000, as sizes of downloads are given.
  - P(ansible.builtin.human_to_bytes#filter) counts in powers of 1024.
options:
  _input:
    description: A whole number followed by C(MB) or C(GB).
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Compare with a budget
  ansible.builtin.assert:
    that: size <= '500MB' | goldsmith.images.decimal_bytes
"""

RETURN = r"""
_value:
  description: The size in bytes.
  type: int
"""

import re
import typing as t

from ansible.errors import AnsibleFilterError

UNITS = {"MB": 10**6, "GB": 10**9}


def decimal_bytes(size: str) -> int:
    """Return *size*, such as 500MB, in bytes."""
    match = re.fullmatch(r"([0-9]+)(MB|GB)", str(size))
    if not match:
        raise AnsibleFilterError(f"decimal_bytes: {size!r} is no whole number followed by MB or GB")
    return int(match[1]) * UNITS[match[2]]


class FilterModule:
    """Offers the filter to Ansible."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Return the filters of this file."""
        return {"decimal_bytes": decimal_bytes}
