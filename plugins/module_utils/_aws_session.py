# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: may change at any time, not for use by other collections.
"""AWS accounts and how they are entered; their clients; errors with a code; patience with limits.

Clients are made in the main thread and used by any: sessions of boto3 are not thread-safe, clients are.
"""

from __future__ import annotations

import functools
import random
import threading
import time
import traceback
import typing as t
from dataclasses import dataclass, field

try:
    import boto3
    import botocore.config
    import botocore.credentials
    import botocore.exceptions
    import botocore.loaders
    import botocore.parsers
    import botocore.session
except ImportError:
    BOTO3_ERROR: str | None = traceback.format_exc()
else:
    BOTO3_ERROR = None

# Limits that end by themselves when other work ends. botocore retries only what is throttled by rate.
BUSY_CODES = frozenset(
    (
        "ConcurrentSnapshotLimitExceeded",
        "ConcurrentTagAccess",
        "PendingSnapshotLimitExceeded",
        "ResourceLimitExceeded",
        "SnapshotCopyLimitExceeded",
        "SnapshotCreationPerVolumeRateExceeded",
    )
)
# The longest that an assumed role chained to another may last. Shorter ones would be refreshed all the time.
ROLE_SECONDS = 3600

LOGIN_SPEC: dict[str, t.Any] = {
    "profile": {"type": "str"},
    "access_key": {"type": "str", "no_log": False},
    "secret_key": {"type": "str", "no_log": True},
    "session_token": {"type": "str", "no_log": True},
    "role_arn": {"type": "str"},
    "external_id": {"type": "str"},
    "endpoint_url": {"type": "str"},
    "ca_bundle": {"type": "path"},
}
LOGIN_RULES: dict[str, t.Any] = {
    "required_together": [("access_key", "secret_key")],
    "mutually_exclusive": [("profile", "access_key")],
}


class AwsError(Exception):
    """A call that AWS refused, or that did not reach it. *code* is AWS's own, or the name of botocore's error."""

    def __init__(self, code: str, message: str, status: int = 0) -> None:
        super().__init__(f"{code}: {message}" if code else message)
        self.code = code
        self.message = message
        self.status = status  # of HTTP; 0 without an answer

    @property
    def busy(self) -> bool:
        """Return whether the same call succeeds when other work has ended."""
        in_progress = self.code.endswith("LimitExceeded") and "in progress" in self.message
        return self.code in BUSY_CODES or in_progress

    @property
    def refused(self) -> bool:
        """Return whether the call had no effect, and has none however often it is repeated."""
        throttled = "Throttl" in self.code or self.code.startswith("RequestLimitExceeded")
        definite = 400 <= self.status < 500 or self.code == "ParamValidationError"
        return definite and not throttled and not self.busy

    def report(self) -> dict[str, str]:
        """Return what a module's result says of it."""
        return {"code": self.code, "message": self.message}


def call(function: t.Callable[..., t.Any], patience: float = 0, **parameters: t.Any) -> t.Any:
    """Call a client's method; wait up to *patience* seconds for a limit to end. Raises AwsError."""
    deadline, pause = time.monotonic() + patience, 1.0
    while True:
        try:
            return function(**parameters)
        except (
            botocore.exceptions.ClientError,
            botocore.exceptions.BotoCoreError,
            botocore.parsers.ResponseParserError,
        ) as exc:
            error = explain(exc)
            left = deadline - time.monotonic()
            if not error.busy or left <= 0:
                raise error from exc
            # Half of it at random, so that those who wait for the same limit do not come back together.
            time.sleep(min(left, pause * random.uniform(0.5, 1)))
            pause = min(pause * 2, 60)


def pages(client: t.Any, operation: str, key: str, **parameters: t.Any) -> list[t.Any]:
    """Return all items of a list that AWS gives page by page; *operation* in snake case."""

    def collect() -> list[t.Any]:
        return [item for page in client.get_paginator(operation).paginate(**parameters) for item in page.get(key, [])]

    return call(collect)


def explain(error: Exception) -> AwsError:
    """Turn an error of botocore into ours."""
    if isinstance(error, AwsError):
        return error
    details = getattr(error, "response", None)
    if isinstance(details, dict) and isinstance(details.get("Error"), dict):
        code = str(details["Error"].get("Code") or "Unknown")
        message = str(details["Error"].get("Message") or error)
        if "Encoded authorization failure message" in message:
            message += " (aws sts decode-authorization-message tells which policy)"
        return AwsError(code, message, details.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    return AwsError(type(error).__name__, str(error))


@functools.cache
def loader() -> t.Any:
    """Return botocore's loader: the models of the services are read once a process, not once an account."""
    return botocore.loaders.create_loader()


@dataclass(frozen=True)
class Login:
    """How an account is entered: a profile or keys (neither: what botocore finds), then perhaps a role."""

    profile: str | None = None
    access_key: str | None = None
    secret_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    role_arn: str | None = None
    external_id: str | None = field(default=None, repr=False)

    @classmethod
    def of(cls, params: t.Mapping[str, t.Any]) -> Login:
        """Return the login that a module's parameters describe."""
        return cls(**{name: params.get(name) for name in cls.__dataclass_fields__})

    def then(self, params: t.Mapping[str, t.Any] | None) -> Login:
        """Return the login of an account that is entered from this one: by a profile of its own, or by a role."""
        params = params or {}
        profile, role, external_id = (params.get(name) for name in ("profile", "role_arn", "external_id"))
        if profile:
            return Login(profile=profile, role_arn=role, external_id=external_id)
        if role:
            keys = (self.profile, self.access_key, self.secret_key, self.session_token)
            return Login(*keys, role_arn=role, external_id=external_id)
        return self


class Account:
    """One account, entered. Its credentials renew themselves, also in the middle of a long wait."""

    def __init__(self, core: t.Any, region: str, options: dict[str, t.Any]) -> None:
        self._session = boto3.session.Session(botocore_session=core)
        self._region = region
        self._options = options
        self._clients: dict[tuple[str, str], t.Any] = {}

    def client(self, service: str, region: str | None = None) -> t.Any:
        """Return the client of *service* in *region*, always the same one."""
        key = (service, region or self._region)
        if key not in self._clients:
            if threading.current_thread() is not threading.main_thread():
                raise RuntimeError(f"the {service} client of {key[1]} has to be made in the main thread")
            try:
                self._clients[key] = self._session.client(service, region_name=key[1], **self._options)
            except (botocore.exceptions.BotoCoreError, ValueError) as exc:
                raise explain(exc) from exc
        return self._clients[key]

    @functools.cached_property
    def identity(self) -> dict[str, str]:
        """Who we are there: Account, Arn and UserId. Raises AwsError when the account cannot be entered."""
        return call(self.client("sts").get_caller_identity)

    def enter(self) -> str:
        """Enter the account and return its number. Raises AwsError when that is refused."""
        return self.id

    @property
    def id(self) -> str:
        """Return the number of the account."""
        return self.identity["Account"]

    @property
    def partition(self) -> str:
        """Return aws, aws-cn, aws-us-gov, ..."""
        return self.identity["Arn"].split(":")[1]

    def partition_of(self, region: str) -> str:
        """Return the partition that a region belongs to, judged by its name."""
        try:
            return str(self._session.get_partition_for_region(region))
        except botocore.exceptions.BotoCoreError as exc:
            raise explain(exc) from exc


class Aws:
    """The accounts of one run. *region* is where STS is asked."""

    def __init__(self, region: str, endpoint_url: str | None = None, ca_bundle: str | None = None) -> None:
        if BOTO3_ERROR is not None:
            raise AwsError("", "this module needs boto3: pip install boto3, for the Python that runs it")
        self._region = region
        self._options: dict[str, t.Any] = {
            "endpoint_url": endpoint_url,
            "verify": ca_bundle,
            "config": botocore.config.Config(
                retries={"mode": "standard", "max_attempts": 10},
                max_pool_connections=32,
                user_agent_extra="goldsmith.images",
            ),
        }
        self._accounts: dict[Login, Account] = {}

    @classmethod
    def of(cls, params: t.Mapping[str, t.Any], region: str) -> Aws:
        """Return what the parameters of LOGIN_SPEC describe."""
        return cls(region, params.get("endpoint_url"), params.get("ca_bundle"))

    def account(self, login: Login) -> Account:
        """Return the account behind a login, always the same one. Nothing is sent before it is used."""
        if login not in self._accounts:
            try:
                self._accounts[login] = Account(self._session(login), self._region, self._options)
            except (botocore.exceptions.BotoCoreError, ValueError) as exc:
                raise explain(exc) from exc
        return self._accounts[login]

    def _session(self, login: Login) -> t.Any:
        core = self._core(login.profile)
        if login.access_key:
            core.set_credentials(login.access_key, login.secret_key, login.session_token)
        if not login.role_arn:
            return core
        source = core.get_credentials()
        if source is None:
            raise AwsError("NoCredentialsError", f"there are no credentials to assume the role {login.role_arn} with")
        extra: dict[str, t.Any] = {"RoleSessionName": "goldsmith-images", "DurationSeconds": ROLE_SECONDS}
        if login.external_id:
            extra["ExternalId"] = login.external_id
        fetcher = botocore.credentials.AssumeRoleCredentialFetcher(
            client_creator=functools.partial(core.create_client, region_name=self._region, **self._options),
            source_credentials=source,
            role_arn=login.role_arn,
            extra_args=extra,
        )
        assumed = self._core(login.profile)
        # botocore has no public way to give a session credentials that renew themselves.
        assumed._credentials = botocore.credentials.DeferredRefreshableCredentials(
            method="assume-role", refresh_using=fetcher.fetch_credentials
        )
        return assumed

    def _core(self, profile: str | None) -> t.Any:
        core = botocore.session.Session(profile=profile)
        core.register_component("data_loader", loader())
        return core
