"""``vpccni probe ready|live``: for the DaemonSet's probes. Standard library only: it starts in 20 ms."""

from __future__ import annotations

import argparse
import socket
import sys
from collections.abc import Sequence

_PATHS = {"ready": "/readyz", "live": "/healthz"}


def main(arguments: Sequence[str]) -> int:
    """Ask the agent. Exit code 0 for yes; 1 for no or no answer, with the answer on standard error."""
    parser = argparse.ArgumentParser(
        prog="vpccni probe", description="Ask the agent on this node whether it is alive, or ready."
    )
    parser.add_argument("what", choices=sorted(_PATHS))
    parser.add_argument("--socket", default="/var/run/aws-node/vpccni.sock")
    parser.add_argument("--timeout", type=float, default=5.0, help="seconds (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        answer = _ask(options.socket, _PATHS[options.what], options.timeout)
    except OSError as error:
        sys.stderr.write(f"no answer on {options.socket}: {error}\n")
        return 1
    head, _, body = answer.partition(b"\r\n\r\n")
    if head.split(b" ", 2)[1:2] == [b"200"]:
        return 0
    sys.stderr.write(body.decode(errors="replace") + "\n")
    return 1


def _ask(path: str, target: str, timeout_s: float) -> bytes:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout_s)
        connection.connect(path)
        connection.sendall(f"GET {target} HTTP/1.1\r\nHost: vpccni\r\nConnection: close\r\n\r\n".encode())
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
    return received
