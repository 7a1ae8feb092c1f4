"""What a job's process and the agent say to each other, over a Unix socket. Pure.

A message is four bytes of length, little-endian, then so many of msgpack. `Lookup`, `ProfileOf`,
`ViewOf`, `Agreed`, `ProgressOf`, `TraceOf` and `Flush` are answered; the others are only said. One answer
in a run may have a warning, for the process to pass on.
"""

import struct
from typing import Literal

import msgspec

from s3cache.decoding import decode
from s3cache.errors import Corrupt
from s3cache.ledger import Event

VERSION = "1"
HEADER = struct.Struct("<I")
REQUEST_BYTES = 1 << 20
"""What a request may be: the agent holds one of each process in memory."""
REPLY_BYTES = 64 << 20
"""What a reply may be: the keys of a profile, or the events of a run."""

Status = Literal["ready", "unusable", "absent", "unavailable"]


class Hello(msgspec.Struct, tag=True, frozen=True):
    """The first message: for which run of which job this process works, and whether to keep its events."""

    run: str
    job: str
    report: str | None
    is_traced: bool = False


class Lookup(msgspec.Struct, tag=True, frozen=True):
    """Ask that a slot be brought into the disk tier, without `members` all that is not on demand.

    The answer is due at `deadline`, by the monotonic clock that all processes of a machine share.
    """

    namespace: str
    key: str
    slot: int
    members: list[str] | None
    deadline: float


class Hit(msgspec.Struct, tag=True, frozen=True):
    """A slot was used, with the members on demand that were `opened`; `seconds` went into reading it."""

    namespace: str
    key: str
    slot: int
    opened: list[str]
    seconds: float


class Use(msgspec.Struct, tag=True, frozen=True):
    """A key was used that was found without the cache."""

    namespace: str
    key: str


class Miss(msgspec.Struct, tag=True, frozen=True):
    """A key had nothing that this machine can use."""

    namespace: str


class Quarantined(msgspec.Struct, tag=True, frozen=True):
    """Objects on disk did not match their digest."""

    count: int


class Waited(msgspec.Struct, tag=True, frozen=True):
    """The process waited."""

    what: str
    seconds: float


class Spooled(msgspec.Struct, tag=True, frozen=True):
    """There is a new file in the spool."""


class ProfileOf(msgspec.Struct, tag=True, frozen=True):
    """Ask which keys of a namespace, or of all that begin so, the job's profile has."""

    namespace_prefix: str


class ViewOf(msgspec.Struct, tag=True, frozen=True):
    """Ask what this run sees on this machine: that is decided when it is first asked."""


class Agreed(msgspec.Struct, tag=True, frozen=True):
    """The ranks of several machines have agreed on a view: keep it for the processes they start."""

    view: bytes


class ProgressOf(msgspec.Struct, tag=True, frozen=True):
    """Ask how far the prefetch of the job has come."""


class TraceOf(msgspec.Struct, tag=True, frozen=True):
    """Ask for the events of the run."""


class Flush(msgspec.Struct, tag=True, frozen=True):
    """Ask that the spool be emptied and the report be written, within `seconds`."""

    seconds: float


Request = (
    Hello
    | Lookup
    | Hit
    | Use
    | Miss
    | Quarantined
    | Waited
    | Spooled
    | ProfileOf
    | ViewOf
    | Agreed
    | ProgressOf
    | TraceOf
    | Flush
)


class Found(msgspec.Struct, tag=True, frozen=True):
    """What a look-up came to."""

    status: Status
    warning: str | None = None


class Profile(msgspec.Struct, tag=True, frozen=True):
    """Namespaces and keys, in the order of use."""

    keys: list[tuple[str, str]]


class ViewIs(msgspec.Struct, tag=True, frozen=True):
    """A view; None while it is not decided."""

    view: bytes | None
    warning: str | None = None


class ProgressIs(msgspec.Struct, tag=True, frozen=True):
    """How far a prefetch has come, in bytes; `of` is 0 until that is known."""

    bytes: int
    of: int
    is_over: bool


class Events(msgspec.Struct, tag=True, frozen=True):
    """What a run has kept, and how many events more there were."""

    events: list[Event]
    left_out: int


class Flushed(msgspec.Struct, tag=True, frozen=True):
    """How many results still wait, and the report as JSON."""

    pending: int
    report: bytes
    warning: str | None = None


Reply = Found | Profile | ViewIs | ProgressIs | Events | Flushed

_encoder = msgspec.msgpack.Encoder()
_requests: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_replies: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)


def length_of(header: bytes, limit: int) -> int:
    """Return how long the message after `header` is. Raises Corrupt when that is more than `limit`."""
    length: int = HEADER.unpack(header)[0]
    if length > limit:
        raise Corrupt(f"a message of {length} bytes, at most {limit} are taken")
    return length


def decode_request(body: bytes) -> Request:
    """Return the request in `body`. Raises Corrupt when it is none."""
    return decode(body, _requests, "a request")


def decode_reply(body: bytes) -> Reply:
    """Return the reply in `body`. Raises Corrupt when it is none."""
    return decode(body, _replies, "a reply")


def frame(message: Request | Reply) -> bytes:
    """Return a message as it goes over the socket."""
    body = _encoder.encode(message)
    return HEADER.pack(len(body)) + body
