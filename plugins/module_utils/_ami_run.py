# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: may change at any time, not for use by other collections.
"""ami_copy_encrypt from its parameters to its result."""

from __future__ import annotations

import contextlib
import os
import typing as t
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ansible_collections.goldsmith.images.plugins.module_utils import _ami_copy as copying
from ansible_collections.goldsmith.images.plugins.module_utils import _ami_share as sharing
from ansible_collections.goldsmith.images.plugins.module_utils import _ami_targets as targets
from ansible_collections.goldsmith.images.plugins.module_utils import _aws_session as aws
from ansible_collections.goldsmith.images.plugins.module_utils._ami import AmiError, Source, find_source
from ansible_collections.goldsmith.images.plugins.module_utils._ami_journal import Journal, known_source
from ansible_collections.goldsmith.images.plugins.module_utils._ami_retire import Retirement


def run(params: dict[str, t.Any], check_mode: bool) -> dict[str, t.Any]:
    """Return the result; with a *msg* if the module has failed. AmiError: nothing was changed."""
    request = targets.check(params)
    accounts = aws.Aws.of(params, request.source["region"])
    folder = Path(os.path.expanduser(params["journal"]))
    try:
        with ThreadPoolExecutor(params["max_parallel"]) as pool, contextlib.ExitStack() as stack:
            home = accounts.account(request.source_login)
            targets.enter_source(home, request.source["region"])  # nothing can be done without the source's account
            targets.enter(request, home, accounts, pool)
            region, name, owner = (request.source[key] for key in ("region", "name", "owner"))
            known = known_source(folder, region, name, owner)
            source = find_source(home, region, request.source, known)
            path = folder / f"{home.id}-{region}-{source.image_id}.jsonl"
            journal = stack.enter_context(Journal.opened(path, write=not check_mode))
            targets.name_targets(request, source)
            targets.find_keys(request, pool)
            copies = copying.look(request, source, journal, pool)
            needed = [copy for copy in copies if copy.waiting]
            targets.check_source(request, source, bool(needed))
            targets.check_plain(request, [copy.target for copy in needed], pool)
            # One that is taken up may prove wrong, and is made anew then.
            begun = [copy for copy in copies if copy.action in ("create", "adopt")]
            others = {copy.target.account_id or "" for copy in begun} - {(source.image or {}).get("OwnerId")}
            if params["temporary_share"]:
                sharing.refuse_unsharable(source, others)
            run_ = _Run(params, request, source, journal, copies, pool)
            if check_mode:
                copying.predict(request, source, copies, pool)
                run_.changed = any(c.action != "unchanged" or c.finished.changes or c.failed for c in copies)
            else:
                run_.copy(others)
            return run_.result(home, check_mode)
    except aws.AwsError as exc:
        raise AmiError(str(exc)) from exc


class _Run:
    """The part of a run that changes something: from here on every problem is part of the result."""

    def __init__(
        self,
        params: dict[str, t.Any],
        request: targets.Request,
        source: Source,
        journal: Journal,
        copies: list[copying.Copy],
        pool: ThreadPoolExecutor,
    ) -> None:
        self.params = params
        self.request = request
        self.source = source
        self.journal = journal
        self.copies = copies
        self.pool = pool
        self.changed = False
        self.problems: list[str] = []

    def copy(self, others: set[str]) -> None:
        """Make the copies; let the accounts *others* at the source meanwhile."""
        selector = {key: self.request.source[key] for key in ("region", "name", "owner")}
        if not self.journal.of("source", image_id=self.source.image_id, **selector):
            self.journal.note("source", image_id=self.source.image_id, **selector)
        engine = copying.Engine(self.request, self.source, self.journal, self.pool, self.copies)
        try:
            if self.params["temporary_share"]:
                self.changed = sharing.share(self.source, others, self.journal)
            engine.run()
            if self.params["on_failure"] == "rollback" and any(copy.error for copy in self.copies):
                engine.rollback()
        except aws.AwsError as exc:
            for copy in self.copies:
                if not copy.done:
                    copy.fail(exc.report())
        pending = {copy.target.account_id or "" for copy in self.copies if copy.copying}
        try:
            self.changed = sharing.revoke(self.source, pending, self.journal) or self.changed
        except aws.AwsError as exc:
            self.problems.append(
                f"the temporary permissions on {self.source.image_id} are still there: {exc}; run again"
            )
        self.changed = self.changed or engine.changed

    def result(self, home: aws.Account, check_mode: bool) -> dict[str, t.Any]:
        """Retire the source if all is well, and say what has been done."""
        retirement = Retirement(self.params, self.source, self.journal, check_mode)
        seen = [home, *(copy.target.account for copy in self.copies if copy.target.account is not None)]
        retirement.run(self._not_ready(check_mode), seen, self.pool)
        reports = [copying.report(copy) for copy in self.copies]
        for report in reports:
            if report["error"]:
                self.problems.append("{account}/{region}: {error[code]}: {error[message]}".format(**report))
        late = [copy.target.place for copy in self.copies if not copy.done]
        if late and self.params["wait"]:
            self.problems.append(
                f"after {self.params['wait_timeout']} s these are still being copied: {', '.join(late)};"
                " they go on in AWS, and the next run takes them up"
            )
        if retirement.error:
            self.problems.append(retirement.error)
        result = {
            "changed": self.changed or retirement.changed,
            "source": self.source.report(),
            "copies": reports,
            "source_action": retirement.report,
            "summary": _summary(reports),
            "journal": str(self.journal.path),
            "warnings": self.request.warnings + retirement.warnings,
        }
        if self.problems:
            result["msg"] = "; ".join(self.problems)
        return result

    def _not_ready(self, check_mode: bool) -> str | None:
        """Why the source may not be touched yet."""
        if check_mode:
            bad = [copy.target.place for copy in self.copies if copy.error]
            return f"there is no way to a copy for {', '.join(bad)}" if bad else None
        bad = [copy.target.place for copy in self.copies if not copy.good]
        if bad:
            return f"not every copy is available and verified: {', '.join(bad)}"
        return "; ".join(self.problems) or None


def _summary(reports: list[dict[str, t.Any]]) -> dict[str, int]:
    names = ("created", "adopted", "unchanged", "failed", "rolled_back", "not_started", "would_create", "would_adopt")
    counts = {name: sum(report["action"] == name for report in reports) for name in names}
    return {**counts, "pending": sum(report["state"] == "pending" for report in reports), "total": len(reports)}
