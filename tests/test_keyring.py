"""Keys: how they are written, whose signatures hold, and that no secret is shown."""

import pytest

from s3cache.errors import SettingsError, Untrusted
from s3cache.keyring import NO_KEYS, Keyring, PublicKey, SigningKey
from tests.signing import ALICE, BOB, MALLORY, TENANT, signs, trusts

MESSAGE = b"what is signed"


def test_a_key_comes_back_as_it_was_written() -> None:
    assert PublicKey.parse(str(ALICE.public)) == ALICE.public
    assert SigningKey.parse(ALICE.secret_text).public == ALICE.public


def test_the_id_of_a_key_is_made_of_its_bytes_alone() -> None:
    assert len(ALICE.public.id) == 16
    assert PublicKey("renamed", ALICE.public.data).id == ALICE.public.id != BOB.public.id


@pytest.mark.parametrize(
    "text",
    [
        "",
        "alice",
        "ed25519:" + "A" * 43 + "=",
        "alice ed25519:",
        "alice ed25519:AAAA",
        "alice ed25519:" + "A" * 44,
        "alice ed25519:" + "?" * 43 + "=",
        "alice rsa:" + "A" * 43 + "=",
        "../alice ed25519:" + "A" * 43 + "=",
        "al\x1bice ed25519:" + "A" * 43 + "=",
        "alice bob ed25519:" + "A" * 43 + "=",
    ],
)
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="NAME ed25519:BASE64"):
        PublicKey.parse(text)


def test_a_secret_key_is_never_shown() -> None:
    secret = ALICE.secret_text.partition(":")[2]
    with pytest.raises(SettingsError, match="secret key") as refused:
        PublicKey.parse(ALICE.secret_text)
    with pytest.raises(SettingsError) as damaged:
        SigningKey.parse(ALICE.secret_text[:-3])
    shown = [repr(ALICE), str(ALICE), str(refused.value), str(damaged.value), repr(signs(ALICE))]
    assert not any(secret[:8] in text for text in shown)


def test_what_a_trusted_key_signed_is_trusted() -> None:
    for keyring in trusts(ALICE), trusts(BOB, ALICE), NO_KEYS:
        keyring.verify(TENANT, ALICE.public.id, ALICE.sign(MESSAGE), MESSAGE)


@pytest.mark.parametrize(
    ("tenant", "key_id", "signature"),
    [
        (TENANT, "", b""),
        (TENANT, BOB.public.id, BOB.sign(MESSAGE)),
        (TENANT, ALICE.public.id, BOB.sign(MESSAGE)),
        (TENANT, ALICE.public.id, b""),
        (TENANT, ALICE.public.id, bytes(64)),
        (TENANT, ALICE.public.id, ALICE.sign(MESSAGE + b".")),
        ("other", ALICE.public.id, ALICE.sign(MESSAGE)),
    ],
    ids=["unsigned", "by another", "in another's name", "without", "zeros", "of another", "elsewhere"],
)
def test_nothing_else_is(tenant: str, key_id: str, signature: bytes) -> None:
    with pytest.raises(Untrusted):
        trusts(ALICE).verify(tenant, key_id, signature, MESSAGE)


def test_who_trusts_nobody_in_particular_trusts_everybody() -> None:
    NO_KEYS.verify("any", "", b"", MESSAGE)
    assert NO_KEYS.trusts("")
    assert not trusts(ALICE).trusts("")


def test_a_key_that_is_not_trusted_here_does_not_sign_here() -> None:
    with pytest.raises(SettingsError, match="does not name"):
        Keyring(TENANT, [ALICE.public], MALLORY)
