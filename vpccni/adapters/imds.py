"""The IMDS port: the instance metadata service, version 2.

Source: EC2 user guide, "Use IMDS to access instance metadata". Every request carries a session token,
which lives for six hours and is renewed before its end, or at once when the service refuses it (401).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import aiohttp
import msgspec

from vpccni import __version__
from vpccni.errors import Reason, TransientError
from vpccni.model import Address, Cidr, InstanceFacts, InstanceId, Mac, cidr_span, parse_address, parse_cidr

DEFAULT_ENDPOINT: Final = "http://169.254.169.254"
ENDPOINT_VARIABLE: Final = "AWS_EC2_METADATA_SERVICE_ENDPOINT"

_TOKEN_PATH: Final = "latest/api/token"  # noqa: S105  # a path
_TOKEN_TTL_S: Final = 21_600
"""The most that IMDSv2 grants; one token request in six hours."""
_TOKEN_SPARE_S: Final = 300.0
"""Renewed that long before its end, so that no request ever meets an expired token."""
_CONNECT_TIMEOUT_S: Final = 1.0
_TOTAL_TIMEOUT_S: Final = 2.0
"""IMDS is on the host and answers within milliseconds; what exceeds the hop limit is never answered."""
_METADATA: Final = "latest/meta-data/"
_IDENTITY: Final = "latest/dynamic/instance-identity/document"

Exchange = Callable[[str, str, Mapping[str, str]], Awaitable[tuple[int, str]]]
"""Sends one request: method, path without leading slash, headers; gives status and body."""


class _Identity(msgspec.Struct, rename="camel"):
    """What we read of the identity document; it also holds the account id, which must not come further."""

    instance_id: str = ""
    instance_type: str = ""
    availability_zone: str = ""
    region: str = ""


class ImdsV2:
    """The ``Imds`` port. Every failure is ``TransientError`` (``imds_unreachable``); nothing is repeated.

    Attributes:
        requests: How many requests were sent, token requests included, for metrics.
    """

    def __init__(self, endpoint: str = "", exchange: Exchange | None = None) -> None:
        """Remember the settings; nothing is opened.

        Args:
            endpoint: Base URL; empty: ``AWS_EC2_METADATA_SERVICE_ENDPOINT``, then the link-local address.
            exchange: Sends requests in place of HTTP, for simulations.
        """
        base = endpoint or os.environ.get(ENDPOINT_VARIABLE) or DEFAULT_ENDPOINT
        self.requests = 0
        self._base = base.rstrip("/") + "/"
        self._exchange = exchange or self._send
        self._session: aiohttp.ClientSession | None = None
        self._token = ""
        self._token_until = 0.0
        self._renewing = asyncio.Lock()

    async def instance(self) -> InstanceFacts:
        """Who this machine is: three requests, four when there is no token yet."""
        document, mac = await self._both(self._get(_IDENTITY), self._need("mac"))
        identity = _decode_identity(document)
        az = identity.availability_zone or await self._need("placement/availability-zone")
        region = (
            identity.region or await self._get(_METADATA + "placement/region") or az.rstrip("abcdefghijk")
        )
        return InstanceFacts(
            id=InstanceId(identity.instance_id or await self._need("instance-id")),
            type=identity.instance_type or await self._need("instance-type"),
            az=az,
            region=region,
            primary_mac=Mac(mac.lower()),
            vpc_cidrs=await self.vpc_cidrs(Mac(mac)),
        )

    async def vpc_cidrs(self, mac: Mac) -> tuple[Cidr, ...]:
        """The CIDRs of the VPC of an attached ENI, sorted: one request. Empty when IMDS tells none."""
        folder = f"{_METADATA}network/interfaces/macs/{mac}/"
        # The singular is what a VPC with one CIDR has on endpoints that know no other.
        text = await self._get(folder + "vpc-ipv4-cidr-blocks") or await self._get(
            folder + "vpc-ipv4-cidr-block"
        )
        try:
            return tuple(sorted({parse_cidr(line) for line in (text or "").split()}, key=cidr_span))
        except ValueError as error:
            raise _unreachable("vpc-ipv4-cidr-blocks", error) from error

    async def attached_macs(self) -> tuple[str, ...]:
        """The MACs that IMDS lists, sorted: one request."""
        listing = await self._need("network/interfaces/macs/")
        return tuple(sorted(line.rstrip("/").lower() for line in listing.split()))

    async def subnet_cidr(self, mac: Mac) -> Cidr:
        """The CIDR of the subnet of an attached ENI: one request."""
        text = await self._need(f"network/interfaces/macs/{mac}/subnet-ipv4-cidr-block")
        try:
            return parse_cidr(text)
        except ValueError as error:
            raise TransientError(Reason.IMDS_UNREACHABLE, f"subnet-ipv4-cidr-block: {text[:40]!r}") from error

    async def addresses(self, mac: Mac) -> tuple[Address, ...]:
        """``local-ipv4s`` of an attached ENI; empty when IMDS does not list it (yet)."""
        text = await self._get(f"{_METADATA}network/interfaces/macs/{mac}/local-ipv4s")
        try:
            return tuple(parse_address(line) for line in (text or "").split())
        except ValueError as error:
            raise _unreachable("local-ipv4s", error) from error

    async def prefixes(self, mac: Mac) -> tuple[Cidr, ...]:
        """``ipv4-prefix`` and ``ipv6-prefix`` of an attached ENI: two requests; empty when it has none."""
        folder = f"{_METADATA}network/interfaces/macs/{mac}/"
        found = await self._both(self._get(folder + "ipv4-prefix"), self._get(folder + "ipv6-prefix"))
        try:
            return tuple(parse_cidr(line) for text in found for line in (text or "").split())
        except ValueError as error:
            raise _unreachable("ipv4-prefix", error) from error

    async def close(self) -> None:
        """Release connections. Idempotent; the next request opens anew."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _both(self, first: Awaitable[Any], second: Awaitable[Any]) -> tuple[Any, Any]:
        """Two requests side by side; the first failure ends both."""

        async def run(one: Awaitable[Any]) -> Any:
            return await one

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(run(one), name=f"imds-{number}")
                    for number, one in enumerate((first, second))
                ]
        except ExceptionGroup as failures:
            # Not ``except*``: before Python 3.11.4 what is raised in it comes out wrapped in a group again.
            expected, unforeseen = failures.split(TransientError)
            if expected is None or unforeseen is not None:
                raise
            raise _first(expected) from failures
        return tasks[0].result(), tasks[1].result()

    async def _need(self, name: str) -> str:
        """A metadata path that must exist and hold something."""
        text = await self._get(_METADATA + name)
        if not text:
            raise TransientError(Reason.IMDS_UNREACHABLE, f"{name}: absent")
        return text

    async def _get(self, path: str) -> str | None:
        """The text of a path, stripped; ``None`` when there is none (404)."""
        token = await self._fresh_token()
        status, text = await self._request("GET", path, {"X-aws-ec2-metadata-token": token})
        if status == 401:
            if self._token == token:
                self._token = ""  # unless a reader beside us has renewed it already
            token = await self._fresh_token()
            status, text = await self._request("GET", path, {"X-aws-ec2-metadata-token": token})
        if status not in {200, 404}:
            raise TransientError(Reason.IMDS_UNREACHABLE, f"{path}: HTTP {status}")
        return text.strip() if status == 200 else None

    async def _fresh_token(self) -> str:
        async with self._renewing:
            now = asyncio.get_running_loop().time()
            if not self._token or now >= self._token_until:
                headers = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_TTL_S)}
                status, text = await self._request("PUT", _TOKEN_PATH, headers)
                if status != 200 or not text.strip():
                    raise TransientError(Reason.IMDS_UNREACHABLE, f"{_TOKEN_PATH}: HTTP {status}")
                self._token = text.strip()
                self._token_until = now + _TOKEN_TTL_S - _TOKEN_SPARE_S
            return self._token

    async def _request(self, method: str, path: str, headers: Mapping[str, str]) -> tuple[int, str]:
        self.requests += 1
        try:
            return await self._exchange(method, path, headers)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise _unreachable(path, error) from error

    async def _send(self, method: str, path: str, headers: Mapping[str, str]) -> tuple[int, str]:
        """One request over HTTP, never through a proxy: the service is link-local."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=_TOTAL_TIMEOUT_S, sock_connect=_CONNECT_TIMEOUT_S),
                headers={"User-Agent": f"vpccni/{__version__}"},
                trust_env=False,
            )
        async with self._session.request(
            method, self._base + path, headers=headers, allow_redirects=False
        ) as response:
            return response.status, await response.text()


def _decode_identity(document: str | None) -> _Identity:
    """The identity document; one that cannot be read counts as absent, the single paths take its place."""
    try:
        return msgspec.json.decode(document or "{}", type=_Identity)
    except msgspec.DecodeError:
        return _Identity()


def _unreachable(path: str, error: BaseException) -> TransientError:
    return TransientError(Reason.IMDS_UNREACHABLE, f"{path}: {str(error) or type(error).__name__}")


def _first(failures: BaseExceptionGroup[TransientError]) -> TransientError:
    """The first of some failures, however deep they are nested."""
    failure: BaseException = failures
    while isinstance(failure, BaseExceptionGroup):
        failure = failure.exceptions[0]
    if not isinstance(failure, TransientError):
        raise TypeError("a group of TransientError holds something else")
    return failure
