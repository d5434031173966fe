"""HTTP over a Unix socket, with the standard library alone: a reading command starts in a fraction of a second."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from typing import Any, Final, NoReturn

from vpccni.cli.problems import NO_ANSWER, CommandError

TIMEOUT_S: Final = 10.0
FOLLOW_TIMEOUT_S: Final = 45.0
"""The agent sends an empty line at least every 15 seconds; three missed ones are a dead agent."""


class _Connection(http.client.HTTPConnection):
    """An HTTP connection to a path in place of a host."""

    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("agent", timeout=timeout_s)
        self._path = path
        self._timeout_s = timeout_s

    def connect(self) -> None:
        """Connect to the Unix socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self._timeout_s)
        self.sock.connect(self._path)


class UnixHttp:
    """Asks whoever listens on a Unix socket.

    Args:
        path: The socket.
        whose: Who should listen there, for messages: "the agent", "the lab".
        hint: What to do when nobody does.
    """

    def __init__(self, path: str, *, whose: str = "the agent", hint: str = "") -> None:
        self.path = path
        self._whose = whose
        self._hint = hint

    def get(self, target: str) -> Any:
        """GET a path; return its JSON.

        Raises:
            CommandError: nobody answered (exit code 3), or the answer was a refusal (1).
        """
        status, said = self.ask("GET", target)
        if status != 200:
            self._refuse(status, said)
        return said

    def post(self, target: str, body: Any, timeout_s: float = TIMEOUT_S) -> Any:
        """POST JSON to a path; return its JSON.

        Raises:
            CommandError: as for ``get``.
        """
        status, said = self.ask("POST", target, body, timeout_s)
        if status != 200:
            self._refuse(status, said)
        return said

    def ask(
        self, method: str, target: str, body: Any = None, timeout_s: float = TIMEOUT_S
    ) -> tuple[int, Any]:
        """Send a request; return status and JSON, whatever the status.

        Raises:
            CommandError: nobody answered, or not in JSON.
        """
        connection = _Connection(self.path, timeout_s)
        try:
            connection.request(method, target, None if body is None else json.dumps(body))
            reply = connection.getresponse()
            return reply.status, json.loads(reply.read() or b"null")
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._give_up(error)
        finally:
            connection.close()

    def lines(self, target: str, *, follows: bool = False) -> Iterator[Any]:
        """GET a path that answers with lines of JSON; yield each as it comes.

        Raises:
            CommandError: as for ``get``; also when the other side goes away in the middle.
        """
        connection = _Connection(self.path, FOLLOW_TIMEOUT_S if follows else TIMEOUT_S)
        try:
            connection.request("GET", target)
            reply = connection.getresponse()
            if reply.status != 200:
                self._refuse(reply.status, json.loads(reply.read() or b"null"))
            while line := reply.readline():
                if line.strip():
                    yield json.loads(line)
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._give_up(error)
        finally:
            connection.close()

    def _refuse(self, status: int, said: Any) -> NoReturn:
        message = said.get("msg") or said.get("message") if isinstance(said, dict) else None
        raise CommandError(message or f"{self._whose.capitalize()} answered with HTTP {status}: {said}")

    def _give_up(self, error: Exception) -> NoReturn:
        match error:
            case FileNotFoundError():
                why = "there is no such socket"
            case ConnectionRefusedError():
                why = "the socket is there, but nobody listens"
            case PermissionError():
                why = "this user may not open it"
            case TimeoutError():
                why = "no answer in time"
            case _:
                why = str(error) or type(error).__name__
        hint = f" {self._hint}" if self._hint else ""
        raise CommandError(f"No word from {self._whose} at {self.path}: {why}.{hint}", NO_ANSWER) from error
