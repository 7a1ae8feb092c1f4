"""Every decoder of bytes from outside, as a function that a fuzzer can call: it returns, or raises Corrupt.

A signature would keep a fuzzer out of what lies behind it, so bodies are sealed here, by nobody.
"""

import hashlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec

from s3cache import catalog, envelope, frame, manifest, names, pack, prelude, profile, spool
from s3cache.agent import protocol
from s3cache.catalog import Catalog, Reference
from s3cache.digest import raw_digest_of
from s3cache.errors import Corrupt, SettingsError
from s3cache.fleet import Report
from s3cache.keyring import NO_KEYS, PublicKey
from s3cache.manifest import Result
from s3cache.prelude import Prelude
from s3cache.profile import Segment
from s3cache.spool import Put
from tests.signing import ALICE, signs, trusts

INPUT_BYTES = 64 << 10
"""What a fuzzer tries at most."""
PEAK_BYTES = 32 << 20
"""What a decoder may allocate for that."""
SECONDS = 2.0
"""How long it may take."""
CORPUS = Path(__file__).with_name("corpus")

_PREFIX = names.profile_prefix("job", "linux-x86_64")
_GROWN_BYTES = 1 << 20


def attempt(target: str, data: bytes) -> None:
    """Decode `data`. What is raised but Corrupt is a crash."""
    with suppress(Corrupt):
        TARGETS[target](data)


def corpus(target: str) -> dict[str, bytes]:
    """Return what was ever of interest for a target: what the encoders write, and what was found."""
    kept = {path.name: path.read_bytes() for path in sorted((CORPUS / target).glob("*"))}
    return {hashlib.sha1(data).hexdigest(): data for data in SEEDS[target]} | kept


def _signed_envelope(data: bytes) -> None:
    envelope.unseal("manifest", data, trusts(ALICE))


def _envelope(data: bytes) -> None:
    envelope.unseal("manifest", data, NO_KEYS)


def _manifest(data: bytes) -> None:
    found = manifest.decode(envelope.seal("manifest", data, NO_KEYS), NO_KEYS)
    for member in found.members:
        assert ".." not in member.name.split("/")
        if member.inline is not None:
            with suppress(Corrupt):
                manifest.content_of(member, None)
        else:
            assert 0 <= member.start <= member.start + member.size <= found.frames[member.frame].size


def _catalog(data: bytes) -> None:
    found = Catalog(envelope.seal("catalog", data, NO_KEYS), NO_KEYS)
    for reference in found.references():
        with suppress(Corrupt):
            found.find(reference.name)
    for number in range(min(len(found), 100)):
        assert len(found[number]) == 8
    found.find("manifests/ns/key/0")


def _segment(data: bytes) -> None:
    sealed = envelope.seal("segment", frame.compress(data), NO_KEYS)
    _report_of(profile.decode(profile.segment_name(_PREFIX, 1, sealed), sealed, NO_KEYS))


def _segment_object(data: bytes) -> None:
    sealed = envelope.seal("segment", data, NO_KEYS)
    profile.decode(profile.segment_name(_PREFIX, 1, sealed), sealed, NO_KEYS)


def _report_of(segment: Segment) -> None:
    assert str(Report.of(f"{_PREFIX}1", segment)).isprintable()


def _prelude(data: bytes) -> None:
    prelude.decode(data, _PREFIX)


def _frame(data: bytes) -> None:
    assert len(frame.decompress(data, _GROWN_BYTES)) <= _GROWN_BYTES


def _put(data: bytes) -> None:
    spool.decode_put(raw_digest_of(data) + data)


def _message(data: bytes) -> None:
    if len(data) >= protocol.HEADER.size:
        protocol.length_of(data[: protocol.HEADER.size], protocol.REQUEST_BYTES)


def _request(data: bytes) -> None:
    protocol.decode_request(data)


def _reply(data: bytes) -> None:
    protocol.decode_reply(data)


def _public_key(data: bytes) -> None:
    with suppress(SettingsError):
        assert str(PublicKey.parse(data.decode(errors="replace"))).isprintable()


TARGETS: dict[str, Callable[[bytes], None]] = {
    "catalog": _catalog,
    "envelope": _envelope,
    "frame": _frame,
    "manifest": _manifest,
    "message": _message,
    "prelude": _prelude,
    "public-key": _public_key,
    "put": _put,
    "reply": _reply,
    "request": _request,
    "segment": _segment,
    "segment-object": _segment_object,
    "signed-envelope": _signed_envelope,
}

_SMALL = Result("ns", "key", {"a.json": b"{}", "b/c.bin": b"\0" * 100}, "guards", {"isa": "avx2"}, 1.5)
_LARGE = Result(
    "triton", "key", {"a.cubin": bytes(range(256)), "a.ptx": b"ptx"}, on_demand=frozenset({"a.ptx"})
)
_PACK = pack.build([_SMALL, _LARGE], {"package": "0.1.0"})
_INLINE = manifest.inline(_SMALL, {"package": "0.1.0"})
assert _INLINE is not None
_REFERENCES = [
    Reference(number, each, ["a.ptx"]) for number, each in enumerate([_INLINE, *_PACK.manifests])
]
_SEGMENT = Segment(
    _PACK.frames,
    catalog.build(_REFERENCES, NO_KEYS),
    [f"{_PREFIX}1"],
    {b"digest16": 3},
    {"python": "3.11.7", "triton": "3.6.0", "gpus": "8"},
    1.0,
    _PREFIX,
    7,
)
_OBJECT = profile.encode(_SEGMENT, NO_KEYS)
_NAME = profile.segment_name(_PREFIX, 1, _OBJECT)
_encode = msgspec.msgpack.encode

SEEDS: dict[str, list[bytes]] = {
    "catalog": [envelope.unseal("catalog", _SEGMENT.catalog, NO_KEYS).body],
    "envelope": [manifest.encode(_INLINE, NO_KEYS), manifest.encode(_INLINE, signs(ALICE))],
    "frame": [
        _PACK.data[:200],
        *(frame.compress(content) for content in (b"", b"content", bytes(100_000))),
    ],
    "manifest": [_encode(each) for each in (_INLINE, *_PACK.manifests)],
    "message": [protocol.frame(protocol.Spooled()), b"\xff\xff\xff\xff"],
    "prelude": [
        _encode(Prelude({profile.segment_name(_PREFIX, 1, _OBJECT): _OBJECT}, {"packs/a/0": b"a"}))
    ],
    "public-key": [str(ALICE.public).encode(), ALICE.secret_text.encode()],
    "put": [_encode(Put(each, "job", "run")) for each in (_SMALL, _LARGE)],
    "reply": [
        _encode(each)
        for each in (
            protocol.Found("ready", "warning"),
            protocol.Profile([("ns", "key")]),
            protocol.ProgressIs(1, 2, True),
            protocol.Flushed(1, b"{}"),
        )
    ],
    "request": [
        _encode(each)
        for each in (
            protocol.Hello("run", "job", None),
            protocol.Lookup("ns", "key", 0, ["a"], 1.0),
            protocol.Hit("ns", "key", 0, [], 0.1),
            protocol.Flush(1.0),
        )
    ],
    "segment": [_encode(_SEGMENT)],
    "segment-object": [envelope.unseal("segment", _OBJECT, NO_KEYS).body],
    "signed-envelope": [manifest.encode(_INLINE, signs(ALICE))],
}
