# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: may change at any time, not for use by other collections.
"""Old images go: first they are deprecated, and after a time of grace they are deregistered with their snapshots.

The cloud itself remembers how far that has come, so a killed run is ended by the next one, from whatever machine: the
date of the deprecation, and a tag on the snapshots that says which image they go with.
"""

from __future__ import annotations

import typing as t
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone

from ansible_collections.goldsmith.images.plugins.module_utils import _ami_in_use as in_use
from ansible_collections.goldsmith.images.plugins.module_utils import _ami_retire as retire
from ansible_collections.goldsmith.images.plugins.module_utils import _aws_session as aws
from ansible_collections.goldsmith.images.plugins.module_utils._ami import (
    FAILED_STATES,
    NAME,
    AmiError,
    snapshot_ids,
    tag_list,
    tags_of,
)

PRUNED_TAG = "goldsmith.images:pruned"  # on a snapshot: the image that it goes with
LIMITS = {"keep": (0, 10000), "min_age_days": (0, 3650), "grace_days": (0, 3650), "max_parallel": (1, 64)}
DONE = {"deprecate": "deprecated", "deregister": "deregistered"}
ACTIONS = ("kept", "in_use", "waiting", *DONE.values(), *(f"would_{action}" for action in DONE), "failed")

Image = t.Mapping[str, t.Any]


@dataclass
class Fate:
    """An image of the wanted names, and what is to become of it, or has."""

    image: Image
    prefix: str
    action: str  # kept, waiting, deprecate or deregister; in_use, deprecated, ... after the run
    reason: str
    usage: in_use.Usage = field(default_factory=in_use.Usage)
    deprecated: datetime | None = None
    snapshots: list[tuple[str, str]] = field(default_factory=list)
    error: dict[str, str] | None = None

    @property
    def id(self) -> str:
        """Return the image's id."""
        return str(self.image["ImageId"])

    @property
    def goes(self) -> bool:
        """Return whether something is to be done with it."""
        return self.action in DONE

    def fail(self, code: str, message: str) -> None:
        """Leave it for the next run."""
        self.action, self.error = "failed", {"code": code, "message": message}

    def report(self, now: datetime) -> dict[str, t.Any]:
        """Return what the result says of it."""
        created = _time(self.image["CreationDate"])
        return {
            "image_id": self.id,
            "name": self.image.get("Name"),
            "prefix": self.prefix,
            "state": self.image["State"],
            "created": f"{created:%Y-%m-%dT%H:%M:%SZ}",
            "age_days": (now - created).days,
            "deprecated": f"{self.deprecated:%Y-%m-%dT%H:%M:%SZ}" if self.deprecated else None,
            "action": self.action,
            "reason": self.reason,
            "in_use": self.usage.users,
            "snapshots": [{"id": snapshot, "result": result} for snapshot, result in self.snapshots],
            "error": self.error,
        }


def check(params: t.Mapping[str, t.Any]) -> None:
    """Refuse what cannot be meant, before anything is asked. Raises AmiError."""
    for name, (low, high) in LIMITS.items():
        if not low <= params[name] <= high:
            raise AmiError(f"{name}: {params[name]} is not between {low} and {high}")
    if not params["name_prefixes"]:
        raise AmiError("name_prefixes: none is given, and all images of an account are never meant")
    for prefix in params["name_prefixes"]:
        # Three characters at least are what a name has; an empty prefix would be every image.
        if not NAME.fullmatch(prefix):
            raise AmiError(
                f"name_prefixes: {prefix!r} is not the beginning of a name, 3 to 128 letters, digits, spaces and"
                " ( ) [ ] . / - ' @ _; wildcards are not needed"
            )


def decide(images: t.Iterable[Image], params: t.Mapping[str, t.Any], now: datetime) -> list[Fate]:
    """Return the fate of each image that has one of the prefixes, those of a prefix together, the newest first."""
    # An image belongs to the longest prefix that fits: golden-arm- is not counted with golden-.
    groups: dict[str, list[Image]] = {prefix: [] for prefix in params["name_prefixes"]}
    for image in images:
        fitting = [prefix for prefix in groups if image.get("Name", "").startswith(prefix)]
        if fitting:
            groups[max(fitting, key=len)].append(image)
    fates = []
    for prefix, members in groups.items():
        members.sort(key=lambda image: (image["CreationDate"], image["ImageId"]), reverse=True)
        usable = [image["ImageId"] for image in members if image["State"] == "available"]
        newest = set(usable[: params["keep"]])
        fates += [_fate(image, prefix, image["ImageId"] in newest, params, now) for image in members]
    return fates


def _fate(image: Image, prefix: str, newest: bool, params: t.Mapping[str, t.Any], now: datetime) -> Fate:
    date = image.get("DeprecationTime")
    deprecated = _time(date) if date else None
    min_age, grace = timedelta(days=params["min_age_days"]), timedelta(days=params["grace_days"])
    action = "kept"
    if newest:
        reason = f"one of the newest {params['keep']}"
    elif image["State"] not in ("available", "disabled", *FAILED_STATES):
        reason = f"it is {image['State']}"
    elif now - _time(image["CreationDate"]) < min_age:
        reason = f"younger than {min_age.days} days"
    elif str(image.get("DeregistrationProtection", "")).startswith("enabled"):
        reason = "protected against deregistration"
    elif image["State"] != "available":
        # Nobody can launch it, so there is nobody to be warned.
        action, reason = "deregister", f"it is {image['State']}"
    elif not grace or (deprecated and deprecated + grace <= now):
        action, reason = "deregister", "the time of grace is over" if grace else "there is no time of grace"
    elif deprecated and deprecated <= now:
        action, reason = "waiting", f"deregistered after {deprecated + grace:%Y-%m-%d %H:%M} UTC"
    elif deprecated and deprecated <= now + retire.SOON:
        action, reason = "waiting", "it is being deprecated"
    else:
        action, reason = "deprecate", f"older than the newest {params['keep']}"
    return Fate(image, prefix, action, reason, deprecated=deprecated)


def run(params: t.Mapping[str, t.Any], check_mode: bool) -> dict[str, t.Any]:
    """Return the result; with a *msg* if the module has failed. AmiError: nothing was changed."""
    check(params)
    region, now = params["region"], datetime.now(timezone.utc)
    try:
        accounts = aws.Aws.of(params, region)
        base = aws.Login.of(params)
        home = accounts.account(base)
        others = [accounts.account(base.then(entry)) for entry in params["accounts"] or []]
        for account in (home, *others):
            account.enter()
        with ThreadPoolExecutor(params["max_parallel"]) as pool:
            return _Run(params, check_mode, home, others, pool)(region, now)
    except aws.AwsError as exc:
        raise AmiError(str(exc)) from exc


class _Run:
    """One pruning of one account and region."""

    def __init__(
        self,
        params: t.Mapping[str, t.Any],
        check_mode: bool,
        home: aws.Account,
        others: list[aws.Account],
        pool: Executor,
    ) -> None:
        self.params = params
        self.check_mode = check_mode
        self.home = home
        self.others = others
        self.pool = pool
        self.client = home.client("ec2", params["region"])
        self.changed = False
        self.warnings: list[str] = []
        self.shared: set[str] = set()  # snapshots that more than one image has

    def __call__(self, region: str, now: datetime) -> dict[str, t.Any]:
        """Look, decide, and do it; return the result."""
        images = aws.pages(
            self.client, "describe_images", "Images", Owners=["self"], IncludeDeprecated=True, IncludeDisabled=True
        )
        held = [snapshot for image in images for snapshot in snapshot_ids(image)]
        self.shared = {snapshot for snapshot in held if held.count(snapshot) > 1}
        fates = decide(images, self.params, now)
        self._spare_the_used([fate for fate in fates if fate.goes], region)
        leftovers = self._leftovers({image["ImageId"] for image in images}, set(held))
        list(self.pool.map(self._prune, [fate for fate in fates if fate.goes]))
        reports = [fate.report(now) for fate in fates]
        result = {
            "changed": self.changed,
            "region": region,
            "account": self.home.id,
            "images": reports,
            "leftover_snapshots": leftovers,
            "summary": {action: sum(report["action"] == action for report in reports) for action in ACTIONS},
            "warnings": self.warnings,
        }
        problems = ["{image_id}: {error[code]}: {error[message]}".format(**each) for each in reports if each["error"]]
        left = [each for owner in (*reports, {"snapshots": leftovers}) for each in owner["snapshots"]]
        good = (*retire.GOOD, "kept", "would_delete")
        bad = [f"{each['id']} ({each['result']})" for each in left if each["result"] not in good]
        if bad:
            problems.append(f"these snapshots of images that are gone are left: {', '.join(bad)}; run again")
        if problems:
            result["msg"] = "; ".join(problems)
        return result

    def _spare_the_used(self, fates: list[Fate], region: str) -> None:
        mode, seen = self.params["in_use_check"], [self.home, *self.others]
        if mode == "skip" or not fates:
            return
        usages = in_use.find(seen, region, [fate.id for fate in fates], self.pool)
        known = {account.id for account in seen}

        def judge(fate: Fate) -> None:
            fate.usage = usages[fate.id]
            try:
                fate.usage.users += in_use.launch_permissions(self.home, region, fate.id, known)
            except aws.AwsError as exc:
                fate.usage.unseen.append(f"launch_permission of {self.home.id}: {exc}")
            if fate.usage.problems and mode == "warn":
                self.warnings.append(f"{fate.id} may be in use: {'; '.join(fate.usage.problems)}")
            elif fate.usage.problems:
                fate.action, fate.reason = "in_use", "; ".join(fate.usage.problems)

        list(self.pool.map(judge, fates))

    def _leftovers(self, alive: set[str], held: set[str]) -> list[dict[str, t.Any]]:
        """Delete the snapshots of images that an earlier run has deregistered."""
        if not self.params["delete_snapshots"]:
            return []
        marked = aws.pages(
            self.client,
            "describe_snapshots",
            "Snapshots",
            OwnerIds=["self"],
            Filters=[{"Name": "tag-key", "Values": [PRUNED_TAG]}],
        )
        found = []
        for snapshot in marked:
            image_id = tags_of(snapshot)[PRUNED_TAG]
            if image_id not in alive and snapshot["SnapshotId"] not in held:
                result = "would_delete"
                if not self.check_mode:
                    result = retire.delete_snapshot(self.client, snapshot["SnapshotId"])
                self.changed = self.changed or result in ("success", "would_delete")
                found.append({"id": snapshot["SnapshotId"], "image_id": image_id, "result": result})
        return found

    def _prune(self, fate: Fate) -> None:
        try:
            if self.check_mode:
                self._predict(fate)
            elif fate.action == "deprecate":
                fate.deprecated = retire.soon()
                aws.call(self.client.enable_image_deprecation, ImageId=fate.id, DeprecateAt=fate.deprecated)
                fate.action = DONE[fate.action]
            else:
                self._deregister(fate)
            self.changed = True
        except aws.AwsError as exc:
            fate.fail(exc.code, exc.message)

    def _predict(self, fate: Fate) -> None:
        if fate.action == "deregister":
            delete = self.params["delete_snapshots"]
            fate.snapshots = [
                (snapshot, ("skipped" if snapshot in self.shared else "would_delete") if delete else "kept")
                for snapshot in snapshot_ids(fate.image)
            ]
        fate.action = f"would_{fate.action}"

    def _deregister(self, fate: Fate) -> None:
        delete = self.params["delete_snapshots"]
        # Once the image is gone, nothing else says that these have to go too.
        own = [snapshot for snapshot in snapshot_ids(fate.image) if snapshot not in self.shared]
        if delete and own:
            aws.call(self.client.create_tags, Resources=own, Tags=tag_list({PRUNED_TAG: fate.id}))
        fate.snapshots = retire.deregister(self.client, fate.image, delete)
        fate.action = DONE[fate.action]


def _time(text: str) -> datetime:
    """Read a date as EC2 writes it."""
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%f%z")
