"""Ids, MAC addresses and request ids: derived from the seed and a counter, never from chance or time."""

import hashlib


class IdSource:
    """Deterministic ids of one region; the counters of the kinds are independent of each other."""

    def __init__(self, seed: int | str) -> None:
        self._seed = seed
        self._count: dict[str, int] = {}

    def _digest(self, kind: str) -> str:
        number = self._count.get(kind, 0) + 1
        self._count[kind] = number
        return hashlib.sha256(f"{self._seed}/{kind}/{number}".encode()).hexdigest()

    def resource_id(self, kind: str) -> str:
        """Return an id such as ``eni-0f3c…``: the kind and 17 hexadecimal digits, the first one 0."""
        return f"{kind}-0{self._digest(kind)[:16]}"

    def mac(self) -> str:
        """Return a locally administered unicast MAC address."""
        digest = self._digest("mac")
        return ":".join(["02", *(digest[i : i + 2] for i in range(0, 10, 2))])

    def public_ip(self) -> str:
        """Return an address of TEST-NET-3 and, when that is used up, of the benchmarking range."""
        number = self._count.get("public", 0) + 1
        self._count["public"] = number
        if number <= 250:
            return f"203.0.113.{number}"
        number -= 251
        return f"198.18.{number // 250 % 256}.{number % 250 + 1}"

    def request_id(self) -> str:
        """Return an id in the form of a UUID."""
        d = self._digest("request")
        return f"{d[:8]}-{d[8:12]}-{d[12:16]}-{d[16:20]}-{d[20:32]}"
