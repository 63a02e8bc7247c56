# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Guests that fit into a boot sector, so that a boot takes a moment and not a minute."""

from __future__ import annotations

import struct

POWER_OFF = bytes.fromhex("ba0406 b80020 ef")  # mov dx,0x604; mov ax,0x2000; out dx,ax: ACPI's S5 on this board
ENABLE_POWER_BUTTON = bytes.fromhex("ba0206 b80001 ef")  # mov dx,0x602; mov ax,0x100; out dx,ax
READ_POWER_BUTTON = bytes.fromhex("ba0006 ed f6c401")  # mov dx,0x600; in ax,dx; test ah,1


def boot_sector(message: str, ticks: int | None = None, power_button: bool = False) -> bytes:
    """Writes the message to the serial port, then a dot with every tick of the timer (18 a second).

    Powers itself off after *ticks*, or when the power button is pressed.
    """
    start = ENABLE_POWER_BUTTON if power_button else b""
    start += b"\xb9" + struct.pack("<H", ticks or 0)  # mov cx,ticks
    loop = bytes.fromhex("fb f4 ba f803 b02e ee")  # sti; hlt; mov dx,0x3f8; mov al,'.'; out dx,al
    if ticks is not None:
        loop += b"\x49\x75" + bytes([len(POWER_OFF)]) + POWER_OFF  # dec cx; jnz
    if power_button:
        loop += READ_POWER_BUTTON + b"\x74" + bytes([len(POWER_OFF)]) + POWER_OFF  # jz
    loop += b"\xeb" + struct.pack("<b", -len(loop) - 2)
    write = bytes.fromhex("ac 84c0 7406 baf803 ee ebf5")  # lodsb; test al,al; jz; mov dx,0x3f8; out dx,al; jmp
    head_size = 8
    text_at = 0x7C00 + head_size + len(write) + len(start) + len(loop)
    head = bytes.fromhex("31c0 8ed8 be") + struct.pack("<H", text_at) + b"\xfc"  # ds=0; mov si,text; cld
    assert len(head) == head_size
    code = head + write + start + loop + message.encode() + b"\0"
    return code.ljust(510, b"\0") + b"\x55\xaa"


HANG = boot_sector("BOOT\r\n")
BUTTON = boot_sector("BOOT\r\n", power_button=True)
