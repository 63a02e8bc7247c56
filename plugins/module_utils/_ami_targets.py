# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: may change at any time, not for use by other collections.
"""The targets of ami_copy_encrypt: from parameters to accounts, regions, names and keys that are known to work."""

from __future__ import annotations

import difflib
import re
import string
import typing as t
from concurrent.futures import Executor
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone

from ansible_collections.goldsmith.images.plugins.module_utils import _aws_session as aws
from ansible_collections.goldsmith.images.plugins.module_utils._ami import (
    ACCOUNT,
    IMAGE_ID,
    NAME,
    AmiError,
    Source,
    find_key,
)

PLACEHOLDERS = ("source_name", "source_id", "source_region", "region", "account")
KEY_ARN = re.compile(r"arn:([a-z-]+):kms:([a-z0-9-]+):([0-9]{12}):(key|alias)/.+")
KMS_ACTIONS = "kms:CreateGrant, Decrypt, DescribeKey, Encrypt, GenerateDataKey* and ReEncrypt*"
ORGANISATION = re.compile(r"arn:[a-z-]+:organizations::[0-9]{12}:organization/o-[a-z0-9]+")
UNIT = re.compile(r"arn:[a-z-]+:organizations::[0-9]{12}:ou/o-[a-z0-9]+/ou-[a-z0-9]+-[a-z0-9]+")


@dataclass
class Target:
    """One account and region that gets a copy."""

    region: str
    login: aws.Login
    wanted_account: str | None
    key: str | None  # as it was given: id, alias or ARN
    name: str
    tags: dict[str, str]
    share: dict[str, list[str]]  # UserId, OrganizationArn, OrganizationalUnitArn -> whom
    account: aws.Account | None = None
    account_id: str | None = None
    key_arn: str | None = None
    error: dict[str, t.Any] | None = None

    @property
    def place(self) -> str:
        """Return what the target is called in messages and in the journal."""
        return f"{self.account_id or self.wanted_account or self.login.role_arn or self.login.profile}/{self.region}"

    def client(self, service: str) -> t.Any:
        """Return a client of the target's account and region."""
        if self.account is None:
            raise AmiError(f"{self.place} has not been entered")
        return self.account.client(service, self.region)


@dataclass
class Request:
    """What was asked for, checked as far as that needs no network."""

    params: dict[str, t.Any]
    source: dict[str, t.Any]
    source_login: aws.Login
    targets: list[Target]
    snapshot_tags: dict[str, str] = field(default_factory=dict)
    deprecate_at: datetime | None = None
    warnings: list[str] = field(default_factory=list)


def check(params: dict[str, t.Any]) -> Request:
    """Turn the parameters into a request, or raise AmiError for what can never work."""
    source, base = params["source"], aws.Login.of(params)
    if source["image_id"] and not IMAGE_ID.fullmatch(source["image_id"]):
        raise AmiError(f"source.image_id: {source['image_id']!r} is no image id; one looks like ami-0123456789abcdef0")
    minutes = params["completion_minutes"]
    if minutes is not None and (minutes % 15 or not 15 <= minutes <= 2880):
        raise AmiError(f"completion_minutes: {minutes} is not a multiple of 15 from 15 to 2880")
    if params["source_after"] != "keep" and not params["wait"]:
        raise AmiError(
            f"source_after={params['source_after']} needs wait=true: the source is only touched when every copy has"
            " been verified"
        )
    if params["delete_source_snapshots"] and params["source_after"] != "deregister":
        raise AmiError("delete_source_snapshots needs source_after=deregister")
    limits = {"poll": (0.05, 300), "max_parallel": (1, 64), "max_parallel_per_region": (1, 20)}
    limits.update(wait_timeout=(1, 7 * 86400), retry_failed=(0, 10))
    for name, (low, high) in limits.items():
        if not low <= params[name] <= high:
            raise AmiError(f"{name}: {params[name]} is not between {low} and {high}")
    targets = [_target(params, entry, base) for entry in _entries(params)]
    for name in [params["name"], *(target.name for target in targets)]:
        _check_placeholders(name)
    snapshot_tags = tags_from("snapshot_tags", params["snapshot_tags"])
    return Request(params, source, base.then(source), targets, snapshot_tags, _date(params["deprecate_at"]))


def _check_placeholders(name: str) -> None:
    try:
        unknown = {field for _text, field, _format, _conversion in string.Formatter().parse(name) if field is not None}
    except ValueError as exc:
        raise AmiError(f"name: {name!r}: {exc}") from None
    unknown -= set(PLACEHOLDERS)
    if unknown:
        known = ", ".join(f"{{{each}}}" for each in PLACEHOLDERS)
        raise AmiError(f"name: {', '.join(sorted(unknown))} is not known in a name; these are: {known}")


def _entries(params: dict[str, t.Any]) -> list[dict[str, t.Any]]:
    if params["targets"]:
        return params["targets"]
    return [{**account, "region": region} for account in params["accounts"] or [{}] for region in params["regions"]]


def _target(params: dict[str, t.Any], entry: dict[str, t.Any], base: aws.Login) -> Target:
    region = entry["region"]
    place = f"target {entry.get('account') or entry.get('role_arn') or entry.get('profile') or 'here'}/{region}"
    if entry.get("account") and not ACCOUNT.fullmatch(entry["account"]):
        raise AmiError(f"{place}: {entry['account']!r} is no account number of 12 digits (quote it in YAML)")
    try:
        share = launch_permissions(params["share_with"], entry.get("share_with"))
    except AmiError as exc:
        raise AmiError(f"{place}: {exc}") from None
    key = entry.get("kms_key_id") or (params["kms_key_ids"] or {}).get(region)
    if key and not params["encrypted"]:
        raise AmiError(f"{place}: kms_key_id {key} and encrypted=false exclude each other")
    arn = KEY_ARN.fullmatch(key or "")
    if key and key.startswith("arn:") and not arn:
        raise AmiError(f"{place}: {key} is no ARN of a key or of an alias")
    if arn and arn.group(2) != region:
        raise AmiError(f"{place}: the key {key} is in {arn.group(2)}; a copy needs a key of its own region")
    try:
        tags = {**tags_from("tags", params["tags"]), **tags_from("tags", entry.get("tags"))}
    except AmiError as exc:
        raise AmiError(f"{place}: {exc}") from None
    return Target(region, base.then(entry), entry.get("account"), key, entry.get("name") or params["name"], tags, share)


def tags_from(name: str, given: t.Mapping[str, t.Any] | None) -> dict[str, str]:
    """Return tags as text: YAML makes numbers and booleans of some. Raises AmiError."""
    for key, value in (given or {}).items():
        if value is None or isinstance(value, (dict, list)):
            raise AmiError(f"{name}: the value of {key!r} is {value!r}; a tag is a text, a number or a boolean")
    return {str(key): str(value) for key, value in (given or {}).items()}


def launch_permissions(*given: t.Mapping[str, t.Any] | None) -> dict[str, list[str]]:
    """Return what *share_with* means in EC2's words, kind -> whom; several add up. Raises AmiError."""
    share: dict[str, list[str]] = {"UserId": [], "OrganizationArn": [], "OrganizationalUnitArn": []}
    for each in given:
        for kind, name, shape in (
            ("UserId", "accounts", ACCOUNT),
            ("OrganizationArn", "orgs", ORGANISATION),
            ("OrganizationalUnitArn", "ous", UNIT),
        ):
            for whom in (each or {}).get(name) or []:
                if not shape.fullmatch(whom):
                    what = (
                        "account number of 12 digits (quote it in YAML)" if name == "accounts" else "ARN of that kind"
                    )
                    raise AmiError(f"share_with.{name}: {whom!r} is no {what}")
                if whom not in share[kind]:
                    share[kind].append(whom)
    return share


def _date(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        # Python 3.9 does not know the Z.
        date = datetime.fromisoformat(re.sub(r"Z$", "+00:00", text))
        date = date if date.tzinfo else date.replace(tzinfo=timezone.utc)
        date = date.astimezone(timezone.utc).replace(second=0, microsecond=0)  # as EC2 keeps it
    except (ValueError, OverflowError):
        raise AmiError(f"deprecate_at: {text!r} is no date like 2027-01-31 or 2027-01-31T12:00:00Z") from None
    if date > datetime.now(timezone.utc) + timedelta(days=3652):
        raise AmiError(f"deprecate_at: {text} is more than ten years away, which EC2 does not take")
    return date


def enter_source(account: aws.Account, region: str) -> None:
    """Enter the source's account; STS is asked in the source's region. Raises AmiError or AwsError."""
    try:
        account.enter()
    except aws.AwsError as exc:
        if exc.code not in ("EndpointConnectionError", "InvalidClientTokenId"):
            raise
        raise AmiError(
            f"source.region: {region} is no region or not enabled, unless the network or the credentials are at fault:"
            f" {exc}"
        ) from exc


def enter(request: Request, source: aws.Account, accounts: aws.Aws, pool: Executor) -> None:
    """Enter each account and look whether its region can be used. A role that is refused is that target's error."""
    for target in request.targets:
        try:
            target.account = accounts.account(target.login)
            target.account.client("sts")
        except aws.AwsError as exc:
            target.account, target.error = None, exc.report()
    entered: dict[int, aws.Account] = {id(a.account): a.account for a in request.targets if a.account is not None}
    problems = dict(zip(entered, pool.map(_identity_error, entered.values())))
    for target in request.targets:
        problem = problems.get(id(target.account)) if target.account is not None else None
        if problem is not None:
            target.account, target.error = None, problem
        elif target.account is not None:
            target.account_id = target.account.id
            if target.wanted_account not in (None, target.account_id):
                raise AmiError(
                    f"the target {target.wanted_account}/{target.region} is entered as"
                    f" {target.account.identity['Arn']}: give it the profile or the role_arn of its own account"
                )
    seen: dict[str, Target] = {}
    for target in request.targets:
        if seen.setdefault(target.place, target) is not target:
            raise AmiError(f"the target {target.place} is there twice")
    _check_regions(request, source, [entered[key] for key, problem in problems.items() if problem is None], pool)


def _identity_error(account: aws.Account) -> dict[str, str] | None:
    try:
        account.enter()
    except aws.AwsError as exc:
        return exc.report()
    return None


def _regions(client: t.Any) -> dict[str, str] | aws.AwsError:
    """Return the regions and whether an account has them enabled, or why it does not say so."""
    try:
        regions = aws.call(client.describe_regions, AllRegions=True)["Regions"]
    except aws.AwsError as exc:
        return exc
    return {region["RegionName"]: region.get("OptInStatus", "opt-in-not-required") for region in regions}


def _check_regions(request: Request, source: aws.Account, accounts: t.Iterable[aws.Account], pool: Executor) -> None:
    for target in request.targets:
        arn = KEY_ARN.fullmatch(target.key or "")
        if arn and arn.group(1) != source.partition:
            raise AmiError(
                f"{target.place}: {target.key} is in the partition {arn.group(1)}, not in {source.partition}"
            )
        try:
            partition = source.partition_of(target.region)
        except aws.AwsError:
            continue  # a name that botocore does not know; EC2 is asked below
        if partition != source.partition:
            raise AmiError(
                f"{target.place}: the region is in the partition {partition}, the source in {source.partition};"
                " images cannot be copied from one to the other"
            )
    home = request.source["region"]
    good = {id(account): account for account in accounts}
    good[id(source)] = source
    clients = [account.client("ec2", home) for account in good.values()]
    found = dict(zip(good, pool.map(_regions, clients)))
    _check_region(f"source.region: {home}", home, found[id(source)])
    for target in request.targets:
        if target.account is not None:
            try:
                _check_region(f"{target.place}: {target.region}", target.region, found[id(target.account)])
            except aws.AwsError as exc:
                target.account, target.error = None, exc.report()


def _check_region(place: str, region: str, enabled: dict[str, str] | aws.AwsError) -> None:
    if isinstance(enabled, aws.AwsError):
        raise enabled
    if region not in enabled:
        near = difflib.get_close_matches(region, enabled, 2)
        raise AmiError(f"{place} is no region{f'; did you mean {near[0]}?' if near else ''}")
    if enabled[region] == "not-opted-in":
        raise AmiError(f"{place} is not enabled in the account; enable it under Account, AWS Regions")


def name_targets(request: Request, source: Source) -> None:
    """Fill in the names; they are only needed where a copy is made, so a source that is gone leaves them empty."""
    for target in request.targets:
        values = {
            "source_name": str((source.image or {}).get("Name", "")),
            "source_id": source.image_id,
            "source_region": source.region,
            "region": target.region,
            "account": target.account_id or target.wanted_account or "",
        }
        target.name = target.name.format(**values)
        if source.image is not None and not NAME.fullmatch(target.name):
            raise AmiError(
                f"{target.place}: the name {target.name!r} is not one of 3 to 128 letters, digits, spaces and"
                " ( ) [ ] . / - ' @ _"
            )


def find_keys(request: Request, pool: Executor) -> None:
    """Ask KMS for each key, because CopyImage does not."""
    targets = [target for target in request.targets if target.account is not None]
    if not request.params["encrypted"]:
        return
    # Clients are made here, in the main thread, and it takes long: the first keys are asked for meanwhile.
    jobs = ((target, target.client("ec2"), target.client("kms")) for target in targets)
    problems = [problem for problem in pool.map(lambda job: _find_key(request, *job), jobs) if problem]
    if problems:
        raise AmiError("; ".join(problems))


def _find_key(request: Request, target: Target, ec2: t.Any, kms: t.Any) -> str | None:
    """Resolve a target's key; return what is wrong with it."""
    try:
        found = find_key(ec2, kms, target.key, target.region, any(target.share.values()))
    except AmiError as exc:
        return f"{target.place}: {exc}"
    target.key_arn = found["Arn"]
    _try_key(request, target, kms, found)
    return None


def _try_key(request: Request, target: Target, kms: t.Any, found: dict[str, t.Any]) -> None:
    """Warn if the credentials may not use a key. It may be for EC2 alone (kms:ViaService), so this is no refusal."""
    if found["KeyManager"] == "AWS":
        return  # always for EC2 alone
    try:
        aws.call(kms.generate_data_key_without_plaintext, KeyId=found["Arn"], KeySpec="AES_256", DryRun=True)
    except aws.AwsError as exc:
        # What else it may be, DryRunOperationException above all, says nothing against the key.
        if exc.code == "AccessDeniedException":
            request.warnings.append(
                f"{target.place}: unless the policy of {found['Arn']} lets EC2 use it for these credentials, the copy"
                f" will fail; needed are {KMS_ACTIONS}: {exc}"
            )


def check_plain(request: Request, targets: list[Target], pool: Executor) -> None:
    """Refuse encrypted=false where the account encrypts every new copy, whatever is asked for."""
    if request.params["encrypted"]:
        return

    def problem(job: tuple[Target, t.Any]) -> str | None:
        target, client = job
        try:
            if not aws.call(client.get_ebs_encryption_by_default)["EbsEncryptionByDefault"]:
                return None
        except aws.AwsError as exc:
            request.warnings.append(f"{target.place}: nobody knows whether EBS encrypts by default there: {exc}")
            return None
        return f"{target.place}: encrypted=false, but EBS encryption by default is on there, so no copy stays plain"

    problems = [found for found in pool.map(problem, [(target, target.client("ec2")) for target in targets]) if found]
    if problems:
        raise AmiError("; ".join(problems))


def check_source(request: Request, source: Source, needed: bool) -> None:
    """Refuse what the source does not allow; *needed* says whether a copy is to be made."""
    image, after = source.image, request.params["source_after"]
    if image is None:
        if needed:
            raise AmiError(
                f"there is no image {source.image_id} in {source.region}, or {source.account.id} may not see it"
            )
        return
    if needed and image["State"] != "available":
        raise AmiError(f"the source {source.image_id} is {image['State']}, not available")
    if image.get("RootDeviceType") == "instance-store" and request.params["encrypted"]:
        raise AmiError(f"the source {source.image_id} is backed by instance store; such an image cannot be encrypted")
    if after != "keep" and not source.owned:
        raise AmiError(
            f"source_after={after}: {source.image_id} belongs to {image.get('OwnerId')}, not to {source.account.id}"
        )
    if after == "deregister" and str(image.get("DeregistrationProtection", "")).startswith("enabled"):
        raise AmiError(
            f"source_after=deregister: {source.image_id} is protected against it; see"
            " aws ec2 disable-image-deregistration-protection"
        )
    encrypted = any(snapshot["Encrypted"] for snapshot in source.snapshots)
    if needed and encrypted and not request.params["encrypted"]:
        raise AmiError(f"encrypted=false: {source.image_id} is encrypted, and EC2 makes no plain copy of such an image")
    if needed and request.deprecate_at and request.deprecate_at < datetime.now(timezone.utc):
        raise AmiError(f"deprecate_at: {request.params['deprecate_at']} is over")
