"""Whose signatures count: the public keys that are trusted, and the key that signs here. Pure.

A public key is written `NAME ed25519:BASE64`, a secret one `NAME ed25519-secret:BASE64`, 32 bytes each.
"""

import binascii
import re
from base64 import b64decode, b64encode
from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache
from typing import Self

import msgspec

from s3cache.digest import digest_of
from s3cache.errors import SettingsError, Untrusted

KEY_BYTES = 32
_PUBLIC = "ed25519:"
_SECRET = "ed25519-secret:"  # noqa: S105
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}\Z")
_CHECKS_KEPT = 4096


class PublicKey(msgspec.Struct, frozen=True, dict=True):
    """A public key, and what its owner is called."""

    name: str
    data: bytes

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the public key that is written so. Raises SettingsError when it is none."""
        return cls(*_parse(text, _PUBLIC))

    @cached_property
    def id(self) -> str:
        """What stands for the key in what it signed: 16 hexadecimal digits of its BLAKE3 digest."""
        return digest_of(self.data)[:16]

    def __str__(self) -> str:
        return f"{self.name} {_PUBLIC}{b64encode(self.data).decode()}"


class SigningKey:
    """A secret key. Nothing but `secret_text` shows it."""

    def __init__(self, name: str, seed: bytes) -> None:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        self._seed = seed
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.public = PublicKey(name, self._key.public_key().public_bytes_raw())

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the secret key that is written so. Raises SettingsError, without it, when it is none."""
        return cls(*_parse(text, _SECRET))

    def sign(self, message: bytes) -> bytes:
        """Return the signature of a message."""
        return self._key.sign(message)

    @property
    def secret_text(self) -> str:
        """The key as it is written down."""
        return f"{self.public.name} {_SECRET}{b64encode(self._seed).decode()}"

    def __repr__(self) -> str:
        return f"SigningKey({self.public.id})"


class Keyring:
    """Says whose objects are trusted under a tenant, and signs.

    Without trusted keys everybody's are, and what is written is not signed.
    Raises SettingsError when what signs here is not trusted.
    """

    def __init__(
        self, tenant: str, trusted: Iterable[PublicKey] = (), signing: SigningKey | None = None
    ) -> None:
        self.tenant = tenant
        self._trusted = {key.id: key for key in trusted}
        self.signing: SigningKey | None = None
        if signing is not None:
            self.sign_with(signing)

    def sign_with(self, key: SigningKey) -> None:
        """Sign with `key` from now on. Raises SettingsError when it is not trusted here."""
        if key.public.id not in self._trusted:
            raise SettingsError(
                f"S3CACHE_SIGNING_KEY is {key.public.name} ({key.public.id}), which S3CACHE_TRUSTED_KEYS "
                "does not name, so nothing is stored; add its public key, or sign with one that is trusted"
            )
        self.signing = key

    @property
    def trusted(self) -> Sequence[PublicKey]:
        """The keys that are trusted; none: everybody is."""
        return list(self._trusted.values())

    @property
    def trusted_id(self) -> str:
        """What stands for all keys that are trusted together."""
        return digest_of("\0".join(sorted(self._trusted)).encode())[:16]

    @property
    def signer(self) -> str:
        """The id of the key that signs here, or nothing."""
        return self.signing.public.id if self.signing else ""

    def trusts(self, key_id: str) -> bool:
        """Return whether what the key of that id signed is trusted."""
        return not self._trusted or key_id in self._trusted

    def verify(self, tenant: str, key_id: str, signature: bytes, message: bytes) -> None:
        """Raise Untrusted unless a trusted key has signed `message` for this tenant."""
        if not self._trusted:
            return
        if not key_id:
            raise Untrusted("it is not signed")
        if key_id not in self._trusted:
            raise Untrusted(f"it is signed by the key {key_id!r}, which is not trusted")
        if tenant != self.tenant:
            raise Untrusted(f"it is signed for the prefix {tenant!r}")
        _check(self._trusted[key_id].data, signature, message)


NO_KEYS = Keyring("")
"""Trusts everybody, and signs nothing."""


@lru_cache(_CHECKS_KEPT)
def _check(key: bytes, signature: bytes, message: bytes) -> None:
    # Takes 0.1 ms: one process checks one signature once.
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
    except InvalidSignature as error:
        raise Untrusted("its signature does not hold") from error


def _parse(text: str, form: str) -> tuple[str, bytes]:
    name, _, written = text.strip().partition(" ")
    wanted = f"a key is written NAME {form}BASE64"
    if _SECRET in written and form == _PUBLIC:
        raise SettingsError(f"{wanted}; what is given has a secret key in it, which nobody else may see")
    if not _NAME.match(name) or not written.strip().startswith(form):
        raise SettingsError(wanted)
    try:
        data = b64decode(written.strip().removeprefix(form), validate=True)
    except (binascii.Error, ValueError) as error:
        raise SettingsError(wanted) from error
    if len(data) != KEY_BYTES:
        raise SettingsError(f"{wanted}, of {KEY_BYTES} bytes")
    return name, data
