# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whoever looks at the machine's serial line from outside reads the verdict of its boot."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

DEADLINE = 900


def test_the_verdict_is_on_the_serial_line() -> None:
    console = Path(os.environ["GOLDSMITH_SSH_CONFIG"]).parent / "vm/console.log"
    end = time.monotonic() + DEADLINE
    while not re.search(r"boot checks: (passed|FAILED) \(", text := console.read_text(errors="replace")):
        assert time.monotonic() < end, text[-4000:]
        time.sleep(2)
