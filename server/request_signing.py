"""The coordinator's signature on every request, and with it on every global model that a site is sent."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from federation_configs.records import Enclosure, pack
from federation_configs.signatures import load_signing_key, sign
from federation_configs.wire import LONGEST_VALIDITY_S, Request, Stamp, request_purpose

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from flwr.app import RecordDict


class RequestSigner:
    """Stamps and signs requests of one federation.

    Args:
        key: the coordinator's signing key, whose public half the sites have pinned.
        federation: its name, which the sites have pinned too; not the name of a configuration.
        clock: seconds since 1970.
    """

    def __init__(self, key: Ed25519PrivateKey, federation: str, clock: Callable[[], float] = time.time) -> None:
        self._key, self._federation, self._clock = key, federation, clock

    @classmethod
    def load(cls, key_file: Path, federation: str) -> RequestSigner:
        """A signer with the key in a PEM file.

        Raises:
            InputError: there is no such file, or it holds something else.
        """
        return cls(load_signing_key(key_file), federation)

    def pack(
        self, kind: str, request: Request, *, site: str | None, valid_s: float, beside: Enclosure | None = None
    ) -> RecordDict:
        """A signed record of ``request`` and of the weights beside it.

        Args:
            kind: what is asked, for instance train; a signature for one is none for another.
            request: without a stamp.
            site: the only site that it is for; None: any.
            valid_s: seconds for which it is good, at most `LONGEST_VALIDITY_S`.
            beside: the global weights; they are hashed once, not once per site.
        """
        now = self._clock()
        stamp = Stamp(
            federation=self._federation,
            site=site,
            issued=now,
            expires=now + min(valid_s, LONGEST_VALIDITY_S),
            nonce=secrets.token_hex(16),
        )
        stamped = request.model_copy(update={"stamp": stamp})
        return pack(stamped, beside, partial(sign, self._key, request_purpose(kind)))


def pack_for_any(
    signer: RequestSigner | None, kind: str, request: Request, nodes: Mapping[int, str | None], *, valid_s: float
) -> dict[int, RecordDict]:
    """A request without weights for each node, in its site's name where that is known; unsigned without a signer.

    In its name, so that one site cannot have another answer what was asked of itself.
    """
    if signer is None:
        return dict.fromkeys(nodes, pack(request))
    return {node: signer.pack(kind, request, site=site, valid_s=valid_s) for node, site in nodes.items()}


def pack_for_sites(
    signer: RequestSigner | None,
    kind: str,
    request: Request,
    nodes: Mapping[int, str],
    beside: Enclosure,
    *,
    valid_s: float,
) -> dict[int, RecordDict]:
    """A request with weights for each node's site; all of the records share the one array."""
    if signer is None:
        return dict.fromkeys(nodes, pack(request, beside))
    return {node: signer.pack(kind, request, site=site, valid_s=valid_s, beside=beside) for node, site in nodes.items()}
