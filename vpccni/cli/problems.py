"""How a command ends when it cannot do what was asked."""

from __future__ import annotations

from typing import Final

NOT_GOOD: Final = 1
USAGE: Final = 2
NO_ANSWER: Final = 3
NO_WORLD: Final = 125  # as `vpccni.lab.fabric.enter` exits


class CommandError(Exception):
    """A command cannot do what was asked: a sentence for a person, and the exit code."""

    def __init__(self, message: str, exit_code: int = NOT_GOOD) -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code
