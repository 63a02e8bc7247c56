# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the checks share: many questions to the machine with one script."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from testinfra.host import Host

PREAMBLE = r"""
PATH=$PATH:/usr/sbin:/sbin
export LC_ALL=C
section() { printf '\n@@ %s\n' "$1"; }
"""


def gather(host: Host, script: str, *arguments: str) -> dict[str, str]:
    """Run a script that prints `section NAME` before each answer; return the answers by name.

    A command in an emulated guest takes long, so a file of checks asks once and then compares.
    """
    form = "sh -c %s sh" + " %s" * len(arguments)
    done = host.run(form, PREAMBLE + script + "\nsection end\n", *arguments)
    parts = re.split(r"^@@ (\w+)$", done.stdout, flags=re.MULTILINE)
    found = {name: body.strip() for name, body in zip(parts[1::2], parts[2::2], strict=True)}
    if "end" not in found:
        raise RuntimeError(f"the script ended early (exit {done.rc}): {done.stderr.strip()}")
    return found


def properties(text: str, separator: str = "=") -> dict[str, str]:
    """Lines `name=value` as a dictionary."""
    pairs = (line.split(separator, 1) for line in text.splitlines() if separator in line)
    return {name.strip(): value.strip() for name, value in pairs}
