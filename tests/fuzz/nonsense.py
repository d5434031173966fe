"""What a fuzzer sends to the agent's socket: requests that are almost right, and bytes that are not even that.

Everything is drawn from one ``random.Random``, so a seed is enough to send it again. A *body* is the JSON of
``POST /v1/cni``; a *message* is the bytes of one HTTP request.
"""

from __future__ import annotations

import copy
import itertools
import json
import random
from collections.abc import Callable
from typing import Any, Final

VERBS: Final = ("ADD", "DEL", "CHECK", "STATUS", "GC")
NOWHERE: Final = "/run/netns/nobody"
"""No namespace is there: an ADD that names it can never become a lease."""

_STRINGS: Final[tuple[str, ...]] = (
    "", " ", ".", "..", "/", "-", "_", "a" * 200, "a" * 201, "a" * 5000, "\x00", "a\x00b", "é", "日本", "\ud800",
    "\u202e", "../../../etc/passwd", "..%2f..%2fetc", "%s%n%d", "a/b", "a\\b", "a b", "a\nb", "a:b", "'; DROP",
    "${HOME}", "$(id)", "eth0", "lo", "all", "eth%d", "e" * 15, "e" * 16, "é" * 8, "ADD", "add", "1.1.0", "2.0.0",
    "1.1", "1.1.0 ", "1e9", "null", "true", "\ufeff", "\U0001f600", "K8S_POD_NAME=x;K8S_POD_NAME=y", "=;=;=",
    ";" * 999,    "K8S_POD_UID=" + "u" * 9000, "IgnoreUnknown=1;;;", "10.0.0.1/32", "::ffff:10.0.0.1/32", "0",
)  # fmt: skip
_NAMESPACES: Final = (
    NOWHERE, "/run/netns/../netns/nobody", "/run/netns/nobody/", "//run//netns/./nobody", "../nobody", "nobody",
    "/", "/dev/zero", "/dev/tty", "/dev/full", "/etc/passwd", "/proc/self/ns/net", "/proc/thread-self/ns/net",
    "/proc/self/ns/mnt", "/proc/self/ns/user", "/proc/self/fd/0", "/proc/self/fd/99", "/proc/self/cwd",
    "/proc/self/mem", "/proc/kmsg", "/proc/self/root/run/netns/nobody", "/run/netns/a\x00b", "/" + "x" * 4094,
    "/" + "x" * 4095, "/" + "y/" * 3000, "/run/netns/" + "é" * 120, "\ud800", "/proc/999999999/ns/net",
)  # fmt: skip
_VALUES: Final[tuple[Any, ...]] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63) - 1, 10**400, 1.5, -0.0, 1e308, [], {}, [[]], [{}],
    {"": ""}, [None], ["1.1.0"], {"a": [1, {"b": [2]}]}, [0] * 500, {str(each): each for each in range(200)},
)  # fmt: skip
_KEYS: Final = (
    "command", "containerId", "netns", "ifname", "args", "path", "config", "cniVersion", "name", "type",
    "prevResult", "interfaces", "ips", "routes", "dns", "cni.dev/valid-attachments", "cni.dev/attachments",
    "containerID", "", "\x00", "__proto__", "é", "a" * 3000,
)  # fmt: skip
_HEADERS: Final[tuple[bytes, ...]] = (
    b"Expect: 100-continue", b"Expect: nonsense", b"Upgrade: websocket\r\nConnection: Upgrade",
    b"Upgrade: h2c", b"Content-Encoding: gzip", b"Content-Encoding: deflate", b"Content-Encoding: br",
    b"Content-Encoding: zstd", b"Content-Encoding: nonsense", b"Transfer-Encoding: gzip, chunked",
    b"Transfer-Encoding: identity", b"Content-Type: text/plain; charset=nonsense",
    b"Content-Type: multipart/form-data; boundary=x", b"Content-Type: \xff", b"Accept: text/html",
    b"Cookie: a=b; c=\"\\\"", b"Host: [::1", b"Host: a\r\nHost: b", b"X-\x00: y", b"X: \x00", b": empty", b"nocolon",
    b" folded: x", b"X: y\r\n z", b"Content-Length: +2", b"Content-Length: 0x10", b"Content-Length: 2, 2",
    b"Content-Length: 18446744073709551617", b"Connection: keep-alive, close", b"Connection: \xc3\x28",
    b"If-Modified-Since: nonsense", b"Range: bytes=0-9999999999", b"TE: trailers", b"X: " + b"h" * 9000,
    b"\r\n".join(b"X-%d: y" % each for each in range(300)),
)  # fmt: skip
_TARGETS: Final[tuple[bytes, ...]] = (
    b"/", b"*", b"/v1/cni", b"/v1/cni/", b"/v1/CNI", b"/v1/status", b"/v1/status?x=%zz", b"/v1/pods",
    b"/v1/pods?a[]=1&a[]=2", b"/v1/enis", b"/v1/enis#x", b"/healthz", b"/readyz", b"/v1/events",
    b"/v1/events?after=-1", b"/v1/events?after=9999999999999999999999", b"/v1/events?after=5&limit=3",
    b"/v1/events?limit=-5", b"/v1/events?limit=0", b"/v1/events?after=%00", b"/v1/events?after=1e3",
    b"/v1/events?after=\xd9\xa3", b"/v1/events?after=" + b"9" * 5000, b"/v1/events?limit=1&limit=2",
    b"/v1/events?after=1&follow=no&limit=2", b"/v1/../v1/status", b"/v1/%2e%2e/status", b"//v1/status",
    b"http://host/v1/status", b"http://[::1/v1/status", b"http://h:99999/v1/status", b"https://u:p@h/v1/pods",
    b"/v1/status\x00", b"/v1/status%00", b"/\xff\xfe", b"/v1/status HTTP/1.1 x", b"host:443", b"",
    b"/" + b"a" * 4000, b"/" + b"a" * 9000, b"/v1/events?" + b"&".join(b"a=%d" % n for n in range(2000)),
)  # fmt: skip
_METHODS: Final[tuple[bytes, ...]] = (
    b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"TRACE", b"CONNECT", b"PRI", b"get",
    b"G\x00T", b"G ET", b"M" * 3000, b"\xff", b"",
)  # fmt: skip
_VERSIONS: Final[tuple[bytes, ...]] = (
    b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/0.9", b"HTTP/1.", b"HTTP/11.1", b"http/1.1", b"ICY", b"",
    b"HTTP/1.1 ", b"HTTP/\xff",
)  # fmt: skip
_EDGES: Final = (0, 1, 127, 128, 255)


def request(verb: str, key: tuple[str, str], netns: str) -> dict[str, Any]:
    """A request as the executable makes it; ``key`` is (container id, ifname)."""
    return {
        "command": verb,
        "containerId": key[0],
        "netns": netns,
        "ifname": key[1],
        # A pod has one sandbox at a time, and its name makes that of the host's interface.
        "args": f"IgnoreUnknown=1;K8S_POD_NAMESPACE=fuzz;K8S_POD_NAME={key[0]}{key[1]};K8S_POD_UID=u",
        "path": "/opt/cni/bin",
        "config": {"cniVersion": "1.1.0", "name": "aws-cni", "type": "aws-cni"},
    }


def post(body: bytes, *headers: bytes) -> bytes:
    """``POST /v1/cni`` that leaves the connection open."""
    lines = [b"POST /v1/cni HTTP/1.1", b"Host: x", b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def get(target: str) -> bytes:
    """A GET that leaves the connection open."""
    return f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


class Nonsense:
    """Draws bodies and messages.

    Args:
        chance: The draws.
        netns: A namespace of this drawer's own, in which an ADD may succeed.
        name: Begins the container ids of this drawer's requests.
    """

    def __init__(self, chance: random.Random, netns: str, name: str) -> None:
        self._chance = chance
        self._netns = netns
        self._name = name
        self._edits: tuple[Callable[[bytearray], None], ...] = (
            self._flip, self._cut, self._insert, self._repeat, self._nest, self._append,
        )  # fmt: skip

    # -- well-formed nonsense ---------------------------------------------------------------------

    def key(self) -> tuple[str, str]:
        """A sandbox: mostly the one that the namespace is for, so that ADDs succeed and requests meet."""
        number = self._chance.choice([0, 0, 0, 0, 0, 1, 2])
        return f"{self._name}-{number}", "eth0" if self._chance.random() < 0.9 else "net1"

    def valid(self) -> dict[str, Any]:
        """A request with nothing wrong; most ADDs name a namespace that is not there."""
        chance = self._chance
        verb = chance.choice(VERBS)
        made = request(verb, self.key(), self._netns if chance.random() < 0.15 else NOWHERE)
        config = made["config"]
        if chance.random() < 0.3:
            config["cniVersion"] = chance.choice(["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"])
        if verb == "GC" and chance.random() < 0.8:
            config["cni.dev/valid-attachments"] = [{"containerID": self.key()[0], "ifname": "eth0"}] * 2
        if verb in ("ADD", "CHECK") and chance.random() < 0.3:
            config["prevResult"] = {
                "cniVersion": "1.1.0",
                "interfaces": [{"name": "eth9", "mac": "02:00:00:00:00:01"}],
                "ips": [{"address": "10.0.9.9/32", "interface": 0}],
                "dns": {"nameservers": ["10.0.0.2"]},
            }
        return made

    def body(self) -> bytes:
        """The JSON of a request with some things wrong, in its values or in its text."""
        chance = self._chance
        made = self.valid()
        for _ in range(chance.choice([0, 1, 1, 1, 2, 3, 6])):
            self._spoil(made)
        text = json.dumps(made, ensure_ascii=chance.random() < 0.5, indent=chance.choice([None, None, 1]))
        encoded = bytearray(text.encode("utf-8", "surrogatepass"))
        for _ in range(chance.choice([0, 0, 0, 1, 1, 2, 4])):
            chance.choice(self._edits)(encoded)
        if chance.random() < 0.002:
            encoded += b" " * chance.choice(
                [65_536, 1_048_576 - len(encoded), 1_048_577 - len(encoded), 2_000_000]
            )
        return bytes(encoded)

    def _spoil(self, made: dict[str, Any]) -> None:
        chance = self._chance
        at: Any = made
        while True:
            key = self._place_in(at)
            inner = at[key] if isinstance(at, list) else at.get(key)
            if not isinstance(inner, dict | list) or not inner or chance.random() < 0.3:
                break
            at = inner
        if isinstance(at, dict) and chance.random() < 0.2:
            at.pop(key, None)
        else:
            at[key] = self._value(str(key))

    def _place_in(self, at: Any) -> Any:
        if isinstance(at, list):
            return self._chance.randrange(len(at))
        if self._chance.random() < 0.1 or not at:
            return self._chance.choice(_KEYS)
        return self._chance.choice(list(at))

    def _value(self, key: str) -> Any:
        chance = self._chance
        if chance.random() < 0.35:
            return copy.deepcopy(chance.choice(_VALUES))
        if key == "netns" or chance.random() < 0.05:
            return chance.choice(_NAMESPACES)
        if key == "command" and chance.random() < 0.7:
            return chance.choice(VERBS)
        return chance.choice(_STRINGS)

    # -- its text ---------------------------------------------------------------------------------

    def _at(self, text: bytearray) -> int:
        return self._chance.randrange(len(text) + 1)

    def _flip(self, text: bytearray) -> None:
        if text:
            text[self._chance.randrange(len(text))] ^= 1 << self._chance.randrange(8)

    def _cut(self, text: bytearray) -> None:
        at = self._at(text)
        del text[at : at + self._chance.choice([1, 2, 10, len(text)])]

    def _insert(self, text: bytearray) -> None:
        pieces = (
            b"\x00", b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":",
            b"\\ud800", b"\\u0000", b"1e999", b"-", b"00", b"NaN", b"Infinity", b"//", b"\xef\xbb\xbf", b"\r\n\r\n",
            b"9" * 5000,
        )  # fmt: skip
        at = self._at(text)
        text[at:at] = self._chance.choice(pieces)

    def _repeat(self, text: bytearray) -> None:
        """Say a piece twice: duplicate keys, mostly."""
        at = self._at(text)
        comma = text.find(b",", at)
        if comma >= 0:
            text[comma:comma] = text[comma : comma + self._chance.choice([20, 40, 80])]

    def _nest(self, text: bytearray) -> None:
        depth = self._chance.choice([10, 127, 129, 1000, 20_000])
        if self._chance.random() < 0.5:
            text[:] = b'{"a":' * depth + bytes(text) + b"}" * depth
        else:
            start = text.find(b":", self._at(text))
            text[start + 1 : start + 1] = b"[" * depth + b"]" * depth + b',"z":'

    def _append(self, text: bytearray) -> None:
        text += self._chance.choice([b"{}", b"\x00", b" ", b"null", b"\n" * 100, bytes(text)])

    # -- HTTP -------------------------------------------------------------------------------------

    def question(self) -> bytes:
        """A GET (or the like) that ends with its head."""
        chance = self._chance
        method = chance.choice(_METHODS) if chance.random() < 0.3 else b"GET"
        version = chance.choice(_VERSIONS) if chance.random() < 0.1 else b"HTTP/1.1"
        lines = [b"%b %b %b" % (method, chance.choice(_TARGETS), version), b"Host: x"]
        if chance.random() < 0.3:
            lines.append(chance.choice(_HEADERS))
        return b"\r\n".join(lines) + b"\r\n\r\n"

    def message(self) -> bytes:
        """Bytes in which nothing can be counted on. They make no lease: no namespace in them exists."""
        chance = self._chance
        body = json.dumps(request(chance.choice(VERBS), self.key(), NOWHERE)).encode()
        kind = chance.randrange(8)
        if kind == 0:
            return chance.randbytes(chance.choice([1, 10, 100, 5000, 70_000]))
        if kind == 1:
            return bytes([chance.choice(_EDGES)]) * chance.choice([1, 1000, 100_000])
        if kind == 2:
            made = bytearray(post(body, chance.choice(_HEADERS)))
        elif kind == 3:
            made = bytearray(self._chunked(body))
        elif kind == 4:
            made = bytearray(self.question())
        elif kind == 5:
            made = bytearray(b"".join(self.question() for _ in range(chance.randrange(2, 40))))
        elif kind == 6:  # its length is a lie
            wrong = len(body) + chance.choice([-5, -1, 1, 50, 10**6, 10**9])
            made = bytearray(post(body).replace(b"%d" % len(body), b"%d" % wrong, 1))
        else:
            made = bytearray(b"GET /v1/status HTTP/1.1\r\n")
            made += chance.choice(
                [b"X: " + b"y" * 200_000, b"X: y\r\n" * 20_000, b"X:", b"\r", b"Host: x\r\n"]
            )
        for _ in range(chance.choice([0, 1, 1, 2, 5])):
            chance.choice((self._flip, self._flip, self._cut, self._insert))(made)
        return bytes(made)

    def _chunked(self, body: bytes) -> bytes:
        chance = self._chance
        head = b"POST /v1/cni HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
        if chance.random() < 0.2:
            head += chance.choice(_HEADERS) + b"\r\n"
        size = chance.choice([1, 7, 64, len(body)])
        pieces = [body[at : at + size] for at in range(0, len(body), size)]
        sizes = (
            b"%x", b"%X", b"0x%x", b"%x;ext=1", b"-%x", b"%x ", b"0000000000000000000%x", b"g%x",
            b"%xffffffffffffffff",
        )  # fmt: skip
        form = chance.choice(sizes) if chance.random() < 0.4 else b"%x"
        chunks = b"".join(form % len(piece) + b"\r\n" + piece + b"\r\n" for piece in pieces)
        end = chance.choice(
            [b"0\r\n\r\n", b"0\r\n\r\n", b"0\r\nX: y\r\n\r\n", b"0\r\n", b"", b"0\r\n\r\n0\r\n\r\n"]
        )
        return head + b"\r\n" + chunks + end

    def split(self, message: bytes) -> list[bytes]:
        """The message in a few pieces, to be sent one after the other."""
        cuts = sorted(
            self._chance.randrange(len(message) + 1) for _ in range(self._chance.choice([0, 0, 1, 3]))
        )
        edges = [0, *cuts, len(message)]
        return [message[start:end] for start, end in itertools.pairwise(edges) if start < end]
