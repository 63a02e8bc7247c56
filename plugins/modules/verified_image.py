#!/usr/bin/python
# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: verified_image
short_description: Find a finished image, and refuse it unless its digest has passed the verification
version_added: "0.1.0"
author: goldsmith.images contributors (@goldsmith-images)
description:
  - Reads what M(goldsmith.images.image_release) has put into the folder of an image, and fails unless C(manifest.json)
    says that the verification has passed, and image, manifest and all evidence still have the digests of C(SHA256SUMS).
  - Whatever publishes an image asks it first, and hands the digest on.
extends_documentation_fragment:
  - goldsmith.images.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
  platform:
    platforms: posix
options:
  path:
    description: The folder of the image, with its manifest.
    type: path
    required: true
"""

EXAMPLES = r"""
- name: Take only an image that was verified
  goldsmith.images.verified_image:
    path: output/cloud_base
  register: verified
"""

RETURN = r"""
image:
  description: The image.
  returned: success
  type: dict
  contains:
    path:
      description: The disk image.
      returned: always
      type: str
      sample: output/cloud_base/cloud_base.qcow2
    sha256:
      description: Its digest, as it is now and was when it was verified.
      returned: always
      type: str
      sample: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
    name:
      description: The name of its definition.
      returned: always
      type: str
      sample: cloud_base
    description:
      description: What its definition says it is.
      returned: always, null if it says nothing
      type: str
      sample: Universal Kubernetes node
    created:
      description: When it was released, as ISO 8601.
      returned: always
      type: str
      sample: "2026-11-27T06:37:16+00:00"
    fingerprint:
      description: The digest of all its inputs.
      returned: always, null if the manifest has none
      type: str
      sample: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
"""

import typing as t
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.goldsmith.images.plugins.module_utils._verified_image import NotVerifiedError, verified_image


def main() -> t.NoReturn:
    module = AnsibleModule(argument_spec={"path": {"type": "path", "required": True}}, supports_check_mode=True)
    try:
        image = verified_image(Path(module.params["path"]))
    except NotVerifiedError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, image=image)


if __name__ == "__main__":
    main()
