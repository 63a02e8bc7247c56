# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A cloud to test against: moto's server, with those answers of EC2 put right that moto makes up.

Moto's CopyImage is done at once and ignores encryption, keys, tags and client tokens; an image has one snapshot of
15 GiB, is invisible to the accounts it is shared with, and keeps its snapshots when it is deregistered. `Cloud` changes
that and adds what a real cloud does to its users: copies that take long or fail, images not visible yet, limits,
throttling.
tests/integration/test_cloud.py holds every answer against botocore's own model of the service.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from types import SimpleNamespace
from typing import Any
from unittest import mock

# 9,000 images in each region take moto seconds; read when moto is imported.
os.environ["MOTO_EC2_LOAD_DEFAULT_AMIS"] = "false"

from moto.core.base_backend import BackendDict
from moto.core.responses import ActionResult, EmptyResult
from moto.ec2.exceptions import EC2ClientError
from moto.ec2.models import ec2_backends
from moto.ec2.models.amis import Ami
from moto.ec2.models.elastic_block_store import Snapshot
from moto.ec2.responses.amis import AmisResponse
from moto.ec2.responses.elastic_block_store import ElasticBlockStore
from moto.ec2.utils import generic_filter, random_ami_id, random_snapshot_id
from moto.iam.models import get_account_id_from
from moto.kms.models import Key, kms_backends
from moto.server import ThreadedMotoServer

HOME = "123456789012"  # the account that any unknown access key belongs to
FILTER_VALUES = 200  # that EC2 takes in a filter
KEYS = {"access_key": "AKIAIOSFODNN7EXAMPLE", "secret_key": "not-a-secret"}


@dataclass(frozen=True)
class Call:
    """A request as it came in, and what it was answered."""

    number: int
    account: str
    region: str
    service: str
    action: str
    params: dict[str, list[str]] = field(default_factory=dict, repr=False)
    status: int = 0
    body: bytes = field(default=b"", repr=False)


@dataclass
class Cloud:
    """The running cloud. What is set here may be changed at any time."""

    polls: int = 1  # how many DescribeImages still show a copy as pending
    seconds: Callable[[str, str], float] = lambda account, region: 0.0  # and how long at least
    invisible: int = 0  # how many DescribeImages do not show a new copy at all
    limit: int = 20  # snapshots that may be copied at once to one account and region
    failures: dict[tuple[str, str], list[str]] = field(default_factory=dict)  # StateReason of the next copies there
    throttle: Counter[str] = field(default_factory=Counter)  # action -> how many calls are refused
    refuse: dict[tuple[str, str], str] = field(default_factory=dict)  # (account, action) -> the error's code
    # snapshot -> ReturnCode instead of deleting it with its image; None: the answer does not name it
    deletions: dict[str, str | None] = field(default_factory=dict)
    late_permissions: int = 0  # how many CopyImage of other accounts do not know yet that they may
    before: Callable[[Call], bool | None] = lambda call: None  # true: the request is lost on its way
    after: Callable[[Call], None] = lambda call: None  # the answer is known and not sent yet
    calls: list[Call] = field(default_factory=list)
    url: str = ""
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _tokens: dict[tuple[str, str, str], tuple[str, Any]] = field(default_factory=dict)

    # ------------------------------------------------------------------------------------------ for tests to look at
    def images(self, account: str, region: str) -> list[Any]:
        """All images of an account in a region."""
        return list(ec2_backends[account][region].amis.values())

    def snapshots(self, account: str, region: str) -> list[Any]:
        """All its snapshots there."""
        return list(ec2_backends[account][region].snapshots.values())

    def orphans(self, account: str, region: str) -> list[str]:
        """Its snapshots that no image has."""
        held = {device.id for image in self.images(account, region) for device in image.__dict__.get("devices", [])}
        return [snapshot.id for snapshot in self.snapshots(account, region) if snapshot.id not in held]

    def count(self, action: str) -> int:
        """How often an action was called."""
        return sum(call.action == action for call in self.calls)

    def changes(self, since: int = 0) -> list[str]:
        """The calls that were not only questions."""
        # A data key is only asked for as a dry run.
        reads = ("Describe", "GenerateDataKey", "Get", "List", "AssumeRole")
        return [call.action for call in self.calls[since:] if not call.action.startswith(reads)]

    # -------------------------------------------------------------------------------------------- for tests to set up
    def image(
        self,
        region: str = "eu-west-1",
        account: str = HOME,
        name: str = "golden",
        sizes: Iterable[int] = (8,),
        key: str | None = None,
        **attributes: Any,
    ) -> str:
        """Make an available image with a snapshot of each size in GiB; encrypted if there is a *key* (an ARN)."""
        backend = ec2_backends[account][region]
        image = new_image(backend, name=name)
        image.devices = [new_snapshot(backend, image.id, size, key) for size in sizes]
        for attribute, value in attributes.items():
            setattr(image, attribute, value)
        return image.id

    def key(self, region: str, account: str = HOME, alias: str | None = None, spec: str = "SYMMETRIC_DEFAULT") -> str:
        """Make a customer's key and return its ARN."""
        backend = kms_backends[account][region]
        usage = "ENCRYPT_DECRYPT" if spec == "SYMMETRIC_DEFAULT" else "SIGN_VERIFY"
        key = backend.create_key("", usage, spec, "", None)
        if alias:
            backend.create_alias(key.id, alias)
        return key.arn

    def reset(self) -> None:
        """Begin anew: an empty cloud with the default settings."""
        fresh = Cloud(url=self.url)
        for name in {each.name for each in fields(self)} - {"_lock"}:
            setattr(self, name, getattr(fresh, name))
        for backends in BackendDict._instances:
            for account in list(backends.values()):
                account.reset()

    # ----------------------------------------------------------------------------------------------------- the server
    @classmethod
    @contextlib.contextmanager
    def running(cls, **settings: Any) -> Iterator[Cloud]:
        """Run a cloud on loopback. It changes moto in this process for as long as it runs."""
        cloud = cls(**settings)
        logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
        server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        server.start()
        try:
            server._server.app = cloud._middleware(server._server.app)  # moto offers no hook
            cloud.url = "http://{}:{}".format(*server.get_host_and_port())
            with contextlib.ExitStack() as stack:
                for owner, name, value in cloud._patches():
                    stack.enter_context(mock.patch.object(owner, name, value, create=True))
                yield cloud
        finally:
            server.stop()
            cloud.reset()

    def _middleware(self, app: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
        def handle(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            environ["wsgi.input"] = io.BytesIO(body)
            with self._lock:
                call = describe(environ, body, len(self.calls) + 1)
                self.calls.append(call)
                refused = self.refuse.get((call.account, call.action))
                if self.throttle[call.action] > 0:
                    self.throttle[call.action] -= 1
                    refused = "RequestLimitExceeded"
                if any(name.endswith(f".Value.{FILTER_VALUES + 1}") for name in call.params):
                    refused = "FilterLimitExceeded"
            lost = self.before(call)
            seen: list[Any] = []

            def start(status: str, headers: Any, exc_info: Any = None) -> None:
                seen.extend((status, headers))

            if lost:
                parts, seen = [b""], ["500 Lost", []]
            elif refused:
                parts = [error_body(call.service, refused)]
                seen += ["503 Slow down" if refused.startswith("Request") else "403 Forbidden", []]
            else:
                parts = list(app(environ, start))
            done = replace(call, status=int(seen[0].split()[0]), body=b"".join(parts))
            with self._lock:
                if call in self.calls:  # not if the cloud was reset meanwhile
                    self.calls[self.calls.index(call)] = done
            self.after(done)
            start_response(*seen)
            return parts

        return handle

    # ------------------------------------------------------------------------------------------- what is put right
    def _patches(self) -> Iterator[tuple[type, str, Any]]:
        cloud = self

        def answer(name: str, function: Callable[[Any, Any, Callable[..., Any]], Any]) -> tuple[type, str, Any]:
            def method(response: Any) -> Any:
                def get(parameter: str, default: Any = None) -> Any:
                    return response._get_param(parameter, default)

                response.error_on_dryrun()
                with cloud._lock:
                    result = function(response, response.ec2_backend, get)
                return EmptyResult() if result is None else ActionResult(result)

            owner = ElasticBlockStore if name in ("modify_snapshot_attribute", "delete_snapshot") else AmisResponse
            return owner, name, method

        for name in (
            "copy_image",
            "deregister_image",
            "describe_images",
            "disable_image",
            "enable_image_deprecation",
            "get_ebs_default_kms_key_id",
            "modify_snapshot_attribute",
            "register_image",
        ):
            yield answer(name, getattr(self, f"_{name}"))
        yield Ami, "block_device_mappings", property(mappings)
        # The key that AWS makes for EBS by itself is AWS's.
        yield Key, "key_manager", property(manager, lambda key, value: None)

    def _copy_image(self, response: Any, backend: Any, get: Callable[..., Any]) -> Any:
        account, region = backend.account_id, backend.region_name
        asked = {key: value for key, value in response.params.items() if key not in ("ClientToken", "DryRun")}
        token = (account, region, get("ClientToken", ""))
        if token[2] and token in self._tokens:
            image_id, before = self._tokens[token]
            if before != asked:
                raise EC2ClientError("IdempotentParameterMismatch", "The token was used with other parameters.")
            return {"ImageId": image_id}
        source = find_image(get("SourceImageId"), get("SourceRegion"), account)
        if source.owner_id != account and self.late_permissions > 0:
            self.late_permissions -= 1
            # The image is seen before its snapshots.
            raise no_storage(source.id) if self.late_permissions == 0 else no_image(source.id)
        key, wanted = get("KmsKeyId"), get("Encrypted", False)
        if key and not wanted:
            raise EC2ClientError("InvalidParameterDependency", "The parameter KmsKeyId requires Encrypted to be set.")
        if not wanted and (backend.ebs_encryption_by_default or any(each.encrypted for each in source.devices)):
            key = "alias/aws/ebs"
        pending = sum(len(image.devices) for image in backend.amis.values() if image.state == "pending")
        if pending + len(source.devices) > self.limit:
            message = f"Too many snapshot copies in progress. The limit is {self.limit} for this destination region."
            raise EC2ClientError("ResourceLimitExceeded", message)
        image = new_image(backend, name=get("Name"), description=get("Description"), source_ami=source)
        image.state, image.polls, image.hidden = "pending", self.polls, self.invisible
        image.ready = time.monotonic() + self.seconds(account, region)
        image.source_image_id, image.source_image_region = get("SourceImageId"), get("SourceRegion")
        arn, image.failure = resolve(key or "alias/aws/ebs", account, region) if wanted or key else (None, None)
        if self.failures.get((account, region)):
            image.failure = self.failures[account, region].pop(0)
        image.devices = [new_snapshot(backend, image.id, old.volume.size, arn) for old in source.devices]
        if get("CopyImageTags") and source.owner_id == account:
            image.add_tags({tag["key"]: tag["value"] for tag in source.get_tags()})
        add_tags(get("TagSpecifications", []), image)
        self._tokens[token] = (image.id, asked)
        return {"ImageId": image.id}

    def _describe_images(self, response: Any, backend: Any, get: Callable[..., Any]) -> Any:
        filters = response._filters_from_querystring()
        ids, owners = get("ImageIds", []), get("Owners", [])
        pool = [*backend.amis.values(), *shared_with(backend.account_id, backend.region_name)]
        # Who asks for some images sees these go on; a copy does not become ready because others are looked at.
        asked = set(ids) | set(filters.get("image-id", [])) or {image.id for image in pool}
        visible = [image for image in pool if image.id not in asked or settle(image)]
        missing = set(ids) - {image.id for image in visible} - set(backend.deleted_amis)
        if missing:
            message = f"The image id '[{', '.join(sorted(missing))}]' does not exist"
            raise EC2ClientError("InvalidAMIID.NotFound", message)
        owned = {backend.account_id if owner == "self" else owner for owner in owners}
        found = [
            image
            for image in visible
            if (not ids or image.id in ids)
            and (not owned or image.owner_id in owned)
            and (image.state != "disabled" or get("IncludeDisabled", False))
        ]
        found = generic_filter(filters, found)
        start, size = int(get("NextToken") or 0), int(get("MaxResults") or 1000)
        page: dict[str, Any] = {"Images": found[start : start + size]}
        if len(found) > start + size:
            page["NextToken"] = str(start + size)
        return page

    def _deregister_image(self, response: Any, backend: Any, get: Callable[..., Any]) -> Any:
        image = backend.amis.get(get("ImageId"))
        if image is not None and image.protected:
            raise EC2ClientError("OperationNotPermitted", "The image has deregistration protection enabled.")
        backend.deregister_image(get("ImageId"))
        if not get("DeleteAssociatedSnapshots", False):
            return {"Return": True}
        kept = {snapshot.id for other in backend.amis.values() for snapshot in other.devices}
        results = []
        for snapshot in image.devices:
            code = self.deletions.get(snapshot.id, "skipped" if snapshot.id in kept else "success")
            if code == "success":
                backend.snapshots.pop(snapshot.id, None)
            if code is not None:
                results.append({"SnapshotId": snapshot.id, "ReturnCode": code})
        return {"Return": True, "DeleteSnapshotResults": results}

    def _disable_image(self, response: Any, backend: Any, get: Callable[..., Any]) -> Any:
        backend.disable_image(get("ImageId"))
        backend.amis[get("ImageId")].launch_permissions.clear()
        return {"Return": True}

    def _enable_image_deprecation(self, response: Any, backend: Any, get: Callable[..., Any]) -> Any:
        image = find_image(get("ImageId"), backend.region_name, backend.account_id)
        image.deprecation_time = get("DeprecateAt").strftime("%Y-%m-%dT%H:%M:00.000Z")
        return {"Return": True}

    def _get_ebs_default_kms_key_id(self, response: Any, backend: Any, get: Callable[..., Any]) -> Any:
        arn = backend.default_kms_key_id or resolve("alias/aws/ebs", backend.account_id, backend.region_name)[0]
        return {"KmsKeyId": arn}

    def _modify_snapshot_attribute(self, response: Any, backend: Any, get: Callable[..., Any]) -> Any:
        snapshot = backend.get_snapshot(get("SnapshotId"))
        users, groups = get("UserIds", []), get("GroupNames", [])
        if get("OperationType") == "remove":
            return backend.remove_create_volume_permission(snapshot.id, users, groups)
        if snapshot.encrypted and (groups or is_managed(snapshot.kms_key_id)):
            message = "Encrypted snapshots with EBS default key cannot be shared"
            raise EC2ClientError("OperationNotPermitted", message)
        return backend.add_create_volume_permission(snapshot.id, users, groups)

    def _register_image(self, response: Any, backend: Any, get: Callable[..., Any]) -> Any:
        if any(image.name == get("Name") for image in backend.amis.values()):
            raise EC2ClientError("InvalidAMIName.Duplicate", f"AMI name {get('Name')} is already in use.")
        devices = [backend.get_snapshot(item["Ebs"]["SnapshotId"]) for item in get("BlockDeviceMappings", [])]
        image = new_image(backend, name=get("Name"), description=get("Description", ""))
        image.devices, image.hidden = devices, self.invisible
        image.volumes = {item["Ebs"]["SnapshotId"]: item["Ebs"] for item in get("BlockDeviceMappings", [])}
        for snapshot in devices:
            snapshot.from_ami = image.id
        for parameter, attribute in REGISTERED.items():
            if get(parameter) is not None:
                setattr(image, attribute, get(parameter))
        add_tags(get("TagSpecifications", []), image)
        return {"ImageId": image.id}


REGISTERED = {
    "Architecture": "architecture",
    "BootMode": "boot_mode",
    "EnaSupport": "ena_support",
    "ImdsSupport": "imds_support",
    "RootDeviceName": "root_device_name",
    "TpmSupport": "tpm_support",
    "VirtualizationType": "virtualization_type",
}
# What moto's images lack.
Ami.devices = ()
Ami.volumes = {}  # what RegisterImage was told of the volume of a snapshot
Ami.failure = Ami.source_image_id = Ami.source_image_region = Ami.state_reason = Ami.deprecation_time = None
Ami.protected = False
Ami.polls = Ami.hidden = 0
Ami.ready = 0.0


def describe(environ: dict[str, Any], body: bytes, number: int) -> Call:
    """Return who asks for what."""
    scope = environ.get("HTTP_AUTHORIZATION", "").partition("Credential=")[2].split(",")[0].split("/")
    key, _date, region, service = [*scope, "", "", "", ""][:4]
    form = urllib.parse.parse_qs(body.decode("utf-8", "replace")) if b"Action=" in body else {}
    action = form.get("Action", [environ.get("HTTP_X_AMZ_TARGET", environ["PATH_INFO"]).rpartition(".")[2]])[0]
    return Call(number, get_account_id_from(key), region, service, action, form)


def error_body(service: str, code: str) -> bytes:
    """Return an error as *service* sends it."""
    if service == "ec2":
        return f"<Response><Errors><Error><Code>{code}</Code><Message>Refused by the test.</Message></Error></Errors>\
<RequestID>1</RequestID></Response>".encode()
    if service in ("sts", "autoscaling"):
        return f"<ErrorResponse><Error><Code>{code}</Code><Message>Refused by the test.</Message></Error>\
<RequestId>1</RequestId></ErrorResponse>".encode()
    return f'{{"__type": "{code}", "message": "Refused by the test."}}'.encode()


def new_image(backend: Any, **attributes: Any) -> Any:
    """Make an image without snapshots."""
    image = Ami(backend, random_ami_id(), root_device_type="ebs", **attributes)
    backend.snapshots.pop(image.ebs_snapshot.id)
    backend.amis[image.id] = image
    return image


def new_snapshot(backend: Any, image_id: str, size: int, key: str | None) -> Any:
    """Make a snapshot of an image."""
    volume = SimpleNamespace(id="vol-ffffffff", size=size)
    snapshot = Snapshot(
        backend, random_snapshot_id(), volume, f"Copied for {image_id}", kms_key_id=key, from_ami=image_id
    )
    backend.snapshots[snapshot.id] = snapshot
    return snapshot


def mappings(image: Any) -> list[dict[str, Any]]:
    """The devices of an image; of a pending one there is nothing to see yet."""
    if image.state == "pending" or image.root_device_type == "instance-store":
        return []
    names = [image.root_device_name, *(f"/dev/sd{letter}" for letter in "bcdefghijklmnopqrstuvwxyz")]
    return [
        {
            "DeviceName": name,
            "Ebs": {
                "SnapshotId": snapshot.id,
                "VolumeSize": snapshot.volume.size,
                "DeleteOnTermination": True,
                "VolumeType": "gp3",
                "Encrypted": snapshot.encrypted,
                **image.volumes.get(snapshot.id, {}),
            },
        }
        for name, snapshot in zip(names, image.devices, strict=False)
    ]


def settle(image: Any) -> bool:
    """Let an image that is looked at go on; return whether it is to be seen."""
    if image.hidden > 0:
        image.hidden -= 1
        return False
    if image.state == "pending":
        image.polls -= 1
        if image.polls < 0 and time.monotonic() >= image.ready:
            image.state = "failed" if image.failure else "available"
            if image.failure:
                image.state_reason = {"Code": "Client.UnsupportedOperation", "Message": image.failure}
                for snapshot in image.devices:
                    image.ec2_backend.snapshots.pop(snapshot.id, None)
                image.devices = []
    return True


def shared_with(account: str, region: str) -> list[Any]:
    """Images of other accounts that *account* may launch."""
    others = [ec2_backends[other][region] for other in list(ec2_backends) if other != account]
    wanted = ({"UserId": account}, {"Group": "all"})
    return [
        image
        for backend in others
        for image in backend.amis.values()
        if any(permission in image.launch_permissions for permission in wanted)
    ]


def find_image(image_id: str, region: str, account: str) -> Any:
    """Return an image that *account* may copy; sharing it means to share its snapshots too."""
    backend = ec2_backends[account][region]
    if image_id in backend.amis:
        return backend.amis[image_id]
    for image in shared_with(account, region):
        if image.id == image_id:
            for snapshot in image.devices:
                users, groups = snapshot.create_volume_permission_userids, snapshot.create_volume_permission_groups
                if account not in users and "all" not in groups:
                    raise no_storage(image_id)
            return image
    raise no_image(image_id)


def no_image(image_id: str) -> EC2ClientError:
    """The error of who does not know an image."""
    return EC2ClientError("InvalidAMIID.NotFound", f"The image id '[{image_id}]' does not exist")


def no_storage(image_id: str) -> EC2ClientError:
    """The error of who may use an image and not its snapshots."""
    message = f"You do not have permission to access the storage of this ami {image_id}"
    return EC2ClientError("InvalidRequest", message)


def resolve(key: str, account: str, region: str) -> tuple[str | None, str | None]:
    """Return a key's ARN, and why a copy with it will fail: CopyImage itself takes any key."""
    refusal = "Given key ID is not accessible. You must have DescribeKey permissions on the default CMK."
    if key.startswith("arn:"):
        _arn, _partition, _kms, region_of_key, account, _rest = key.split(":", 5)
        if region_of_key != region:
            return key, refusal
    try:
        found = kms_backends[account][region].describe_key(key)
    except (KeyError, TypeError, AttributeError):
        return key, refusal
    return found.arn, None if found.enabled else refusal


def manager(key: Any) -> str:
    """Return whose key it is."""
    return "AWS" if any(alias.startswith("alias/aws/") for alias in key.aliases) else "CUSTOMER"


def is_managed(arn: str) -> bool:
    """Return whether a key is one of AWS's own."""
    _arn, _partition, _kms, region, account, resource = arn.split(":", 5)
    return manager(kms_backends[account][region].keys[resource.partition("/")[2]]) == "AWS"


def add_tags(specifications: list[dict[str, Any]], image: Any) -> None:
    """Tag an image and its snapshots as a TagSpecification says."""
    for specification in specifications:
        tags = {tag["Key"]: tag["Value"] for tag in specification["Tags"]}
        for resource in [image] if specification["ResourceType"] == "image" else image.devices:
            resource.add_tags(tags)
