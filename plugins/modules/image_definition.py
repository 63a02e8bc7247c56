#!/usr/bin/python
# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: image_definition
short_description: Read and validate an image definition
version_added: 0.1.0
author: goldsmith.images contributors (@goldsmith-images)
description:
  - Finds the definition of an image, checks it against the schema of this collection and completes it from the
    defaults.
  - Every mistake is named with the file, the key and the values that are allowed.
  - Runs on the controller, where definitions are kept.
requirements:
  - jsonschema on the controller
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
    platforms: linux
options:
  image:
    description: The name of a definition in one of O(folders), or the path of a definition.
    type: str
    required: true
  folders:
    description: Folders of definitions, searched in this order. The collection's own definitions come last.
    type: list
    elements: path
    default: []
  builder:
    description: One of the definition's builders. Without it the first counts.
    type: str
    choices: [qemu, amazon-ebs]
  amazon_ebs:
    description: Keys that replace those of C(amazon_ebs) in the definition, such as C(region) and C(subnet_id).
    type: dict
    default: {}
"""

EXAMPLES = r"""
- name: Read the definition of cloud_base
  goldsmith.images.image_definition:
    image: cloud_base
  register: cloud_base

- name: Read the definition of cml as it is built in EC2
  goldsmith.images.image_definition:
    image: cml
    builder: amazon-ebs
    amazon_ebs:
      region: eu-west-1
"""

RETURN = r"""
definition:
  description:
    - The complete definition, without what is only for other builders. Its keys are described in
      C(docs/image_definition.md).
  returned: success
  type: dict
output_name:
  description: Name of the output folder. It ends in the builder unless that is the definition's first.
  returned: success
  type: str
  sample: cml-amazon-ebs
path:
  description: The file it was read from.
  returned: success
  type: str
running_system_roles:
  description:
    - Roles of the image that cannot work on a root tree, and why. A role says so in its file C(meta/image_build.yml)
      with C(requires_running_system) and C(reason).
  returned: success
  type: dict
  sample: {"acme.storage.zfs": "the pool is made by a running kernel"}
"""
