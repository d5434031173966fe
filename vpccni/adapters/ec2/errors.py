"""What a failed EC2 call means: transient, permanent, or nobody knows.

The one question is whether the call may have been applied. A refusal that EC2 itself words is an
answer: nothing was changed. A connection that never came about left nothing behind. Everything else
that a *changing* call meets after its request was sent (no reply, a reset, an unreadable reply, any
5xx that is not throttling) is unknown: an InternalError is known to arrive after the change was made.
"""

from __future__ import annotations

import re
from typing import Any, Final

from vpccni.errors import OutcomeUnknownError, PermanentError, Reason, TransientError, VpccniError

# EC2 API reference, "Error codes", and the codes that the SDKs agree to treat as throttling.
THROTTLING_CODES: Final = frozenset(
    {
        "RequestLimitExceeded",
        "Throttling",
        "ThrottlingException",
        "ThrottledException",
        "RequestThrottled",
        "RequestThrottledException",
        "EC2ThrottledException",
        "TooManyRequestsException",
        "BandwidthLimitExceeded",
        "SlowDown",
        "429",
    }
)
REASON_OF_CODE: Final[dict[str, Reason]] = {
    "InsufficientFreeAddressesInSubnet": Reason.SUBNET_EXHAUSTED,
    "InsufficientCidrBlocks": Reason.SUBNET_EXHAUSTED,
    "PrivateIpAddressLimitExceeded": Reason.INSTANCE_FULL,
    "AttachmentLimitExceeded": Reason.INSTANCE_FULL,
    "UnauthorizedOperation": Reason.EC2_UNAUTHORIZED,
    "AuthFailure": Reason.EC2_UNAUTHORIZED,
    "AccessDenied": Reason.EC2_UNAUTHORIZED,
    "AccessDeniedException": Reason.EC2_UNAUTHORIZED,
    "Blocked": Reason.EC2_UNAUTHORIZED,
    "ExpiredToken": Reason.EC2_UNAUTHORIZED,
    "ExpiredTokenException": Reason.EC2_UNAUTHORIZED,
    "RequestExpired": Reason.EC2_UNAUTHORIZED,
    "IncompleteSignature": Reason.EC2_UNAUTHORIZED,
    "InvalidAccessKeyId": Reason.EC2_UNAUTHORIZED,
    "InvalidClientTokenId": Reason.EC2_UNAUTHORIZED,
    "MissingAuthenticationToken": Reason.EC2_UNAUTHORIZED,
    "OptInRequired": Reason.EC2_UNAUTHORIZED,
    "PendingVerification": Reason.EC2_UNAUTHORIZED,
    "SignatureDoesNotMatch": Reason.EC2_UNAUTHORIZED,
    "UnrecognizedClientException": Reason.EC2_UNAUTHORIZED,
}

CREDENTIALS_RETRY_S: Final = 5.0
"""Credentials that are not there yet (role just bound, token file not yet projected) come within seconds."""
IN_USE_RETRY_S: Final = 2.0
"""EC2 needs a few seconds between a detach and a state in which the ENI can be deleted."""

_DETAIL_LENGTH_MAX: Final = 300
_SECRETS: Final[tuple[tuple[re.Pattern[str], str], ...]] = (
    (re.compile(r"Encoded authorization failure message:.*", re.DOTALL), ""),
    (re.compile(r"\(?Request ?ID:? ?[\w-]+\)?", re.IGNORECASE), ""),
    (re.compile(r"\barn:[^\s,;'\")\]]+"), "arn:…"),
    (re.compile(r"\b(?:AKIA|ASIA|AROA|AIDA)[A-Z0-9]{12,}\b"), "…"),
    (re.compile(r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", re.IGNORECASE), "…"),
    (re.compile(r"(?<![\w-])\d{12}(?![\w-])"), "…"),
)


def redact(text: str) -> str:
    """The text without ARNs, account numbers, access keys, request ids and encoded messages.

    What comes from here enters the event log, which must be fit to be handed to a stranger.
    """
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return " ".join(text.split())


def detail_of(action: str, text: str) -> str:
    """What was attempted and what came back, redacted and of bounded length."""
    return f"{action}: {redact(text)}"[:_DETAIL_LENGTH_MAX]


def outcome_code(error: BaseException) -> str:
    """A short name of the failure for a metric: EC2's code, else the name of the SDK's exception."""
    return ec2_code(error) or type(error).__name__


def ec2_code(error: BaseException) -> str:
    """EC2's error code in an SDK exception; empty when EC2 did not answer."""
    response: Any = getattr(error, "response", None)
    if not isinstance(response, dict):
        return ""
    code = str(response.get("Error", {}).get("Code") or "")
    return code.removeprefix("Client.").removeprefix("Server.")


def translate(error: BaseException, *, action: str, mutates: bool, sent: bool) -> VpccniError:
    """What an exception out of the SDK means for the caller.

    Args:
        error: Whatever came out of the SDK's call, ``TimeoutError`` of our own deadline included.
        action: The EC2 operation that was called.
        mutates: Whether the operation changes anything.
        sent: Whether the SDK had begun to hand the signed request to its HTTP client.
    """
    from botocore.exceptions import ClientError  # the SDK is imported late, see the package

    if isinstance(error, ClientError):
        if error.operation_name != action:
            return _without_credentials(error, action)
        return _refused(error, action=action, mutates=mutates)
    if not sent:
        return _never_left(error, action)
    if _is_connect_failure(error):
        return TransientError(Reason.EC2_UNREACHABLE, detail_of(action, str(error)))
    text = str(error) or "no reply in time"
    if mutates:
        return OutcomeUnknownError(Reason.EC2_UNREACHABLE, detail_of(action, text))
    return TransientError(Reason.EC2_UNREACHABLE, detail_of(action, text))


def _refused(error: Any, *, action: str, mutates: bool) -> VpccniError:
    """EC2 answered with an error."""
    code = ec2_code(error)
    metadata = error.response.get("ResponseMetadata", {})
    status = int(metadata.get("HTTPStatusCode") or 0)
    message = str(error.response.get("Error", {}).get("Message") or "")
    detail = detail_of(action, f"{code}: {message}")
    retry_after_s = _seconds(metadata.get("HTTPHeaders", {}).get("retry-after"))
    if code in THROTTLING_CODES:
        return TransientError(Reason.EC2_THROTTLED, detail, retry_after_s)
    if status >= 500 or status == 408:
        if mutates:
            return OutcomeUnknownError(Reason.EC2_UNREACHABLE, detail)
        reason = Reason.EC2_THROTTLED if status == 503 else Reason.EC2_UNREACHABLE
        return TransientError(reason, detail, retry_after_s)
    if action == "DeleteNetworkInterface" and (
        code == "InvalidNetworkInterface.InUse" or "currently in use" in message
    ):
        return TransientError(Reason.EC2_REFUSED, detail, IN_USE_RETRY_S)
    return PermanentError(REASON_OF_CODE.get(code, Reason.EC2_REFUSED), detail, code or f"HTTP{status}")


def _never_left(error: BaseException, action: str) -> VpccniError:
    """The call failed before its request was sent: it lacks a region, credentials or sense."""
    from botocore import exceptions as sdk  # the SDK is imported late, see the package

    if isinstance(error, sdk.BaseEndpointResolverError | sdk.EndpointProviderError | sdk.InvalidRegionError):
        return PermanentError(Reason.BAD_SETTING, detail_of(action, str(error)))
    if isinstance(error, sdk.ParamValidationError):
        return PermanentError(Reason.EC2_REFUSED, detail_of(action, str(error)))
    return _without_credentials(error, action)


def _without_credentials(error: BaseException, action: str) -> VpccniError:
    """No credentials could be had. A clear no from STS is permanent, everything else may pass."""
    code = ec2_code(error)
    detail = detail_of(action, f"no credentials: {error}")
    if code and REASON_OF_CODE.get(code) is Reason.EC2_UNAUTHORIZED:
        return PermanentError(Reason.EC2_UNAUTHORIZED, detail, code)
    return TransientError(Reason.EC2_UNAUTHORIZED, detail, CREDENTIALS_RETRY_S)


def _is_connect_failure(error: BaseException) -> bool:
    """Whether the connection itself failed, so that no byte of the request can have arrived.

    The SDK raises ``EndpointConnectionError`` also for a connection that was reset later: only the
    cause beneath it tells one from the other.
    """
    import aiohttp  # costs nothing after the SDK, which imports it
    from botocore import exceptions as sdk  # the SDK is imported late, see the package

    if isinstance(error, sdk.ConnectTimeoutError | sdk.SSLError | sdk.ProxyConnectionError):
        return True
    cause = getattr(error, "kwargs", {}).get("error")
    return isinstance(error, sdk.EndpointConnectionError) and isinstance(cause, aiohttp.ClientConnectorError)


def _seconds(text: object) -> float:
    """A Retry-After header in seconds; 0 when absent, a date or nonsense."""
    try:
        return max(0.0, min(float(str(text)), 300.0))
    except ValueError:
        return 0.0
