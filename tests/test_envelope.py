"""Envelopes: what is signed, and that nothing of it can be changed, moved or left out."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3cache import envelope
from s3cache.envelope import Kind
from s3cache.errors import Corrupt, Forbidden, Untrusted
from s3cache.keyring import NO_KEYS, Keyring
from tests.signing import ALICE, BOB, MALLORY, signs, trusts

BODY = b"what a body may be" * 10


@pytest.mark.parametrize(
    ("writer", "reader"),
    [
        (NO_KEYS, NO_KEYS),
        (signs(ALICE), NO_KEYS),
        (signs(ALICE), trusts(ALICE)),
        (signs(BOB, ALICE), trusts(ALICE, BOB)),
    ],
)
def test_what_was_sealed_comes_back(writer: Keyring, reader: Keyring) -> None:
    opened = envelope.unseal("manifest", envelope.seal("manifest", BODY, writer), reader)
    assert opened == (writer.signer, BODY)


@pytest.mark.parametrize(
    "writer",
    [NO_KEYS, signs(MALLORY), signs(ALICE, tenant="other"), signs(ALICE, tenant="")],
    ids=["nobody", "a stranger", "for another prefix", "for the whole bucket"],
)
def test_what_nobody_trusted_has_signed_is_untrusted(writer: Keyring) -> None:
    data = envelope.seal("manifest", BODY, writer)
    with pytest.raises(Untrusted):
        envelope.unseal("manifest", data, trusts(ALICE))


@pytest.mark.parametrize("keyring", [NO_KEYS, signs(ALICE)], ids=["unsigned", "signed"])
def test_one_kind_is_not_taken_for_another(keyring: Keyring) -> None:
    kinds: list[Kind] = ["manifest", "segment", "catalog"]
    for sealed in kinds:
        for wanted in kinds:
            if sealed != wanted:
                with pytest.raises(Corrupt, match=f"is no {wanted}"):
                    envelope.unseal(wanted, envelope.seal(sealed, BODY, keyring), keyring)


@pytest.mark.parametrize("keyring", [NO_KEYS, signs(ALICE)], ids=["unsigned", "signed"])
def test_no_bit_can_be_changed(keyring: Keyring) -> None:
    sealed = envelope.seal("manifest", BODY, keyring)
    for place in range(len(sealed)):
        for bit in range(8):
            data = bytearray(sealed)
            data[place] ^= 1 << bit
            try:
                opened = envelope.unseal("manifest", bytes(data), keyring)
            except Corrupt:
                continue
            # Without a signature, nothing but the body counts.
            assert opened.body == BODY
            assert keyring is NO_KEYS


def test_a_header_cannot_be_put_on_another_body() -> None:
    header, signature, _ = msgspec.msgpack.decode(envelope.seal("manifest", BODY, signs(ALICE)))
    with pytest.raises(Corrupt, match="digest"):
        envelope.unseal("manifest", msgspec.msgpack.encode([header, signature, b"other"]), trusts(ALICE))


def test_a_signature_cannot_be_put_on_another_header() -> None:
    _, signature, _ = msgspec.msgpack.decode(envelope.seal("manifest", BODY, signs(ALICE)))
    header, _, _ = msgspec.msgpack.decode(envelope.seal("manifest", b"other", signs(ALICE)))
    with pytest.raises(Untrusted, match="does not hold"):
        envelope.unseal("manifest", msgspec.msgpack.encode([header, signature, b"other"]), trusts(ALICE))


def test_who_trusts_some_and_cannot_sign_writes_nothing() -> None:
    with pytest.raises(Forbidden, match="S3CACHE_SIGNING_KEY"):
        envelope.seal("manifest", BODY, trusts(ALICE))


@given(st.binary())
def test_any_bytes_are_corrupt(data: bytes) -> None:
    for keyring in NO_KEYS, trusts(ALICE):
        with pytest.raises(Corrupt):
            envelope.unseal("manifest", data, keyring)
