# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.goldsmith.images.plugins.filter.decimal_bytes import decimal_bytes


@pytest.mark.parametrize(("size", "expected"), [("500MB", 500_000_000), ("2GB", 2_000_000_000), ("0MB", 0)])
def test_counts_in_powers_of_1000(size: str, expected: int):
    assert decimal_bytes(size) == expected


@pytest.mark.parametrize("size", ["500", "500MiB", "1.5GB", "-1MB", "", " 5MB", None])
def test_anything_else_is_refused(size: object):
    with pytest.raises(AnsibleFilterError, match="whole number followed by MB or GB"):
        decimal_bytes(size)
