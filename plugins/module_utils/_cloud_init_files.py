# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is PRIVATE to the collection. It can have breaking changes at any time.
# Do not use it from other collections or standalone scripts.
"""Which files there are to check, and what their names say of them."""

from __future__ import annotations

import os
import typing as t

from ansible_collections.goldsmith.images.plugins.module_utils._cloud_init_parts import MAX_BYTES, read, too_large
from ansible_collections.goldsmith.images.plugins.module_utils._cloud_init_text import CloudInitError

if t.TYPE_CHECKING:
    from collections.abc import Iterator

    from ansible_collections.goldsmith.images.plugins.module_utils._cloud_init_report import Request

MAX_FILES = 200
#: What cloud-init runs on a machine, and what it was given.
_SYSTEM_PATHS = (
    "/var/lib/cloud/instance/user-data.txt",
    "/var/lib/cloud/instance/vendor-data.txt",
    "/var/lib/cloud/scripts/per-boot",
    "/var/lib/cloud/scripts/per-instance",
    "/var/lib/cloud/scripts/per-once",
    "/etc/cloud/cloud.cfg",
    "/etc/cloud/cloud.cfg.d",
)


def files(request: Request) -> Iterator[tuple[str, str, bytes]]:
    """Label, path (empty for inline text) and content of everything that is to be checked, one after the other."""
    if request.content is not None:
        data = request.content.encode("utf-8", "surrogateescape")
        if len(data) > MAX_BYTES:
            raise CloudInitError(too_large("content", len(data)))
        yield "content", "", data
    paths = list(request.src)
    if request.system:
        paths += [path for path in _SYSTEM_PATHS if os.path.exists(path)]
    for path in paths:
        for name in _names(path):
            data = read(name)
            # cloud-init leaves an empty file where nobody gave it data.
            if data or path not in _SYSTEM_PATHS:
                yield name, name, data


def _names(path: str) -> list[str]:
    if not os.path.isdir(path):
        return [path]
    try:
        entries = sorted(os.listdir(path))
    except OSError as error:
        raise CloudInitError(f"cannot read {path}: {error.strerror}") from error
    names = [os.path.join(path, entry) for entry in entries if not entry.startswith(".") and not entry.endswith("~")]
    found = [name for name in names if os.path.isfile(name)]
    if len(found) > MAX_FILES:
        raise CloudInitError(f"{path} has {len(found)} files; more than {MAX_FILES} are not checked")
    return found


def is_system_config(path: str) -> bool:
    """Configuration of the system: cloud-init wants no first line there, and its schema is not made for it."""
    return path.endswith(".cfg")


def is_vendor_data(path: str) -> bool:
    """From the cloud itself, which keeps no limit for users."""
    return os.path.basename(path).startswith("vendor-data")


def is_run_at_boot(path: str) -> bool:
    """In one of the folders whose scripts cloud-init runs."""
    return os.path.basename(os.path.dirname(path)) in ("per-boot", "per-instance", "per-once")


def kind_by_name(path: str) -> str:
    """`auto` if a file's content must say it, nothing if it is none of cloud-init's."""
    name = os.path.basename(path)
    if is_run_at_boot(path):
        return "script"
    if is_system_config(path):
        return "cloud-config"
    if name.startswith("README"):
        return ""
    return next((kind for kind in ("network-config", "meta-data") if name.startswith(kind)), "auto")
