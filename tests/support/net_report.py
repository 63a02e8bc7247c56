# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What net_validate answers, for tests that look into it."""

from __future__ import annotations

from typing import Any

NOTHING_LOCAL = {"interfaces": [], "default_route": False}


def outcomes(report: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(entry["name"], entry["target"]): entry for entry in report["checks"]}


def says(entry: dict[str, Any]) -> tuple[str, str | None]:
    return entry["status"], entry["error_class"]


def one(report: dict[str, Any], number: int = 0) -> dict[str, Any]:
    return report["checks"][number]
