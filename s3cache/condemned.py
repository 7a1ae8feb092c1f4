"""Lists of what is condemned: a clean-up may delete it a while later, if nobody uses it by then. Pure."""

from collections.abc import Iterable

from s3cache import frame
from s3cache.digest import digest_of
from s3cache.errors import Corrupt

NAMES = 20_000
"""How many names one list has at most."""
LIST_BYTES = NAMES * 512
"""More than any list has, unpacked too: no name has 512 bytes."""


def encode(names: Iterable[str]) -> bytes:
    """Return the list of names."""
    return frame.compress("\n".join(names).encode())


def decode(name: str, data: bytes) -> list[str]:
    """Return the names in the list of that name. Raises Corrupt when it is damaged."""
    if not name.endswith(f"-{_digits(data)}"):
        raise Corrupt(f"{name} does not match its digest")
    try:
        return frame.decompress(data, LIST_BYTES).decode().split("\n")
    except UnicodeDecodeError as error:
        raise Corrupt(f"{name} holds no names: {error}") from error


def name_of(data: bytes, now: float) -> str:
    """Return the name of a list that is made at `now`."""
    return f"condemned/{int(now * 1000):013d}-{_digits(data)}"


def _digits(data: bytes) -> str:
    return digest_of(data)[:32]
