# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ami_copy_encrypt in a process of its own that can be killed, without starting Python and boto3 anew each time."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import botocore.exceptions
from ansible.module_utils import basic
from ansible_collections.goldsmith.images.plugins.module_utils import _aws_session
from ansible_collections.goldsmith.images.plugins.modules import ami_copy_encrypt
from ansible_collections.goldsmith.images.tests.support.cloud import KEYS, Cloud

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["pytest", "boto3", ami_copy_encrypt.__name__, __name__])

# Read before the processes part: the model of EC2 alone takes half a second.
for service in ("autoscaling", "ec2", "kms", "ssm", "sts"):
    for kind in ("service-2", "paginators-1", "endpoint-rule-set-1"):
        with contextlib.suppress(botocore.exceptions.UnknownServiceError):
            _aws_session.loader().load_service_model(service, kind)


def child(arguments: dict[str, Any], output: str) -> None:
    """Run the module as Ansible would; its answer goes into a file."""
    handle = os.open(output, os.O_WRONLY)
    os.dup2(handle, 1)
    sys.stdout = os.fdopen(1, "w")
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    basic._ANSIBLE_ARGS = json.dumps({"ANSIBLE_MODULE_ARGS": arguments}).encode()
    basic._ANSIBLE_PROFILE = "legacy"
    ami_copy_encrypt.main()


class Module:
    """Runs the module against a cloud. The journal is the runner's own unless a parameter says otherwise."""

    def __init__(self, cloud: Cloud, folder: Path) -> None:
        self.cloud = cloud
        self.folder = folder
        self.process: Any = None

    def kill(self) -> None:
        """Kill the module, from whatever thread."""
        os.kill(self.process.pid, signal.SIGKILL)

    def start(self, check: bool = False, **params: Any) -> str:
        """Start the module and return the file of its answer."""
        handle, output = tempfile.mkstemp(dir=self.folder)
        os.close(handle)
        defaults = {**KEYS, "endpoint_url": self.cloud.url, "journal": str(self.folder / "journal"), "poll": 0.05}
        arguments = {**defaults, **params, "_ansible_check_mode": check, "_ansible_remote_tmp": str(self.folder)}
        self.process = CONTEXT.Process(target=child, args=(arguments, output))
        self.process.start()
        return output

    def __call__(self, check: bool = False, **params: Any) -> dict[str, Any] | None:
        """Run the module and return its result; None when it was killed."""
        output = self.start(check, **params)
        self.process.join(120)
        if self.process.exitcode == -signal.SIGKILL:
            return None
        text = Path(output).read_text(encoding="utf-8")
        assert text, f"the module said nothing (exit code {self.process.exitcode})"
        result = json.loads(text)
        result.setdefault("failed", False)
        # As a play gets them; the module itself hands on where they come from, too.
        result["warnings"] = [warning["event"]["msg"] for warning in result.get("warnings", [])]
        return result
