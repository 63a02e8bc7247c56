# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection goldsmith.images: it may change at any time and is not for use by other collections.
"""CML's own report on its health, and whether a controller that is not ready will ever be."""

from __future__ import annotations

import typing as t

from ansible_collections.goldsmith.images.plugins.module_utils._https_client import printable

#: What a compute host reports about itself. Other keys may come with other releases, and some of these be missing.
COMPUTE_FLAGS = (
    "kvm_vmx_enabled",
    "enough_cpus",
    "lld_connected",
    "lld_synced",
    "libvirt",
    "fabric",
    "device_mux",
    "refplat_images_available",
    "docker_shim",
    "valid",
)
CONTROLLER_FLAGS = ("core_connected", "nodes_loaded", "images_loaded", "valid")
#: Flags that no waiting turns from false to true.
LASTING = {"kvm_vmx_enabled": "no_kvm", "enough_cpus": "not_enough_cpus"}
LIMIT_COMPUTES = 100

Health = dict[str, t.Any]


def read_health(data: t.Any) -> Health:
    """The parts of `system_health` that have the expected shape; the rest is null."""
    data = data if isinstance(data, dict) else {}
    computes = data.get("computes")
    controller = data.get("controller")
    return {
        "valid": _flag(data, "valid"),
        "licensed": _flag(data, "is_licensed"),
        "enterprise": _flag(data, "is_enterprise"),
        "computes": [
            _compute(str(name), entry)
            for name, entry in list((computes if isinstance(computes, dict) else {}).items())[:LIMIT_COMPUTES]
            if isinstance(entry, dict)
        ],
        "controller": _flags(controller if isinstance(controller, dict) else {}, CONTROLLER_FLAGS),
    }


def _flag(data: t.Mapping[str, t.Any], name: str) -> bool | None:
    value = data.get(name)
    return value if isinstance(value, bool) else None


def _flags(data: t.Mapping[str, t.Any], names: t.Sequence[str]) -> dict[str, bool]:
    return {name: data[name] for name in names if isinstance(data.get(name), bool)}


def _compute(identifier: str, data: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    return {
        "id": printable(identifier),
        "hostname": printable(str(data.get("hostname") or "")),
        "admission_state": printable(str(data.get("admission_state") or "")),
        "flags": _flags(data, COMPUTE_FLAGS),
    }


def defects(health: Health) -> list[str]:
    """What the report says is not in order, beside the licence."""
    found = []
    for compute in health["computes"]:
        bad = [name for name, value in compute["flags"].items() if not value]
        if bad:
            found.append(f"compute host {compute['hostname'] or compute['id']}: {', '.join(bad)} false")
    bad = [name for name, value in health["controller"].items() if not value]
    if bad:
        found.append(f"controller: {', '.join(bad)} false")
    if not health["computes"]:
        found.append("there is no compute host")
    if health["valid"] is None:
        found.append("the report says nothing about valid: it is not in the shape of a known release")
    elif not health["valid"] and not found:
        found.append("valid is false, and no part says why")
    return found


def lasting_obstacle(health: Health) -> str | None:
    """Why no compute host can start nodes, if each of them has a reason that waiting does not change."""
    reasons = []
    for compute in health["computes"]:
        reason = next((LASTING[name] for name in LASTING if compute["flags"].get(name) is False), None)
        if reason is None:
            return None
        reasons.append(reason)
    return reasons[0] if reasons else None
