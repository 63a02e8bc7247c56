# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The finished disk keeps the contract of the clean-up: one test a rule.

What the module image_hygiene has found is in the file that GOLDSMITH_HYGIENE names.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

FOUND: dict[str, Any] = json.loads(Path(os.environ["GOLDSMITH_HYGIENE"]).read_text(encoding="utf-8"))
RULES = sorted({*FOUND["rules"], *(violation["rule"] for violation in FOUND["violations"])})


@pytest.mark.parametrize("rule", RULES)
def test_disk_keeps_the_rule(rule: str) -> None:
    violations = [f"{one['path']}: {one['problem']}" for one in FOUND["violations"] if one["rule"] == rule]
    assert not violations, "\n".join(violations)


def test_all_of_the_disk_was_read() -> None:
    assert FOUND["read"]["unread"] == []
