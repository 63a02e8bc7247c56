# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Instances of a simulated cloud: their images have their volumes, and one of them is a real machine on this host.

Moto's instances do nothing, and its CreateImage makes one snapshot of 15 GiB that is not encrypted, whatever volumes
the instance has.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import select
import threading
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from moto.core.responses import ActionResult, EmptyResult
from moto.ec2.models import ec2_backends
from moto.ec2.responses.amis import AmisResponse

from .cloud import Call, Cloud, new_image, new_snapshot, resolve


@contextlib.contextmanager
def images_of_instances(cloud: Cloud) -> Iterator[Cloud]:
    """Let CreateImage make snapshots of the instance's volumes, and images require IMDSv2 when they are told to."""
    modify = AmisResponse.modify_image_attribute

    def create_image(response: Any) -> Any:
        backend = response.ec2_backend
        instance = backend.get_instance(response._get_param("InstanceId"))
        with cloud._lock:
            image = new_image(backend, name=response._get_param("Name"), instance=instance)
            image.devices = []
            for name, device in instance.block_device_mapping.items():
                image.root_device_name = image.root_device_name if image.devices else name
                volume = backend.volumes[device.volume_id]
                key = (
                    resolve(volume.kms_key_id, backend.account_id, backend.region_name)[0] if volume.encrypted else None
                )
                image.devices.append(new_snapshot(backend, image.id, volume.size, key))
        return ActionResult({"ImageId": image.id})

    def modify_image_attribute(response: Any) -> Any:
        support = response._get_param("ImdsSupport")
        if not support:
            return modify(response)
        response.ec2_backend.amis[response._get_param("ImageId")].imds_support = support["Value"]
        return EmptyResult()

    with (
        mock.patch.object(AmisResponse, "create_image", create_image),
        mock.patch.object(AmisResponse, "modify_image_attribute", modify_image_attribute),
    ):
        yield cloud


@contextlib.contextmanager
def machine_behind(cloud: Cloud, start: Callable[[str], int]) -> Iterator[threading.Event]:
    """Start a real machine for the instance that is run next; the instance stops when the machine does.

    *start* gets the instance's user-data and returns the process of the machine. Yields an event that is set when the
    instance has stopped.
    """
    stopped = threading.Event()

    def run(call: Call, instance_id: str) -> None:
        # A fleet has it from its launch template.
        [user_data, *_older] = [
            value
            for asked in reversed(cloud.calls)
            for name, [value, *_others] in asked.params.items()
            if name.endswith("UserData")
        ]
        pid = start(base64.b64decode(user_data).decode())
        handle = os.pidfd_open(pid)
        try:
            select.select([handle], [], [])
        finally:
            os.close(handle)
        ec2_backends[call.account][call.region].get_instance(instance_id).stop()
        stopped.set()

    def after(call: Call) -> None:
        if call.action in ("RunInstances", "CreateFleet") and call.status == 200:
            [instance_id] = set(re.findall(r">(i-[0-9a-f]+)<", call.body.decode()))
            threading.Thread(target=run, args=(call, instance_id), daemon=True).start()

    with mock.patch.object(cloud, "after", after):
        yield stopped
