"""The entry: the agent and the probe start without the command line's libraries."""

from __future__ import annotations

import sys


def main() -> int:
    """Dispatch ``vpccni …``."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["agent"]:
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


if __name__ == "__main__":
    sys.exit(main())
