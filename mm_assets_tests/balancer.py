"""What a load balancer that logged somebody in says of them."""

import base64
import json
import time
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

BALANCER = "arn:aws:elasticloadbalancing:eu-west-2:111111111111:loadbalancer/app/mm/1"
KEY_ID = "0d5d6a5e-0f0f-4b4b-8c8c-123456789abc"
CLAIMS = {"sub": "1", "email": "ann@example.org", "groups": ["staff", "mm-operators"]}


class Signer:
    """A balancer's signing key."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.pem = (
            self._key.public_key()
            .public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
            .decode()
        )

    def word(self, claims: dict[str, Any] = CLAIMS, **header: Any) -> str:
        """The header's value, with the padding of base64 that JWTs have nowhere else."""
        about = {
            "typ": "JWT",
            "alg": "ES256",
            "kid": KEY_ID,
            "signer": BALANCER,
            "client": "operators",
            "exp": int(time.time()) + 120,
            **header,
        }
        signed = f"{_encoded(about)}.{_encoded(claims)}"
        r, s = decode_dss_signature(self._key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
        signature = base64.urlsafe_b64encode(r.to_bytes(32, "big") + s.to_bytes(32, "big"))
        return f"{signed}.{signature.decode()}"


def _encoded(part: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).decode()
