# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: may change at any time, not for use by other collections.
"""On EC2: the instance metadata service, and the endpoints that the SSM agent needs."""

from __future__ import annotations

import ipaddress
import re
import shutil
import ssl
import subprocess
import time

from ansible_collections.goldsmith.images.plugins.module_utils._net_http import Response, fetch, issuer_of
from ansible_collections.goldsmith.images.plugins.module_utils._net_result import (
    Deadline,
    Finding,
    InputError,
    Problem,
    milliseconds,
)
from ansible_collections.goldsmith.images.plugins.module_utils._net_socket import connect, start_tls
from ansible_collections.goldsmith.images.plugins.module_utils._net_targets import Endpoint, Url, url

IMDS = "http://169.254.169.254"
REGION = re.compile(r"[a-z]{2}(-[a-z]+)+-\d+")
AGENT_VERSION = re.compile(r"\d+(\.\d+){2,3}")
#: Agents from here on do without ec2messages.
WITHOUT_EC2MESSAGES = (3, 3, 40, 0)


def ask_imds(endpoint: str, path: str, deadline: Deadline) -> str:
    """A value of the metadata service by IMDSv2: a token first, then the question. Never through a proxy."""
    token = _imds_token(endpoint, deadline)
    return _imds_get(endpoint, path, deadline, token).body.decode("ascii", "replace").strip()


def _imds_url(endpoint: str, path: str) -> Url:
    return url(endpoint.rstrip("/") + path, "imds_endpoint", ("http",))


def _imds_token(endpoint: str, deadline: Deadline) -> str:
    target = _imds_url(endpoint, "/latest/api/token")
    headers = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    answer = fetch(target, deadline, method="PUT", headers=headers, limit=4096)
    token = answer.body.decode("ascii", "replace").strip()
    if answer.status == 403:
        raise Problem("imds_disabled", "status 403 for a token", method="imdsv2")
    if answer.status != 200 or not re.fullmatch(r"[!-~]{1,1024}", token):
        raise Problem("imds_error", f"status {answer.status} for a token", method="imdsv2")
    return token


def _imds_get(endpoint: str, path: str, deadline: Deadline, token: str) -> Response:
    headers = {"X-aws-ec2-metadata-token": token}
    answer = fetch(_imds_url(endpoint, path), deadline, headers=headers, limit=4096)
    if answer.status != 200:
        raise Problem("imds_error", f"status {answer.status} for {path} with a token", method="imdsv2")
    return answer


def check_imds(endpoint: str, deadline: Deadline) -> Finding:
    start = time.monotonic()
    try:
        instance = ask_imds(endpoint, "/latest/meta-data/instance-id", deadline)
    except Problem as exc:
        if exc.error_class in ("imds_disabled", "imds_error"):
            raise
        raise Problem("imds_unreachable", exc.detail, method="imdsv2") from exc
    took = milliseconds(start)
    if not re.fullmatch(r"i-[0-9a-f]{8,17}", instance):
        raise Problem("imds_error", f"{instance[:40]!r} is no instance id", method="imdsv2")
    if fetch(_imds_url(endpoint, "/latest/meta-data/"), deadline, limit=4096).status == 200:
        raise Problem("imds_v1", f"{instance}; it answers without a token", status="warn", method="imdsv2")
    return Finding(f"{instance}, IMDSv2 only", "imdsv2", took)


def agent_version() -> str | None:
    """Of the SSM agent on this machine, as a package or as a snap."""
    program = shutil.which("amazon-ssm-agent", path="/usr/bin:/usr/local/bin:/snap/amazon-ssm-agent/current")
    if program is None:
        return None
    try:
        done = subprocess.run([program, "-version"], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = AGENT_VERSION.search(done.stdout + done.stderr)
    return found[0] if found else None


def ssm_endpoints(region: str, version: str | None) -> list[Endpoint]:
    """What an agent of this version talks to; of an unknown one the newest is assumed."""
    if REGION.fullmatch(region) is None:
        raise InputError(f"ssm.region: {region!r} is no AWS region (such as eu-central-1)")
    if version is not None and AGENT_VERSION.fullmatch(version) is None:
        raise InputError(f"ssm.agent_version: {version!r} is no version of the agent (such as 3.3.40.0)")
    services = ["ssm", "ssmmessages"]
    if version is not None and tuple(map(int, version.split("."))) < WITHOUT_EC2MESSAGES:
        services.append("ec2messages")
    suffix = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
    return [Endpoint(f"{service}.{region}.{suffix}", 443) for service in services]


def check_ssm(where: Endpoint, context: ssl.SSLContext, family: int, deadline: Deadline) -> Finding:
    """The name, the connection, and that the one who answers has the certificate for it."""
    start = time.monotonic()
    sock = connect(where, deadline, family)
    try:
        sock = tls = start_tls(sock, where.host, context, deadline)
        peer = ipaddress.ip_address(sock.getpeername()[0])
        kind = "a private address, as of a VPC endpoint" if peer.is_private else "a public address"
        return Finding(f"{peer} ({kind}), certificate of {issuer_of(tls)}", "tls", milliseconds(start))
    finally:
        sock.close()
