#!/usr/bin/python
# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: image_release
short_description: Put a finished and verified image into its output folder
version_added: 0.1.0
author: goldsmith.images contributors (@goldsmith-images)
description:
  - Moves the image and its evidence into O(output_dir), each file by rename, and writes C(manifest.json) and
    C(SHA256SUMS).
  - The image that is there stays until the new one takes its place, together with all its evidence. An interrupted
    release leaves either, never a mix.
  - Refuses an image that was not verified, or is not the one that was.
extends_documentation_fragment:
  - goldsmith.images.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: none
    details: The image is moved out of the work folder; there is nothing to release a second time.
  platform:
    platforms: linux
options:
  name:
    description: Name of the image; the file is O(name).qcow2.
    type: str
    required: true
  image:
    description: The finished disk image. It is moved.
    type: path
    required: true
  output_dir:
    description: Where the image is put. Made if missing.
    type: path
    required: true
  verified_sha256:
    description: The digest that has passed the verification.
    type: str
    required: true
  evidence:
    description:
      - Name in the output folder to the files it is made of, in this order. Files that do not exist are left out.
    type: dict
    default: {}
  manifest:
    description: What the manifest says beside the image itself.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Release the image
  goldsmith.images.image_release:
    name: cloud_base
    image: /var/cache/goldsmith-images/work/cloud_base/disk/cloud_base.qcow2
    output_dir: output/cloud_base
    verified_sha256: "{{ verify_image_result.sha256 }}"
    evidence:
      junit.xml: ["{{ verify_image_result.junit }}"]
    manifest: "{{ manifest }}"
"""

RETURN = r"""
image:
  description: Path, size in bytes, virtual size in bytes, format and sha256 of the released image.
  returned: success
  type: dict
files:
  description: The files in the output folder.
  returned: success
  type: list
  elements: str
summary:
  description: The outcome in words, one fact a line.
  returned: success
  type: list
  elements: str
"""

import datetime
import json
import typing as t
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.goldsmith.images.plugins.module_utils._cache import file_digest
from ansible_collections.goldsmith.images.plugins.module_utils._command import Interrupted, interruptible
from ansible_collections.goldsmith.images.plugins.module_utils._image_plan import SCHEMA
from ansible_collections.goldsmith.images.plugins.module_utils._image_release import write_output


class ReleaseError(Exception):
    """The image must not be released, or cannot be."""


def summary(manifest: dict[str, t.Any], output: Path) -> list[str]:
    """Return the lines that a user sees last."""
    image, verification, kubernetes = manifest["image"], manifest["verification"], manifest["plan"]["kubernetes"]
    total = sum(phase["seconds"] for phase in manifest["phases"])
    phases = ", ".join(f"{phase['name']} {phase['seconds']:.0f} s" for phase in manifest["phases"])
    path = output / image["file"]
    return [
        f"image     {path}",
        f"size      {image['size'] / 1e6:.0f} MB (disk of {image['virtual_size'] / 1024**3:.0f} GiB), "
        f"sha256 {image['sha256']}",
        f"checks    {verification['tests'] - verification['skipped']} passed"
        + (f", {verification['skipped']} skipped" if verification["skipped"] else "")
        + f": {output / 'junit.xml'}",
        f"content   {len(manifest['packages'])} packages"
        + (f", Kubernetes packages: {kubernetes['source']}" if kubernetes else ""),
        f"phases    {phases}; {total:.0f} s in all",
        f"boot it   qemu-system-x86_64 -m 2048 -snapshot -nographic -drive file={path},if=virtio"
        " -nic user,hostfwd=tcp:127.0.0.1:2222-:22 -cdrom SEED.iso   (docs/boot.md makes the seed)",
    ]


def release(module: AnsibleModule) -> dict[str, t.Any]:
    """Check, then move everything; the manifest comes last, so that it never speaks of an image that is not there."""
    params = module.params
    image, output = Path(params["image"]), Path(params["output_dir"])
    if not image.is_file():
        raise ReleaseError(f"There is no image {image}.")
    digest = file_digest(image)
    if digest != params["verified_sha256"]:
        raise ReleaseError(f"{image} has the sha256 {digest}; verified was {params['verified_sha256']}.")
    if not params["manifest"]["verification"]["passed"]:
        raise ReleaseError(f"{image} did not pass its verification.")
    rc, stdout, stderr = module.run_command(["qemu-img", "info", "--output=json", str(image)])
    if rc != 0:
        raise ReleaseError(f"qemu-img cannot read {image}: {stderr.strip()}")
    info = json.loads(stdout)
    final = output / f"{params['name']}.qcow2"
    manifest = {
        "schema": SCHEMA,
        "name": params["name"],
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        **params["manifest"],
        "image": {
            "file": final.name,
            "format": info["format"],
            "size": image.stat().st_size,
            "virtual_size": info["virtual-size"],
            "sha256": digest,
        },
    }
    result = {"image": {**manifest["image"], "path": str(final)}, "summary": summary(manifest, output)}
    if module.check_mode:
        return {"changed": True, "files": [], **result}

    files = write_output(output, params["evidence"], manifest, {final.name: image})
    return {"changed": True, "files": files, **result}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "image": {"type": "path", "required": True},
            "output_dir": {"type": "path", "required": True},
            "verified_sha256": {"type": "str", "required": True},
            "evidence": {"type": "dict", "default": {}},
            "manifest": {"type": "dict", "required": True},
        },
        supports_check_mode=True,
    )
    try:
        with interruptible():
            released = release(module)
    except (ReleaseError, Interrupted, OSError) as exc:
        module.fail_json(msg=str(exc))
    module.exit_json(**released)


if __name__ == "__main__":
    main()
