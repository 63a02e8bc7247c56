# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is PRIVATE to the collection. It can have breaking changes at any time.
# Do not use it from other collections or standalone scripts.
"""What is asked about user-data, and the answer."""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.goldsmith.images.plugins.module_utils import _cloud_init_shell
from ansible_collections.goldsmith.images.plugins.module_utils._cloud_init_text import SEVERITIES, Finding

if t.TYPE_CHECKING:
    from collections.abc import Sequence

    from ansible_collections.goldsmith.images.plugins.module_utils._cloud_init_status import Status

TYPES = ("auto", "cloud-config", "network-config", "script", "mime")
CHECKERS = ("schema", *_cloud_init_shell.CHECKERS)
#: What EC2 takes; others take more.
SIZE_LIMIT = 16384


@dataclasses.dataclass(frozen=True)
class Request:
    """What to check, and how."""

    src: Sequence[str] = ()
    content: str | None = None
    system: bool = False
    type: str = "auto"
    shell: str = "auto"
    checkers: Sequence[str] = CHECKERS
    severity: str = "warning"
    ignore: Sequence[str] = ()
    deprecations: str = "warn"
    instance_data: str | None = None
    size_limit: int = SIZE_LIMIT
    status_wait: float = 0.0
    timeout: float = 120.0


@dataclasses.dataclass
class Report:
    """Everything that was found."""

    findings: list[Finding] = dataclasses.field(default_factory=list)
    scripts: list[dict[str, t.Any]] = dataclasses.field(default_factory=list)
    schema: list[dict[str, t.Any]] = dataclasses.field(default_factory=list)
    deprecated_keys: list[str] = dataclasses.field(default_factory=list)
    size: list[dict[str, t.Any]] = dataclasses.field(default_factory=list)
    status: Status | None = None
    not_evaluated: list[str] = dataclasses.field(default_factory=list)
    tools_missing: list[str] = dataclasses.field(default_factory=list)
    #: Values that no output may show.
    secrets: set[str] = dataclasses.field(default_factory=set)

    @property
    def evaluated(self) -> bool:
        return not self.not_evaluated and not self.tools_missing

    def problems(self, severity: str) -> list[str]:
        """What counts, one line for each place: several checkers say the same of it."""
        least = SEVERITIES.index(severity)
        places: dict[tuple[t.Any, ...], Finding] = {}
        for found in sorted(self.findings, key=lambda found: -SEVERITIES.index(found.severity)):
            if SEVERITIES.index(found.severity) < least:
                continue
            same = found.checker in ("dash", "bash", "shellcheck", "checkbashisms")
            key = (found.file, found.origin, found.line) if same else (str(found),)
            known = places.setdefault(key, found)
            if not known.suggestion and found.suggestion:
                places[key] = dataclasses.replace(known, suggestion=found.suggestion)
        order = sorted(places.values(), key=lambda found: (found.file, found.line or 0, found.column or 0))
        return [str(found) for found in order]

    def as_result(self, severity: str) -> dict[str, t.Any]:
        problems = self.problems(severity)
        return {
            "valid": self.evaluated and not problems,
            "evaluated": self.evaluated,
            "problems": problems,
            "findings": [dataclasses.asdict(found) for found in self.findings],
            "masked_failures": [dataclasses.asdict(found) for found in self.findings if found.checker == "masked"],
            "deprecated_keys": self.deprecated_keys,
            "scripts": self.scripts,
            "schema": self.schema,
            "size": self.size,
            "status": dataclasses.asdict(self.status) if self.status else None,
            "not_evaluated": self.not_evaluated,
            "tools_missing": self.tools_missing,
        }
