"""As much of an API server as the agent asks: its own Node and the pods on it, over TLS, in the node's namespace.

The agent finds it as in a cluster: by environment variables and by the service account's files in ``/run``, which
is private to this world.
"""

from __future__ import annotations

import datetime
import ipaddress
import ssl
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from aiohttp import web

from vpccni.lab.fabric.namespaces import Namespace, listen_in

ADDRESS: Final = "169.254.169.253"
PORT: Final = 6443
ENVIRONMENT: Final = {"KUBERNETES_SERVICE_HOST": ADDRESS, "KUBERNETES_SERVICE_PORT": str(PORT)}
SERVICE_ACCOUNT: Final = Path("/run/secrets/kubernetes.io/serviceaccount")
_KEY: Final = Path("/run/bench-key.pem")


def furnish_run(scratch: Path) -> None:
    """Put a private ``/run`` over this world's, with a service account in it. Nothing outside sees it.

    Args:
        scratch: A directory in which one can be made to mount it on first.
    """
    if SERVICE_ACCOUNT.exists():
        return
    new = scratch / "run"
    new.mkdir(parents=True, exist_ok=True)
    _run("mount", "-n", "-t", "tmpfs", "-o", "mode=0755", "run", str(new))
    (new / "netns").mkdir()
    _run("mount", "-n", "--move", "/run/netns", str(new / "netns"))
    _run("mount", "-n", "--move", str(new), "/run")
    new.rmdir()
    SERVICE_ACCOUNT.mkdir(parents=True)
    (SERVICE_ACCOUNT / "token").write_text("bench")
    _make_certificate(SERVICE_ACCOUNT / "ca.crt", _KEY)


@asynccontextmanager
async def api_server(
    node: Namespace, pods: int, living: Mapping[str, str] | None = None
) -> AsyncIterator[None]:
    """Serve the agent of one node.

    Args:
        node: Where the agent is.
        pods: The node's capacity.
        living: The pods that are there: address by name, all in the namespace ``bench``.
    """
    items = [_pod(name, address) for name, address in (living or {}).items()]

    async def answer(request: web.Request) -> web.Response:
        if request.path.startswith("/api/v1/nodes/"):
            capacity = {"capacity": {"pods": str(pods)}}
            return web.json_response({"kind": "Node", "apiVersion": "v1", "status": capacity})
        return web.json_response(
            {"kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": items}
        )

    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(SERVICE_ACCOUNT / "ca.crt", _KEY)
    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.SockSite(runner, listen_in(node, ADDRESS, PORT), ssl_context=tls).start()
        yield
    finally:
        await runner.cleanup()


def _pod(name: str, address: str) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "namespace": "bench", "uid": f"uid-of-{name}"},
        "spec": {},
        "status": {"phase": "Running", "podIPs": [{"ip": address}]},
    }


def _make_certificate(certificate: Path, key: Path) -> None:
    from cryptography import x509  # comes with the development dependencies
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "bench")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(private.public_key()), critical=False)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(ADDRESS))]), critical=False
        )
        .sign(private, hashes.SHA256())
    )
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key.touch(mode=0o600)
    key.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )


def _run(*command: str) -> None:
    subprocess.run(command, check=True)
