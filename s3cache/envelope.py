"""How a manifest, a segment or a catalog is written: a header, which may be signed, and a body. Pure.

What is signed are the header's bytes, and the header has the digest of the body: so a check costs the
same however large the body is, and nothing of the body is decoded before.
"""

import time
from typing import Annotated, Literal, NamedTuple

import msgspec

from s3cache.decoding import decode
from s3cache.digest import DIGEST_BYTES, raw_digest_of
from s3cache.errors import Corrupt, Forbidden
from s3cache.keyring import Keyring

Kind = Literal["manifest", "segment", "catalog"]

SEAL_BYTES = 4 << 10
"""What an envelope has at most beside its body."""
_CONTEXT = b"s3cache envelope v1\0"
_Text = Annotated[str, msgspec.Meta(max_length=1024)]


class Header(msgspec.Struct, frozen=True, array_like=True):
    """What an object is, under which prefix, who signed it and when, in seconds since 1970."""

    kind: Kind
    tenant: _Text
    key_id: _Text
    signer: _Text
    time: float
    digest: Annotated[bytes, msgspec.Meta(min_length=DIGEST_BYTES, max_length=DIGEST_BYTES)]


class Opened(NamedTuple):
    """What was in an envelope; `key_id` is whose signature held, or nothing."""

    key_id: str
    body: bytes


class _Envelope(msgspec.Struct, frozen=True, array_like=True):
    header: Annotated[bytes, msgspec.Meta(max_length=SEAL_BYTES)]
    signature: Annotated[bytes, msgspec.Meta(max_length=64)]
    body: bytes


_encoder = msgspec.msgpack.Encoder()
_envelopes = msgspec.msgpack.Decoder(_Envelope)
_headers = msgspec.msgpack.Decoder(Header)


def seal(kind: Kind, body: bytes, keyring: Keyring) -> bytes:
    """Return `body` in an envelope, signed if the keyring signs.

    Raises Forbidden when it trusts some and has no key to sign with: nobody would read that.
    """
    if keyring.trusted and keyring.signing is None:
        raise Forbidden(f"there is no key to sign a {kind} with; set S3CACHE_SIGNING_KEY")
    digest = raw_digest_of(body)
    key = keyring.signing
    if key is None:
        header = _encoder.encode(Header(kind, keyring.tenant, "", "", 0.0, digest))
        return _encoder.encode(_Envelope(header, b"", body))
    header = _encoder.encode(
        Header(kind, keyring.tenant, key.public.id, key.public.name, time.time(), digest)
    )
    return _encoder.encode(_Envelope(header, key.sign(_CONTEXT + header), body))


def unseal(kind: Kind, data: bytes, keyring: Keyring) -> Opened:
    """Return what is in an envelope of a kind.

    Raises Untrusted when nobody whom the keyring trusts has signed it, Corrupt when it is damaged.
    """
    envelope = decode(data, _envelopes, "an envelope")
    header = decode(envelope.header, _headers, "an envelope's header")
    if header.kind != kind:
        raise Corrupt(f"a {header.kind} is no {kind}")
    keyring.verify(header.tenant, header.key_id, envelope.signature, _CONTEXT + envelope.header)
    if raw_digest_of(envelope.body) != header.digest:
        raise Corrupt(f"a {kind} does not match its digest")
    return Opened(header.key_id, envelope.body)
