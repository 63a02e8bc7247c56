# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Run the module and show on the controller how far the upload is."""

from __future__ import annotations

from ansible_collections.goldsmith.images.plugins.action import packer_build


class ActionModule(packer_build.ActionModule):
    """What shows the progress of a build shows that of an upload."""
