"""What a caller at the door can say: Flower's fleet calls over HTTP, signed or not, by hand.

Written from what Flower 1.41 sends, so that an upgrade which changes it is told by these tests.
"""

from __future__ import annotations

import http.client
import ssl
from base64 import b64encode
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_ssh_private_key,
)
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest
from flwr.proto.node_pb2 import Node
from google.protobuf.message import Message

PROTOBUF = "application/protobuf"


def key_of(kit: Path) -> ec.EllipticCurvePrivateKey:
    """The private key in a kit."""
    key = load_ssh_private_key((kit / "node.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


def public_bytes(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def signed(
    key: ec.EllipticCurvePrivateKey, *, age: timedelta = timedelta(0), by: object = None
) -> dict[str, str]:
    """The three headers of a node; ``by`` another key signs them."""
    moment = (datetime.now(UTC) - age).isoformat()
    signer = by if isinstance(by, ec.EllipticCurvePrivateKey) else key
    signature = signer.sign(moment.encode("ascii"), ec.ECDSA(hashes.SHA256()))
    return {
        "flwr-public-key": b64encode(public_bytes(key)).decode(),
        "flwr-timestamp": moment,
        "flwr-signature": b64encode(signature).decode(),
    }


def call(
    port: int,
    ca: Path,
    path: str,
    message: Message | bytes = b"",
    headers: dict[str, str] | None = None,
    method: str = "POST",
    size: int | None = None,
) -> tuple[int, bytes]:
    """Status and body of one call at localhost; ``size`` is what it says that its body has."""
    context = ssl.create_default_context(cafile=str(ca))
    connection = http.client.HTTPSConnection("localhost", port, context=context, timeout=20)
    body = message if isinstance(message, bytes) else message.SerializeToString()
    try:
        connection.putrequest(method, path, skip_accept_encoding=True)  # the path as it is
        for name, value in {
            "content-type": PROTOBUF,
            "accept": PROTOBUF,
            **(headers or {}),
        }.items():
            connection.putheader(name, value)
        connection.putheader("content-length", str(len(body) if size is None else size))
        connection.endheaders(body)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def activate(key: ec.EllipticCurvePrivateKey) -> ActivateNodeRequest:
    return ActivateNodeRequest(public_key=public_bytes(key), heartbeat_interval=30)


def pull(node: int) -> PullMessagesRequest:
    return PullMessagesRequest(node=Node(node_id=node))
