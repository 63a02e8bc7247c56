# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is PRIVATE to the collection. It can have breaking changes at any time.
# Do not use it from other collections or standalone scripts.
"""Why an EC2 instance has no KVM: the wrong type, the option not switched on, or only the kernel module missing."""

from __future__ import annotations

import re
import typing as t
from dataclasses import dataclass

from ansible_collections.goldsmith.images.plugins.module_utils import _net_aws
from ansible_collections.goldsmith.images.plugins.module_utils._net_result import Deadline, InputError, Problem

FEATURE = "nested-virtualization"  # as DescribeInstanceTypes names it
TYPE_PATTERN = re.compile(r"([a-z]+)(\d+)([a-z]*)(?:-[a-z0-9]+)*\.([a-z0-9-]+)")


@dataclass(frozen=True)
class Instance:
    """What is known about the EC2 instance that this machine is, and where from."""

    instance_type: str | None = None
    source: str | None = None
    supported_features: list[str] | None = None
    """ProcessorInfo.SupportedFeatures of its type; None if nobody asked the API."""
    nested_enabled: bool | None = None
    imds_error: str | None = None

    @property
    def nested_capable(self) -> bool | None:
        """Whether the type can; what the API says counts more than what this module knows."""
        if self.instance_type is None:
            return None
        if self.supported_features is not None and FEATURE in self.supported_features:
            return True
        known = type_can_nest(self.instance_type)
        return False if self.supported_features is not None and not known else known


def type_can_nest(instance_type: str) -> bool | None:
    """As documented in 2026; None for types of which the documentation and what users report differ."""
    found = TYPE_PATTERN.fullmatch(instance_type)
    if found is None:
        return None
    family, generation, suffix, size = found[1], int(found[2]), found[3], found[4]
    if size.startswith("metal"):
        return True
    if family in ("c", "m", "r") and generation == 8 and suffix.startswith("i"):
        return True
    if "g" not in suffix and (generation > 8 or (generation >= 7 and "i" in suffix)):
        return None
    return False


def ask_imds(endpoint: str, timeout: float = 2.0) -> str:
    """The instance's type."""
    found = _net_aws.ask_imds(endpoint, "/latest/meta-data/instance-type", Deadline(timeout))
    if TYPE_PATTERN.fullmatch(found) is None:
        raise ValueError(f"{found[:80]!r} is no instance type")
    return found


def gather(given: t.Mapping[str, t.Any] | None, imds_endpoint: str | None, dmi_type: str | None) -> Instance:
    """What the caller says, else what IMDS says if it may be asked, else what the machine's DMI says."""
    given = given or {}
    instance_type, source, error = given.get("instance_type"), "caller", None
    if instance_type is None and imds_endpoint is not None:
        try:
            instance_type, source = ask_imds(imds_endpoint), "imds"
        except (OSError, ValueError, Problem, InputError) as exc:
            error = f"{imds_endpoint}: {exc}"
    if instance_type is None:
        instance_type, source = dmi_type, "dmi"
    enabled = given.get("nested_virtualization")
    return Instance(
        instance_type=instance_type,
        source=source if instance_type is not None else None,
        supported_features=given.get("supported_features"),
        nested_enabled=None if enabled is None else enabled == "enabled",
        imds_error=error,
    )


def diagnose(instance: Instance, accelerated: bool, has_flag: bool, module_loaded: bool) -> tuple[str | None, str]:
    """What stands in the way on this instance and what to do; (None, "") if it is nothing of EC2's."""
    name = instance.instance_type
    if name is None:
        return None, ""
    if accelerated:
        return "ok", ""
    if module_loaded or (".metal" in name and not has_flag):
        return None, ""
    if has_flag:
        return (
            "module_missing",
            f"The instance ({name}) has the CPU flag, but the kernel module is not loaded: modprobe kvm_intel (AMD: "
            "kvm_amd).",
        )
    if instance.nested_capable is False:
        return (
            "type_cannot",
            f"The instance type {name} cannot run VMs: use one with nested virtualisation (c8i, m8i, r8i and their "
            "flex variants) switched on by CpuOptions.NestedVirtualization=enabled, or a metal type.",
        )
    if instance.nested_enabled:
        return (
            "flag_missing",
            f"Nested virtualisation is enabled for this instance ({name}), but the CPU flag does not show: does the "
            "data describe this instance? Stop it and start it again.",
        )
    if instance.nested_capable is None and instance.nested_enabled is None:
        return (
            "type_unknown",
            f"The CPU flag does not show, and whether {name} can run VMs is not known here: ask the API (aws ec2 "
            f"describe-instance-types --instance-types {name} --query 'InstanceTypes[].ProcessorInfo."
            "SupportedFeatures').",
        )
    return (
        "opt_in_missing",
        f"The instance type {name} can, but nested virtualisation is not switched on: "
        "CpuOptions.NestedVirtualization=enabled, at launch or while the instance is stopped.",
    )


def report(instance: Instance, diagnosis: str | None) -> dict[str, t.Any]:
    return {
        "instance_type": instance.instance_type,
        "source": instance.source,
        "nested_capable": instance.nested_capable,
        "nested_enabled": instance.nested_enabled,
        "diagnosis": diagnosis,
        "imds_error": instance.imds_error,
    }
