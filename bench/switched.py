"""The agent with an export that a signal switches off and on: ``python -m bench.switched``, with the agent's flags.

SIGUSR1 switches it off, SIGUSR2 on; it begins switched on. While it is off nobody hears that leases came or went,
so nothing is made of them and nothing is written. Everything else is the real one, in one and the same process: so
what an ADD costs with and without can be compared within seconds.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

from vpccni import app
from vpccni.events.codec import Record
from vpccni.loops import agent
from vpccni.loops.export import Export


class SwitchedExport(Export):
    """Deaf while it is switched off."""

    is_on = True

    def on_records(self, records: Sequence[Record]) -> None:
        """See :class:`vpccni.loops.export.Export`."""
        if SwitchedExport.is_on:
            super().on_records(records)


def _switch(number: int, _: object) -> None:
    SwitchedExport.is_on = number == signal.SIGUSR2


def main() -> int:
    """Run it; see :func:`vpccni.app.main`."""
    signal.signal(signal.SIGUSR1, _switch)
    signal.signal(signal.SIGUSR2, _switch)
    vars(agent)["Export"] = SwitchedExport
    return app.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
