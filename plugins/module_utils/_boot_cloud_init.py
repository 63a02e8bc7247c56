# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: may change at any time, not for use by other collections.
"""How cloud-init's run of this boot ended, from the files that it leaves: the same for all versions since 22.4.

`cloud-init status` of Debian 12 does not tell recoverable errors, and it takes seconds in an emulated machine.
"""

from __future__ import annotations

import json
import time
import typing as t
from pathlib import Path

from ansible_collections.goldsmith.images.plugins.module_utils._net_result import Deadline, Finding, Problem

RUN = Path("/run/cloud-init")
POLL = 0.5


def check_cloud_init(run: Path, deadline: Deadline) -> Finding:
    """Wait for the end of cloud-init's last stage, and say how it was."""
    if not run.is_dir() or (run / "disabled").exists():
        raise Problem("cloud_init_absent", "cloud-init did not run at this boot", status="skip", method="files")
    deadline.waiting_for = ("cloud_init_running", "cloud-init has not ended")
    while not (run / "result.json").exists():
        time.sleep(min(POLL, deadline.left()))
    return Finding(judge(_read(run / "status.json"), _read(run / "result.json")), "files")


def _read(path: Path) -> dict[str, t.Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["v1"]
    except (OSError, ValueError, LookupError, TypeError) as exc:
        raise Problem("cloud_init_error", f"{path} cannot be read: {exc}", method="files") from exc
    return dict(found)


def judge(status: t.Mapping[str, t.Any], result: t.Mapping[str, t.Any]) -> str:
    """What is said of a run without a problem; Problem tells the first errors."""
    stages = {name: stage for name, stage in status.items() if isinstance(stage, dict)}
    errors = [f"{name}: {text}" for name, stage in stages.items() for text in stage.get("errors") or []]
    # What a stage has told is not told again.
    errors += [str(text) for text in result.get("errors") or [] if not any(str(text) in told for told in errors)]
    if errors:
        raise Problem("cloud_init_error", _some(errors), method="files")
    recoverable = [
        f"{name}: {level}: {text}"
        for name, stage in stages.items()
        for level, texts in (stage.get("recoverable_errors") or {}).items()
        for text in texts
    ]
    if recoverable:
        raise Problem("cloud_init_degraded", _some(recoverable), status="warn", method="files")
    return f"done, {result.get('datasource') or status.get('datasource') or 'no datasource'}"


def _some(texts: t.Sequence[str]) -> str:
    more = f" (and {len(texts) - 3} more)" if len(texts) > 3 else ""
    return "; ".join(text[:300] for text in texts[:3]) + more
