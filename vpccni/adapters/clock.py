"""The machine's clocks."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

from vpccni.errors import PermanentError, Reason
from vpccni.model import Stamp

BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
"""Linux: a new random UUID at every boot (proc_sys_kernel(5))."""


class SystemClock:
    """``CLOCK_REALTIME`` and ``CLOCK_BOOTTIME`` (which counts through suspend) with the boot id.

    The boot id is read once, at construction. Its path is a parameter because the nodes of a lab share
    one kernel and yet must be able to reboot each on its own.
    """

    def __init__(self, boot_id_path: Path = BOOT_ID) -> None:
        """Read the boot id.

        Raises:
            PermanentError: ``bad_setting`` when there is none: cooldowns could not be told apart over boots.
        """
        try:
            self.boot_id = boot_id_path.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise PermanentError(Reason.BAD_SETTING, f"the boot id cannot be read: {error}") from error
        if not self.boot_id:
            raise PermanentError(Reason.BAD_SETTING, f"the boot id in {boot_id_path} is empty")

    def now(self) -> Stamp:
        """The stamp of this instant."""
        return Stamp(time.time_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME), self.boot_id)
