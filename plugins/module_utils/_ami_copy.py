# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: may change at any time, not for use by other collections.
"""The copies of an image: which are there, which are to be made, and the making of them, all at the same time."""

from __future__ import annotations

import hashlib
import random
import time
import typing as t
from collections import Counter
from concurrent.futures import Executor
from dataclasses import dataclass, field

from ansible_collections.goldsmith.images.plugins.module_utils import _ami_finish as finish
from ansible_collections.goldsmith.images.plugins.module_utils import _ami_retire as retire
from ansible_collections.goldsmith.images.plugins.module_utils import _aws_session as aws
from ansible_collections.goldsmith.images.plugins.module_utils._ami import (
    FAILED_STATES,
    KEY_TAG,
    SOURCE_TAG,
    Source,
    describe_snapshots,
    tag_list,
    tags_of,
)
from ansible_collections.goldsmith.images.plugins.module_utils._ami_journal import Journal
from ansible_collections.goldsmith.images.plugins.module_utils._ami_targets import Request, Target

# How long a new image may be invisible to DescribeImages, and a new permission to CopyImage: what has been changed is
# not known everywhere at once.
INVISIBLE_SECONDS = 300.0
LONGEST_POLL = 6  # times the shortest


@dataclass
class Copy:
    """A target and what is known of its copy."""

    target: Target
    action: str = "create"  # create, adopt or unchanged before the run; created, ... after it
    image_id: str | None = None
    image: dict[str, t.Any] | None = None
    failed: list[dict[str, t.Any]] = field(default_factory=list)  # images of earlier attempts that are still there
    dead: set[str] = field(default_factory=set)  # images that the attempts so far led to, and that will not do
    retries: int = 0
    started: float = 0.0
    not_before: float = 0.0
    pause: float = 0.0
    seen: bool = False
    made: bool = False
    duration: float = 0.0
    done: bool = False
    error: dict[str, t.Any] | None = None
    finished: finish.Finished = field(default_factory=finish.Finished)

    @property
    def waiting(self) -> bool:
        """Return whether the copy has to be started."""
        return not self.done and self.image_id is None

    @property
    def pending(self) -> bool:
        """Return whether the copy is on its way."""
        return not self.done and self.image_id is not None

    @property
    def copying(self) -> bool:
        """Return whether EC2 still copies, as far as was seen: also after our own giving up."""
        return self.image_id is not None and (self.image is None or self.image["State"] in ("pending", "transient"))

    @property
    def good(self) -> bool:
        """Return whether the copy is available and verified."""
        return self.done and self.error is None and self.finished.verified

    def fail(self, error: t.Mapping[str, t.Any]) -> None:
        """Give the target up."""
        self.done, self.error, self.action = True, {"state_reason": None, **error}, "failed"


def look(request: Request, source: Source, journal: Journal, pool: Executor) -> list[Copy]:
    """Find what there is already: one DescribeImages for each target, then the snapshots of what could be a copy."""
    copies = []
    for target in request.targets:
        copy = Copy(target, retries=request.params["retry_failed"])
        if target.error is not None:
            copy.fail(target.error)
        copies.append(copy)
    jobs = [(request, source, journal, copy, copy.target.client("ec2")) for copy in copies if not copy.done]
    list(pool.map(lambda job: _look(*job), jobs))
    return copies


def _look(request: Request, source: Source, journal: Journal, copy: Copy, client: t.Any) -> None:
    target, encrypted = copy.target, request.params["encrypted"]
    try:
        images = aws.pages(
            client,
            "describe_images",
            "Images",
            Owners=["self"],
            IncludeDeprecated=True,
            PaginationConfig={"PageSize": 1000},
        )
        mine = sorted(filter(source_is(source), images), key=lambda image: image["CreationDate"], reverse=True)
        good: list[tuple[dict[str, t.Any], list[dict[str, t.Any]]]] = []
        for image in mine:
            if image["State"] == "available" and _could_be(image, encrypted):
                snapshots = describe_snapshots(client, image)
                if finish.mismatch(snapshots, encrypted, target.key_arn) is None:
                    good.append((image, snapshots))
    except aws.AwsError as exc:
        copy.fail(exc.report())
        return
    usable = [image["ImageId"] for image, _snapshots in good]
    # Besides those that failed: what an earlier run found to be wrong and could not remove.
    doomed = {entry["image_id"] for entry in journal.of("remove", fingerprint=fingerprint(copy))}.difference(usable)
    copy.failed = [
        image
        for image in mine
        if (image["State"] in FAILED_STATES and SOURCE_TAG in tags_of(image))
        or (image["State"] == "available" and image["ImageId"] in doomed)
    ]
    key = target.key_arn or ""
    pending = [i for i in mine if i["State"] == "pending" and tags_of(i).get(KEY_TAG, key) == key]
    if len(good) > 1:
        newest, *others = usable
        request.warnings.append(
            f"{target.place}: there are {len(good)} such copies of {source.image_id}; {newest} is taken, the newest,"
            f" and {', '.join(others)} stay"
        )
    if good:
        copy.image, copy.finished.snapshots = good[0]
        copy.action, copy.image_id, copy.seen = "unchanged", copy.image["ImageId"], True
    elif pending:
        copy.action, copy.image, copy.image_id, copy.seen = "adopt", pending[0], pending[0]["ImageId"], True
    else:
        _remember(copy, journal, {image["ImageId"] for image in images})


def _remember(copy: Copy, journal: Journal, there: set[str]) -> None:
    """Take up what an earlier run started and DescribeImages does not show as usable."""
    copy.dead = {image["ImageId"] for image in copy.failed}
    for entry in journal.of("copied", fingerprint=fingerprint(copy)):
        if time.time() - entry["time"] < INVISIBLE_SECONDS and entry["image_id"] not in there | _removed(journal):
            copy.action, copy.image_id = "adopt", entry["image_id"]
        else:
            copy.dead.add(entry["image_id"])
    copy.dead.update(entry["image_id"] for entry in journal.of("remove", fingerprint=fingerprint(copy)))


def _removed(journal: Journal) -> set[str]:
    return {entry["image_id"] for entry in journal.of("remove")}


def source_is(source: Source) -> t.Callable[[dict[str, t.Any]], bool]:
    """Return whether an image is a copy of the source: EC2 says so itself, or our tag does."""

    def is_copy(image: dict[str, t.Any]) -> bool:
        if image["ImageId"] == source.image_id:
            return False
        lineage = (image.get("SourceImageRegion"), image.get("SourceImageId"))
        return lineage == (source.region, source.image_id) or tags_of(image).get(SOURCE_TAG) == source.mark

    return is_copy


def _could_be(image: dict[str, t.Any], encrypted: bool) -> bool:
    devices = [
        device["Ebs"] for device in image.get("BlockDeviceMappings", []) if "SnapshotId" in device.get("Ebs", {})
    ]
    return bool(devices) and all(device.get("Encrypted", encrypted) == encrypted for device in devices)


def fingerprint(copy: Copy) -> str:
    """Return what makes two copies the same work."""
    target = copy.target
    return hashlib.sha256(f"{target.account_id}/{target.region}/{target.key_arn}".encode()).hexdigest()[:16]


class Engine:
    """Starts the copies, as many as the limits let, and follows them to their ends."""

    def __init__(self, request: Request, source: Source, journal: Journal, pool: Executor, copies: list[Copy]) -> None:
        self.request = request
        self.source = source
        self.journal = journal
        self.pool = pool
        self.copies = copies
        self.changed = False
        self._size = max(1, len(source.snapshots))

    def run(self) -> None:
        """Return when every copy has ended, or at the time-out: what is pending goes on in AWS."""
        params = self.request.params
        begin = time.monotonic()
        for copy in self.copies:
            copy.started = begin
            if not copy.done:
                copy.target.client("ec2")  # made here, in the main thread
        self._each(self._sweep, [copy for copy in self.copies if copy.failed])
        while True:
            self._each(self._start, self._startable())
            self._each(self._finish, [copy for copy in self.copies if copy.pending and self._ready(copy)])
            waiting = any(copy.waiting for copy in self.copies)
            if not waiting and not (params["wait"] and any(copy.pending for copy in self.copies)):
                return
            now = time.monotonic()
            if now - begin >= params["wait_timeout"]:
                return
            # What is found late is late by a twentieth at most; a little at random keeps runs apart.
            pause = min(max(params["poll"], (now - begin) / 20), params["poll"] * LONGEST_POLL)
            time.sleep(min(pause * random.uniform(0.9, 1.1), begin + params["wait_timeout"] - now))
            self._poll()

    def _each(self, function: t.Callable[[Copy], None], copies: list[Copy]) -> None:
        def guarded(copy: Copy) -> None:
            try:
                function(copy)
            except aws.AwsError as exc:
                copy.fail(exc.report())

        list(self.pool.map(guarded, copies))

    def _startable(self) -> list[Copy]:
        """As many of those that wait as their regions have room for, all accounts together."""
        limit = self.request.params["max_parallel_per_region"]
        busy = Counter(copy.target.region for copy in self.copies if copy.copying)
        chosen = []
        for copy in self.copies:
            region = copy.target.region
            # An image with more snapshots than the limit still has to be copied: alone.
            room = not busy[region] or (busy[region] + 1) * self._size <= limit
            if copy.waiting and time.monotonic() >= copy.not_before and room:
                busy[region] += 1
                chosen.append(copy)
        return chosen

    def _sweep(self, copy: Copy) -> None:
        """Remove what earlier attempts left behind; only what bears our tag is in the list."""
        while copy.failed:
            self._remove(copy, copy.failed[-1], "the copy failed")
            copy.failed.pop()

    def _remove(self, copy: Copy, image: dict[str, t.Any], why: str) -> None:
        """Deregister an image of ours, with its snapshots. AwsError: it, or some of them, are still there."""
        image_id = image["ImageId"]
        self.journal.note("remove", fingerprint=fingerprint(copy), image_id=image_id, why=why)
        results: list[tuple[str, str]] = []
        try:
            results = retire.deregister(copy.target.client("ec2"), image, delete=True)
        except aws.AwsError as exc:
            if exc.code not in ("InvalidAMIID.NotFound", "InvalidAMIID.Unavailable"):
                raise
        self.changed = True
        if image_id == copy.image_id:
            copy.image = {**image, "State": "deregistered"}
        problem = retire.left(image_id, results)
        if problem:
            raise aws.AwsError("SnapshotsLeft", problem)

    def _start(self, copy: Copy) -> None:
        target, params = copy.target, self.request.params
        tags = {**target.tags, SOURCE_TAG: self.source.mark, KEY_TAG: target.key_arn or ""}
        if not target.key_arn:
            del tags[KEY_TAG]
        wanted: dict[str, t.Any] = {
            "Name": target.name,
            "SourceImageId": self.source.image_id,
            "SourceRegion": self.source.region,
            "Encrypted": params["encrypted"],
            "TagSpecifications": [
                {"ResourceType": "image", "Tags": tag_list(tags)},
                {"ResourceType": "snapshot", "Tags": tag_list({**tags, **self.request.snapshot_tags})},
            ],
        }
        optional = {
            "CopyImageTags": params["copy_tags"] or None,
            "Description": params["description"],
            "KmsKeyId": target.key_arn,
            "SnapshotCopyCompletionDurationMinutes": params["completion_minutes"],
        }
        wanted.update({name: value for name, value in optional.items() if value is not None})
        # One token for each attempt: with the token of a copy that failed EC2 would return that copy again, and with
        # that of a request that was refused it would refuse what has been put right since.
        refused = self.journal.of("refused", fingerprint=fingerprint(copy))
        attempt = f"{self.source.mark}/{fingerprint(copy)}/{len(copy.dead) + len(refused)}"
        wanted["ClientToken"] = hashlib.sha256(attempt.encode()).hexdigest()
        asked = self.journal.of("copy", token=wanted["ClientToken"])
        if asked:  # a run was killed in this call: the same token needs the same parameters; tags are put right later
            wanted = asked[-1]["request"]
        else:
            self.journal.note("copy", target=target.place, token=wanted["ClientToken"], request=wanted)
        try:
            image_id = aws.call(target.client("ec2").copy_image, **wanted)["ImageId"]
        except aws.AwsError as exc:
            unseen = exc.code == "InvalidAMIID.NotFound" or "permission to access the storage" in exc.message
            busy = exc.busy or (unseen and self._let_in_lately(target.account_id))
            if exc.refused and not busy:
                self.journal.note("refused", target=target.place, fingerprint=fingerprint(copy), **exc.report())
            if not busy:
                raise
            copy.pause = min(max(copy.pause * 2, self.request.params["poll"]), 60)
            copy.not_before = time.monotonic() + copy.pause * random.uniform(0.5, 1)
            return
        self.changed = True
        if image_id in copy.dead:  # EC2 remembers a token longer than we remember the attempt
            copy.dead.add(f"{image_id}, again {len(copy.dead)}")
            return
        self.journal.note("copied", target=target.place, fingerprint=fingerprint(copy), image_id=image_id)
        copy.image_id, copy.image, copy.seen, copy.made = image_id, None, False, True
        copy.action, copy.started = "create", time.monotonic()

    def _let_in_lately(self, account: str | None) -> bool:
        """Return whether an account got its permission on the source so lately that it may not hold everywhere yet."""
        since = time.time() - INVISIBLE_SECONDS
        return any(entry["time"] > since and account in entry["accounts"] for entry in self.journal.of("share"))

    def _poll(self) -> None:
        """Ask once for each account and region, for all of its images."""
        groups: dict[tuple[str | None, str], list[Copy]] = {}
        for copy in self.copies:
            if copy.pending:
                groups.setdefault((copy.target.account_id, copy.target.region), []).append(copy)
        list(self.pool.map(self._ask, groups.values()))

    def _ask(self, copies: list[Copy]) -> None:
        # By filter: an id that is not visible yet would be an error for all of them.
        ids = [copy.image_id for copy in copies]
        try:
            images = aws.pages(
                copies[0].target.client("ec2"),
                "describe_images",
                "Images",
                Filters=[{"Name": "image-id", "Values": ids}],
            )
        except aws.AwsError as exc:
            for copy in copies:
                copy.fail(exc.report())
            return
        found = {image["ImageId"]: image for image in images}
        for copy in copies:
            copy.image = found.get(copy.image_id or "")
            copy.seen = copy.seen or copy.image is not None
            if copy.image is None and (copy.seen or time.monotonic() - copy.started > INVISIBLE_SECONDS):
                copy.image = {"ImageId": copy.image_id, "State": "deregistered"}
                gone = {"code": "Gone", "message": f"{copy.image_id} was deregistered while it was copied"}
                self._again(copy, gone, remove=False)
            elif copy.image is not None and copy.image["State"] not in ("available", "pending", "transient"):
                reason = copy.image.get("StateReason", {})
                message = f"{copy.image_id} is {copy.image['State']}: {reason.get('Message', 'EC2 does not say why')}"
                error = {"code": reason.get("Code", "Failed"), "message": message}
                self._again(copy, {**error, "state_reason": reason.get("Message")}, remove=True)

    def _again(self, copy: Copy, error: dict[str, t.Any], remove: bool) -> None:
        """Try again, or give up: then the failed image stays for who wants to look at it, until the next run."""
        if copy.retries <= 0:
            copy.fail(error)
            return
        copy.retries -= 1
        image_id = copy.image_id or ""
        if remove and copy.image is not None and (copy.made or SOURCE_TAG in tags_of(copy.image)):
            try:
                self._remove(copy, copy.image, error["message"])
            except aws.AwsError as exc:
                copy.fail(exc.report())
                return
        copy.dead.add(image_id)
        copy.image_id, copy.image = None, None

    def _ready(self, copy: Copy) -> bool:
        return copy.image is not None and copy.image["State"] == "available" and self.request.params["wait"]

    def _finish(self, copy: Copy) -> None:
        """Verify an available copy, and give it the tags and permissions it lacks."""
        if copy.image is None:
            return
        client, target = copy.target.client("ec2"), copy.target
        copy.duration = time.monotonic() - copy.started if copy.action != "unchanged" else 0.0
        snapshots = copy.finished.snapshots or describe_snapshots(client, copy.image)
        wrong = finish.mismatch(snapshots, self.request.params["encrypted"], target.key_arn)
        marks = tags_of(copy.image)
        ours = copy.made or (marks.get(SOURCE_TAG), marks.get(KEY_TAG)) == (self.source.mark, target.key_arn)
        if wrong and not ours:  # somebody else's copy of the same image, which is not the one we want
            copy.image_id, copy.image, copy.action = None, None, "create"
            return
        copy.finished.snapshots = snapshots
        if wrong:
            end = "it has been removed"
            try:
                self._remove(copy, copy.image, wrong)
            except aws.AwsError as exc:
                end = f"it could not be removed: {exc}"
            copy.fail({"code": "NotVerified", "message": f"{copy.image_id}: {wrong}; {end}"})
            return
        copy.finished.verified = True
        known = {"fingerprint": fingerprint(copy), "image_id": copy.image_id}
        if SOURCE_TAG in tags_of(copy.image) and not self.journal.of("copied", **known):
            self.journal.note("copied", target=target.place, **known)  # made by a run that was killed, or elsewhere
        plan = finish.plan(client, self.request, target, self.source, copy.image, snapshots)
        finish.apply(client, plan, copy.image_id or "", self.journal, copy.finished)
        self.changed = self.changed or plan.changes
        copy.action = {"create": "created", "adopt": "adopted"}.get(copy.action, copy.action)
        copy.done = True

    def rollback(self) -> None:
        """Remove the copies that this run has made."""

        def undo(copy: Copy) -> None:
            if copy.made and copy.image_id:
                self._remove(copy, copy.image or {"ImageId": copy.image_id}, "on_failure=rollback")
                copy.finished.verified = False
                copy.action = "rolled_back" if copy.error is None else "failed"

        self._each(undo, self.copies)


def predict(request: Request, source: Source, copies: list[Copy], pool: Executor) -> None:
    """Fill in, without changing anything, what a run would do with each copy."""

    def plan(job: tuple[Copy, t.Any]) -> None:
        copy, client = job
        try:
            if copy.action == "unchanged" and copy.image is not None:
                copy.finished.verified = True
                wanted = finish.plan(client, request, copy.target, source, copy.image, copy.finished.snapshots)
                copy.finished.changes = wanted.changes
                copy.finished.tags_changed = bool(wanted.tags)
                copy.finished.shared_with = wanted.shared_with
        except aws.AwsError as exc:
            copy.fail(exc.report())
            return
        copy.action = {"create": "would_create", "adopt": "would_adopt"}.get(copy.action, copy.action)
        copy.done = True

    list(pool.map(plan, [(copy, copy.target.client("ec2")) for copy in copies if not copy.done]))


def report(copy: Copy) -> dict[str, t.Any]:
    """Return what the result says of a copy."""
    target, image = copy.target, copy.image
    if not copy.done and copy.image_id:
        copy.action = {"create": "created", "adopt": "adopted"}.get(copy.action, copy.action)
    state = image["State"] if image else ("pending" if copy.image_id and not copy.done else None)
    snapshots = [
        {
            "id": snapshot["SnapshotId"],
            "encrypted": snapshot["Encrypted"],
            "kms_key_id": snapshot.get("KmsKeyId"),
            "size": snapshot["VolumeSize"],
        }
        for snapshot in copy.finished.snapshots
    ]
    return {
        "account": target.account_id or target.wanted_account,
        "region": target.region,
        "image_id": copy.image_id,
        "name": (image or {}).get("Name") or target.name or None,
        "state": state,
        "action": copy.action if copy.action != "create" else "not_started",
        "snapshots": snapshots,
        "encrypted": all(snapshot["encrypted"] for snapshot in snapshots) if snapshots else None,
        "kms_key_arn": target.key_arn,
        "tags_changed": copy.finished.tags_changed,
        "shared_with": copy.finished.shared_with,
        "duration": round(copy.duration, 1),
        "error": copy.error,
    }
