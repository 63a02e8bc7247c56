# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: may change at any time, not for use by other collections.
"""What becomes of the source when every copy is available, encrypted with the key asked for, and nobody uses it."""

from __future__ import annotations

import typing as t
from concurrent.futures import Executor
from datetime import datetime, timedelta, timezone

from ansible_collections.goldsmith.images.plugins.module_utils import _ami_in_use as in_use
from ansible_collections.goldsmith.images.plugins.module_utils import _aws_session as aws
from ansible_collections.goldsmith.images.plugins.module_utils._ami import Source, snapshot_ids
from ansible_collections.goldsmith.images.plugins.module_utils._ami_journal import Journal

GOOD = ("success", "skipped")
SOON = timedelta(minutes=2)


class Retirement:
    """One source and what was asked for it. *report* is what the result says."""

    def __init__(self, params: dict[str, t.Any], source: Source, journal: Journal, check_mode: bool) -> None:
        self.params = params
        self.source = source
        self.journal = journal
        self.check_mode = check_mode
        self.changed = False
        self.error: str | None = None
        self.warnings: list[str] = []
        self.report: dict[str, t.Any] = {
            "action": params["source_after"],
            "result": "none",
            "reason": None,
            "in_use": [],
            "snapshots": [],
        }

    def run(self, problem: str | None, accounts: t.Iterable[aws.Account], pool: Executor) -> None:
        """Do it, unless *problem* says why not."""
        action = self.params["source_after"]
        if action == "keep":
            return
        if problem is not None:
            self.report.update(result="refused", reason=problem)
            return
        if self._done(action):
            self.report["result"] = "unchanged"
            return
        try:
            if self.source.image is not None and not self._unused(accounts, pool):
                return
            if self.check_mode:
                self.changed = True
                self.report["result"] = f"would_{action}"
                return
            getattr(self, f"_{action}")(self.source.account.client("ec2", self.source.region))
        except aws.AwsError as exc:
            self.error = f"source_after={action}: {exc}"
            self.report.update(result="failed", reason=str(exc))

    def _done(self, action: str) -> bool:
        image = self.source.image
        if image is None:
            return not self._leftovers()
        if action == "deprecate":
            date = image.get("DeprecationTime")
            return bool(date) and date <= f"{soon():%Y-%m-%dT%H:%M:59Z}"
        return action == "disable" and image["State"] == "disabled"

    def _leftovers(self) -> list[str]:
        """Which snapshots of a source that is gone were not deleted, as far as the journal knows."""
        if not self.params["delete_source_snapshots"]:
            return []
        wanted: dict[str, None] = {}
        for entry in self.journal.entries:
            if entry["event"] == "deregister":
                wanted.update(dict.fromkeys(entry["snapshots"]))
            elif entry["event"] == "snapshot" and entry["result"] in GOOD:
                wanted.pop(entry["id"], None)
        return list(wanted)

    def _unused(self, accounts: t.Iterable[aws.Account], pool: Executor) -> bool:
        """Return whether nobody needs the image, as far as can be seen, or nobody is to be asked."""
        mode = self.params["in_use_check"]
        if mode == "skip":
            return True
        seen, source = list(accounts), self.source
        usage = in_use.find(seen, source.region, [source.image_id], pool)[source.image_id]
        ours = self.journal.open_shares().get(("image", source.image_id), set())
        known = {account.id for account in seen} | ours
        usage.users += in_use.launch_permissions(source.account, source.region, source.image_id, known)
        self.report["in_use"] = usage.users
        if not usage.problems:
            return True
        message = f"{source.image_id} may be in use: {'; '.join(usage.problems)}"
        if mode == "warn":
            self.warnings.append(message)
            return True
        self.error = f"source_after={self.params['source_after']}: {message}"
        self.report.update(result="refused", reason=message)
        return False

    def _deprecate(self, client: t.Any) -> None:
        date = soon()
        self.journal.note("deprecate", id=self.source.image_id, at=date.isoformat())
        aws.call(client.enable_image_deprecation, ImageId=self.source.image_id, DeprecateAt=date)
        self.changed = True
        self.report["result"] = "deprecated"

    def _disable(self, client: t.Any) -> None:
        self.journal.note("disable", id=self.source.image_id)
        aws.call(client.disable_image, ImageId=self.source.image_id)
        self.changed = True
        self.report["result"] = "disabled"

    def _deregister(self, client: t.Any) -> None:
        delete, image_id = self.params["delete_source_snapshots"], self.source.image_id
        if self.source.image is None:
            results = [(snapshot, delete_snapshot(client, snapshot)) for snapshot in self._leftovers()]
        else:
            snapshots = snapshot_ids(self.source.image)
            self.journal.note("deregister", id=image_id, snapshots=snapshots)
            results = deregister(client, self.source.image, delete)
        self.changed = True
        for snapshot, result in results:
            self.journal.note("snapshot", id=snapshot, result=result)
        self.report["snapshots"] = [{"id": snapshot, "result": result} for snapshot, result in results]
        self.report["result"] = "deregistered"
        problem = left(image_id, results)
        if problem:
            self.error = f"{problem}; run again"


def soon() -> datetime:
    """Return the earliest date that EC2 surely takes: it wants one in the future."""
    return datetime.now(timezone.utc) + SOON


def deregister(client: t.Any, image: t.Mapping[str, t.Any], delete: bool) -> list[tuple[str, str]]:
    """Deregister an image, with its snapshots or without; return what became of each of them. Raises AwsError."""
    asked = {"DeleteAssociatedSnapshots": True} if delete else {}
    answer = aws.call(client.deregister_image, ImageId=image["ImageId"], **asked)
    if not delete:
        return [(snapshot, "kept") for snapshot in snapshot_ids(image)]
    results = {result["SnapshotId"]: result["ReturnCode"] for result in answer.get("DeleteSnapshotResults", [])}
    for snapshot in snapshot_ids(image):
        if snapshot not in results:  # an answer that does not name it does not say that it is gone
            results[snapshot] = delete_snapshot(client, snapshot)
    return list(results.items())


def left(image_id: str, results: t.Iterable[tuple[str, str]]) -> str | None:
    """Say which snapshots of an image that is deregistered should be gone and are not."""
    bad = [f"{snapshot} ({result})" for snapshot, result in results if result not in (*GOOD, "kept")]
    return f"{image_id} is deregistered, but these of its snapshots are left: {', '.join(bad)}" if bad else None


def delete_snapshot(client: t.Any, snapshot_id: str) -> str:
    """Delete a snapshot; return what became of it, in the words of DeregisterImage or with AWS's code."""
    try:
        aws.call(client.delete_snapshot, SnapshotId=snapshot_id)
    except aws.AwsError as exc:
        results = {"InvalidSnapshot.NotFound": "success", "InvalidSnapshot.InUse": "skipped"}
        return results.get(exc.code, exc.code)
    return "success"
