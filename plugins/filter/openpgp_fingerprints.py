# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: openpgp_fingerprints
short_description: Fingerprints of the OpenPGP public keys in an armored text
version_added: "0.1.0"
author: goldsmith.images contributors (@goldsmith-images)
description:
  - Returns the fingerprints of all primary keys in an armored public key file, in upper case and without spaces.
  - Needs no C(gpg), neither here nor on the target. Compare the whole list with the keys that you expect, because apt
    trusts every key in a keyring.
options:
  _input:
    description: The armored text, one block or more.
    type: str
    required: true
"""

EXAMPLES = r"""
---
- name: Refuse a key that is not the expected one
  ansible.builtin.assert:
    that: key | goldsmith.images.openpgp_fingerprints == [expected]
  vars:
    key: "{{ lookup('ansible.builtin.file', 'repository.asc') }}"
    expected: DE15B14486CD377B9E876E1A234654DA9A296436
"""

RETURN = r"""
_value:
  description: The fingerprints, 40 hexadecimal digits each (64 for keys of version 6).
  type: list
  elements: str
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.goldsmith.images.plugins.module_utils import _openpgp


def openpgp_fingerprints(text: t.Any) -> list[str]:
    if not isinstance(text, str):
        raise AnsibleFilterError(f"openpgp_fingerprints needs a text, not {type(text).__name__}")
    try:
        return _openpgp.primary_fingerprints(text)
    except _openpgp.OpenPGPError as error:
        raise AnsibleFilterError(f"openpgp_fingerprints: {error}") from error


class FilterModule:
    """The filter goldsmith.images.openpgp_fingerprints."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"openpgp_fingerprints": openpgp_fingerprints}
