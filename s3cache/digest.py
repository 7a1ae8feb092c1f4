"""The one hash of the project."""

from blake3 import blake3

DIGEST_BYTES = 32


def digest_of(content: bytes) -> str:
    """Return the BLAKE3 digest of `content` as 64 hexadecimal digits."""
    return blake3(content).hexdigest()


def raw_digest_of(content: bytes) -> bytes:
    """Return the BLAKE3 digest of `content` as it is kept beside content: 32 bytes."""
    return blake3(content).digest()
