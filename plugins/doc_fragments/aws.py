# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How AWS is entered, described once for all modules that do."""

from __future__ import annotations


class ModuleDocFragment:
    """The fragment C(goldsmith.images.aws)."""

    DOCUMENTATION = r"""
options:
  profile:
    description:
      - The profile to begin with. Without it and without O(access_key) botocore looks where it always does, in
        E(AWS_PROFILE), E(AWS_ACCESS_KEY_ID) and the other variables, the configuration files, the instance's role.
    type: str
  access_key:
    description: The access key to begin with.
    type: str
  secret_key:
    description: The secret of O(access_key).
    type: str
  session_token:
    description: The session token of O(access_key), if it is a temporary one.
    type: str
  role_arn:
    description:
      - A role to assume with these credentials. Its credentials renew themselves for as long as the module runs.
    type: str
  external_id:
    description: The external id that O(role_arn) asks for.
    type: str
  endpoint_url:
    description:
      - Where the services are, instead of AWS's own addresses; for a simulated cloud or a private endpoint. Without it
        E(AWS_ENDPOINT_URL) counts.
    type: str
  ca_bundle:
    description: Certificates to trust, a file. Without it E(AWS_CA_BUNDLE) counts, else those that come with botocore.
    type: path
requirements:
  - boto3 >= 1.42.0
notes:
  - Long runs need credentials that renew themselves. A profile with C(role_arn), O(role_arn) or the role of an instance
    do; a fixed O(session_token) ends after its hours.
"""
