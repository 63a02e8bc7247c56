# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What cloud-init says of a boot.

Read from its files: `cloud-init status` says the same and takes seconds to start in an emulated machine.
"""

from __future__ import annotations

import json

STATUS = "cat /run/cloud-init/status.json; echo; cat /run/cloud-init/result.json"


def complaints(output: str) -> list[str]:
    """Everything cloud-init complains about in the output of STATUS; recoverable errors too.

    With those `cloud-init status` ends with exit code 2 and calls it a success; here it is somebody's broken boot.
    """
    decoder = json.JSONDecoder()
    output = output.strip()
    if not output:
        return ["cloud-init did not run"]
    status, end = decoder.raw_decode(output)
    if not output[end:].strip():
        return ["cloud-init has not ended"]  # it writes its result last
    result = json.loads(output[end:])
    found = [f"{error}" for error in result["v1"].get("errors", [])]
    for stage, told in status["v1"].items():
        if not isinstance(told, dict):
            continue
        found += [f"{stage}: {error}" for error in told.get("errors", [])]
        for level, messages in told.get("recoverable_errors", {}).items():
            found += [f"{stage}: {level}: {message}" for message in messages]
    return found
