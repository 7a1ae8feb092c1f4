"""Keys for tests: always the same ones."""

from s3cache.keyring import Keyring, SigningKey

TENANT = "prefix"


def key(name: str) -> SigningKey:
    """Return the secret key of that name."""
    return SigningKey(name, name.encode().ljust(32, b"\0"))


ALICE, BOB, MALLORY = key("alice"), key("bob"), key("mallory")


def signs(signer: SigningKey, *trusted: SigningKey, tenant: str = TENANT) -> Keyring:
    """Return the keyring of who signs with a key and trusts it, and others."""
    return Keyring(tenant, [each.public for each in (signer, *trusted)], signer)


def trusts(*trusted: SigningKey, tenant: str = TENANT) -> Keyring:
    """Return the keyring of who only reads."""
    return Keyring(tenant, [each.public for each in trusted])
