"""The entry: the agent and the probe start without the command line's libraries."""

from __future__ import annotations

import gc
import sys


def main() -> int:
    """Dispatch ``vpccni …``."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["agent"] and "--check-config" in arguments:
        from vpccni.check_config import main as check_config

        return check_config(arguments[1:])
    if arguments[:1] == ["agent"]:
        gc.disable()  # until it serves: what an import makes stays
        _import_structlog_alone()
        from vpccni.app import main as agent

        return agent(arguments[1:])
    if arguments[:1] == ["probe"]:
        from vpccni.probe import main as probe

        return probe(arguments[1:])
    if arguments[:1] == ["replay"]:
        from vpccni.replay.cli import main as replay

        return replay(arguments[1:])
    from vpccni.cli.main import main as command_line

    return command_line()


def _import_structlog_alone() -> None:
    """Import structlog without rich, which it would load for tracebacks on a terminal: 60 ms and 4 MiB.

    Without rich structlog works as documented; afterwards it can be imported as ever.
    """
    if "rich" in sys.modules:
        return
    sys.modules["rich"] = None  # type: ignore[assignment]  # Python's way to say: not installed
    try:
        import structlog  # noqa: F401
    finally:
        del sys.modules["rich"]


if __name__ == "__main__":
    sys.exit(main())
