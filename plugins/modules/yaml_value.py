#!/usr/bin/python
# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: yaml_value
short_description: Set one value in a YAML file and leave the rest as it is
version_added: "0.1.0"
author: goldsmith.images contributors (@goldsmith-images)
description:
  - Changes one value of a file that people keep by hand; comments, order, quotes and anchors stay.
  - Hands the identifier of a published image to the next tool, such as C(aws.cml_ami) in a C(config.yml).
requirements:
  - ruamel.yaml 0.17 or later
extends_documentation_fragment:
  - goldsmith.images.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
  platform:
    platforms: posix
options:
  path:
    description: The file. It must exist.
    type: path
    required: true
  key:
    description:
      - Where the value is, keys from the outside in, separated by dots. The number of an item in a list counts from 0.
      - All but the last must exist. In a mapping the last is added if need be.
    type: str
    required: true
  value:
    description: The new value.
    type: raw
    required: true
"""

EXAMPLES = r"""
---
- name: Let the next deployment use the new image
  goldsmith.images.yaml_value:
    path: ./config.yml
    key: aws.cml_ami
    value: ami-0123456789abcdef0
"""

RETURN = r"""
before:
  description: The value that was there; null if there was none.
  returned: success
  type: raw
  sample: ami-0fedcba9876543210
"""

import io
import os
import re
import tempfile
import traceback
import typing as t

from ansible.module_utils.basic import AnsibleModule, missing_required_lib

try:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    RUAMEL_ERROR = None
except ImportError:
    RUAMEL_ERROR = traceback.format_exc()


HEAD = re.compile(r"((?:(?:[ \t]*|#[^\n]*|%[^\n]*)\r?\n)*---[ \t]*\r?\n|)(.*)", re.DOTALL)


class KeyPathError(Exception):
    """The value cannot be set; the message says why."""


def find(document: t.Any, path: list[str]) -> tuple[t.Any, t.Any]:
    """Return the container of the value and the value's key in it."""
    container = document
    for depth, name in enumerate(path):
        where = ".".join(path[:depth]) or "the document"
        key: t.Any = name
        if isinstance(container, list):
            if not name.isdigit() or int(name) >= len(container):
                raise KeyPathError(f"{where} is a list of {len(container)} items and has no item {name!r}")
            key = int(name)
        elif not isinstance(container, dict):
            raise KeyPathError(f"{where} is {container!r}, so it has no key {name!r}")
        elif name not in container and depth < len(path) - 1:
            raise KeyPathError(f"{where} has no key {name!r}; it has: {', '.join(map(str, container)) or 'none'}")
        if depth == len(path) - 1:
            return container, key
        container = container[key]
    raise KeyPathError("key is empty")


def edit(text: str, key: str, value: t.Any) -> tuple[str, t.Any]:
    """Return the text of the file with the value in it, and the value that was there before."""
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 2**16
    # What stands before the document is not part of it for ruamel.yaml, which would leave it out.
    head, body = t.cast("re.Match[str]", HEAD.match(text)).groups()
    # As the file has it: ruamel.yaml would put all lists where its own default is.
    sequences = [line for line in body.splitlines() if line.lstrip().startswith("- ")]
    if any(line.startswith(" ") for line in sequences) and not any(line.startswith("-") for line in sequences):
        yaml.indent(mapping=2, sequence=4, offset=2)
    document = yaml.load(body)
    container, last = find(document, key.split("."))
    before = container[last] if isinstance(container, list) else container.get(last)
    if before == value and type(before) is type(value):
        return text, before
    container[last] = type(before)(value) if isinstance(before, str) and isinstance(value, str) else value
    stream = io.StringIO()
    yaml.dump(document, stream)
    return head + stream.getvalue().replace("\n", "\r\n" if "\r\n" in text else "\n"), before


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "key": {"type": "str", "required": True, "no_log": False},
            "value": {"type": "raw", "required": True},
        },
        supports_check_mode=True,
    )
    if RUAMEL_ERROR:
        module.fail_json(msg=missing_required_lib("ruamel.yaml"), exception=RUAMEL_ERROR)
    path, key = module.params["path"], module.params["key"]
    try:
        with open(path, encoding="utf-8", newline="") as file:
            text = file.read()
        new, before = edit(text, key, module.params["value"])
        result: dict[str, t.Any] = {"changed": new != text, "before": before}
        if module._diff:
            result["diff"] = {"before_header": path, "after_header": path, "before": text, "after": new}
        if result["changed"] and not module.check_mode:
            handle, temporary = tempfile.mkstemp(dir=module.tmpdir)
            with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
                file.write(new)
            module.atomic_move(temporary, path)
    except (OSError, UnicodeDecodeError) as error:
        module.fail_json(msg=f"{path}: {error}")
    except (YAMLError, KeyPathError) as error:
        module.fail_json(msg=f"{path}: cannot set {key}: {error}")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
