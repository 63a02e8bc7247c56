# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An AWS module in a process of its own that can be killed, without starting Python and boto3 anew each time."""

from __future__ import annotations

import contextlib
import importlib
import json
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import botocore.exceptions
import pytest
from ansible.module_utils import basic
from ansible_collections.goldsmith.images.plugins.module_utils import _aws_session
from ansible_collections.goldsmith.images.tests.support.cloud import KEYS, Cloud

PACKAGE = "ansible_collections.goldsmith.images.plugins.modules"
NAMES = ("ami_copy_encrypt", "ami_prune", "ec2_launch_check")
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["pytest", "boto3", *(f"{PACKAGE}.{name}" for name in NAMES), __name__])

# Read before the processes part: the model of EC2 alone takes half a second.
for service in ("autoscaling", "ec2", "kms", "ssm", "sts"):
    for kind in ("service-2", "paginators-1", "endpoint-rule-set-1"):
        with contextlib.suppress(botocore.exceptions.UnknownServiceError):
            _aws_session.loader().load_service_model(service, kind)


def child(name: str, arguments: dict[str, Any], output: str) -> None:
    """Run the module as Ansible would; its answer goes into a file."""
    handle = os.open(output, os.O_WRONLY)
    os.dup2(handle, 1)
    sys.stdout = os.fdopen(1, "w")
    for variable in [variable for variable in os.environ if variable.startswith("AWS_")]:
        del os.environ[variable]
    basic._ANSIBLE_ARGS = json.dumps({"ANSIBLE_MODULE_ARGS": arguments}).encode()
    basic._ANSIBLE_PROFILE = "legacy"
    importlib.import_module(f"{PACKAGE}.{name}").main()


class Module:
    """Runs a module against a cloud, with *defaults* for its parameters."""

    def __init__(self, cloud: Cloud, folder: Path, name: str = "ami_copy_encrypt", **defaults: Any) -> None:
        self.cloud = cloud
        self.folder = folder
        self.name = name
        if name == "ami_copy_encrypt":
            defaults = {"journal": str(folder / "journal"), "poll": 0.05, **defaults}
        self.defaults = defaults
        self.process: Any = None
        # Python before 3.13 does not tell the server where modules are, and then each process loads all of them again.
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
            multiprocessing.forkserver.ensure_running()

    def kill(self) -> None:
        """Kill the module, from whatever thread."""
        os.kill(self.process.pid, signal.SIGKILL)

    def start(self, check: bool = False, **params: Any) -> str:
        """Start the module and return the file of its answer."""
        handle, output = tempfile.mkstemp(dir=self.folder)
        os.close(handle)
        own = {"_ansible_check_mode": check, "_ansible_remote_tmp": str(self.folder)}
        arguments = {**KEYS, "endpoint_url": self.cloud.url, **self.defaults, **params, **own}
        self.process = CONTEXT.Process(target=child, args=(self.name, arguments, output))
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
