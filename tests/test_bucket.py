"""The bucket: what S3 says and what that means, how long it may take, and what is sent."""

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import anyio
import pytest

from s3cache import bucket as buckets
from s3cache import ledger
from s3cache.bucket import Bucket
from s3cache.errors import (
    BucketAbsent,
    Busy,
    Corrupt,
    CredentialsAbsent,
    Forbidden,
    NotS3,
    ObjectAbsent,
    ServerFailed,
    SettingsError,
    StoreError,
    TimedOut,
    Truncated,
    Unreachable,
    Unreadable,
    WrongClock,
    WrongRegion,
)
from s3cache.ledger import Ledger
from s3cache.manifest import MANIFEST_BYTES
from s3cache.prelude import PRELUDE_BYTES
from s3cache.stores.retries import Retries
from tests.servers import Server, free_ports

pytestmark = pytest.mark.anyio

Request = Callable[[Bucket], Awaitable[object]]


async def _list(bucket: Bucket) -> list[str]:
    return [listed.name async for listed in bucket.list("")]


REQUESTS: dict[str, Request] = {
    "get": lambda bucket: bucket.get("packs/abc"),
    "create": lambda bucket: bucket.create("packs/abc", b"content"),
    "list": _list,
    "delete": lambda bucket: bucket.delete("packs/abc"),
}


class Answer:
    """What the stub says to one request."""

    def __init__(
        self,
        status: int,
        body: bytes = b"",
        *,
        headers: dict[str, str] | None = None,
        promised: int | None = None,
    ) -> None:
        lines = {"Content-Length": str(len(body) if promised is None else promised), **(headers or {})}
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self.data = f"HTTP/1.1 {status} Status\r\nConnection: close\r\n{head}\r\n".encode() + body


def refusal(status: int, code: str, extra: str = "", headers: dict[str, str] | None = None) -> Answer:
    body = f"<Error><Code>{code}</Code><Message>said the stub</Message>{extra}</Error>"
    return Answer(status, body.encode(), headers=headers)


REGION = {"x-amz-bucket-region": "eu-west-1"}


class Stub:
    """An HTTP server that gives the same answer to everything, or none, and remembers what it was asked."""

    def __init__(self, endpoint: str = "") -> None:
        self.endpoint = endpoint
        self.reset()

    def reset(self) -> None:
        """Answer nothing, and forget what was asked."""
        self.answer: Answer | None = None
        """What it says once `answers` are said."""
        self.answers: list[Answer | None] = []
        self.hangs_up = self.reads = True
        self.byte_seconds = 0.0
        self.trickles_from_the_start = False
        self.requests: list[str] = []
        self.heads: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            self.heads.append(head.lower())
            method, path, _ = head.decode().split(" ", 2)
            self.requests.append(f"{method} {path}")
            answer = self.answers.pop(0) if self.answers else self.answer
            if answer is not None:
                head, ends, body = answer.data.partition(b"\r\n\r\n")
                await self._write(writer, head + ends, self.trickles_from_the_start)
                await self._write(writer, b"" if method == "HEAD" else body, True)
            if not self.reads:
                await anyio.sleep_forever()
            if answer is None or not self.hangs_up:
                await reader.read()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _write(self, writer: asyncio.StreamWriter, data: bytes, may_trickle: bool) -> None:
        step = 1 if may_trickle and self.byte_seconds else len(data) or 1
        for start in range(0, len(data), step):
            writer.write(data[start : start + step])
            await writer.drain()
            await anyio.sleep(self.byte_seconds)


@pytest.fixture(scope="module")
async def module_stub() -> AsyncIterator[Stub]:
    stub = Stub()
    server = await asyncio.start_server(stub.serve, "127.0.0.1", 0)
    stub.endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    yield stub
    server.close()


@pytest.fixture(scope="module")
async def module_bucket(module_stub: Stub) -> AsyncIterator[Bucket]:
    # Its client takes a quarter of a second to make.
    with pytest.MonkeyPatch.context() as patch:
        _lead_to(module_stub.endpoint, patch)
        async with Bucket("s3://bucket/prefix") as bucket:
            yield bucket


@pytest.fixture
def stub(module_stub: Stub, monkeypatch: pytest.MonkeyPatch) -> Stub:
    """The stub, and an environment that leads there."""
    module_stub.reset()
    _lead_to(module_stub.endpoint, monkeypatch)
    return module_stub


@pytest.fixture
def bucket(stub: Stub, module_bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """A bucket on the stub that has made nothing again yet, and makes nothing twice for being late."""
    monkeypatch.setattr(buckets, "LATE_SECONDS", math.inf)
    module_bucket._retries = Retries()
    module_bucket._hedges = Retries()
    return module_bucket


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let it wait for nothing before it tries again."""
    monkeypatch.setattr(buckets, "PAUSE_SECONDS", 0.0)


async def fails(request: Awaitable[object], error: type[StoreError], advice: str = ".") -> float:
    """Return how many seconds a request took to fail as it should."""
    started = anyio.current_time()
    with pytest.raises(error, match=advice) as raised:
        await request
    assert error is ObjectAbsent or "s3://" in str(raised.value)
    return anyio.current_time() - started


def _lead_to(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")


# What an answer means.


@pytest.mark.parametrize(
    ("answer", "error", "advice"),
    [
        (refusal(404, "NoSuchBucket"), BucketAbsent, "create it or set S3CACHE_URL"),
        (refusal(403, "AccessDenied"), Forbidden, "refused .AccessDenied.; check the credentials"),
        (refusal(403, "SignatureDoesNotMatch"), Forbidden, "SignatureDoesNotMatch"),
        (refusal(403, "InvalidAccessKeyId"), Forbidden, "InvalidAccessKeyId"),
        (refusal(400, "ExpiredToken"), CredentialsAbsent, "ExpiredToken; renew the credentials"),
        (Answer(403), Forbidden, "403"),
        (refusal(301, "PermanentRedirect", headers=REGION), WrongRegion, "set AWS_DEFAULT_REGION"),
        (refusal(307, "TemporaryRedirect", headers=REGION), WrongRegion, "set AWS_DEFAULT_REGION"),
        (Answer(301, headers=REGION), WrongRegion, "set AWS_DEFAULT_REGION"),
        (
            refusal(400, "AuthorizationHeaderMalformed", "<Region>eu-west-1</Region>", REGION),
            WrongRegion,
            "set AWS_DEFAULT_REGION",
        ),
        (
            refusal(400, "IllegalLocationConstraintException", headers=REGION),
            WrongRegion,
            "set AWS_DEFAULT_REGION",
        ),
        (refusal(403, "RequestTimeTooSkewed"), WrongClock, "set the clock"),
        (refusal(501, "NotImplemented"), NotS3, "NotImplemented"),
        (refusal(412, "PreconditionFailed"), NotS3, "PreconditionFailed"),
        (Answer(400, b"<html>not S3</html>"), NotS3, "bucket/prefix"),
    ],
    ids=[
        "NoSuchBucket",
        "AccessDenied",
        "SignatureDoesNotMatch",
        "InvalidAccessKeyId",
        "ExpiredToken",
        "403",
        "PermanentRedirect",
        "TemporaryRedirect",
        "301",
        "AuthorizationHeaderMalformed",
        "IllegalLocationConstraintException",
        "RequestTimeTooSkewed",
        "NotImplemented",
        "412",
        "400",
    ],
)
async def test_a_refusal_is_an_error_that_says_what_to_do(
    stub: Stub, bucket: Bucket, answer: Answer, error: type[StoreError], advice: str
) -> None:
    stub.answer = answer
    for kind, request in REQUESTS.items():
        if (kind, advice) != ("create", "PreconditionFailed"):
            await fails(request(bucket), error, advice)


async def test_an_object_that_is_absent(stub: Stub, bucket: Bucket) -> None:
    stub.answer = refusal(404, "NoSuchKey")
    with pytest.raises(ObjectAbsent):
        await bucket.get("packs/abc")


async def test_what_answers_by_a_bare_404_is_no_s3(stub: Stub, bucket: Bucket) -> None:
    stub.answer = Answer(404)
    for request in REQUESTS.values():
        await fails(request(bucket), NotS3, "no S3.*AWS_ENDPOINT_URL_S3")


@pytest.mark.parametrize("answer", [refusal(412, "PreconditionFailed"), Answer(412)], ids=["code", "bare"])
async def test_an_object_that_is_there_is_not_created(stub: Stub, bucket: Bucket, answer: Answer) -> None:
    stub.answer = answer
    assert await bucket.create("packs/abc", b"") is False


async def test_a_conflict_is_tried_again_then_given_up(stub: Stub, bucket: Bucket) -> None:
    stub.answer = refusal(409, "ConditionalRequestConflict")
    with pytest.raises(StoreError, match="other writers"):
        await bucket.create("packs/abc", b"")
    assert len(stub.requests) == 2


@pytest.mark.parametrize(
    ("answer", "error", "advice"),
    [
        (refusal(500, "InternalError"), ServerFailed, "InternalError"),
        (refusal(503, "SlowDown"), Busy, "fewer requests.*SlowDown"),
        (refusal(503, "ServiceUnavailable"), Busy, "fewer requests.*ServiceUnavailable"),
        (Answer(503), Busy, "fewer requests.*503"),
    ],
    ids=["InternalError", "SlowDown", "ServiceUnavailable", "503"],
)
@pytest.mark.usefixtures("hasty")
async def test_a_server_in_trouble_is_tried_again_then_given_up(
    stub: Stub, bucket: Bucket, answer: Answer, error: type[StoreError], advice: str
) -> None:
    stub.answer = answer
    for request in REQUESTS.values():
        stub.requests.clear()
        await fails(request(bucket), error, advice)
        assert len(stub.requests) == 2


@pytest.mark.parametrize("answer", [refusal(429, "TooManyRequests"), Answer(429)], ids=["code", "bare"])
@pytest.mark.usefixtures("hasty")
async def test_too_many_requests_is_busy(stub: Stub, bucket: Bucket, answer: Answer) -> None:
    stub.answer = answer
    for request in REQUESTS.values():
        await fails(request(bucket), Busy, "fewer requests")


@pytest.mark.parametrize("answer", [refusal(416, "InvalidRange"), Answer(416)], ids=["code", "bare"])
async def test_a_part_past_the_end_is_empty(stub: Stub, bucket: Bucket, answer: Answer) -> None:
    stub.answer = answer
    assert await bucket.get("packs/abc", range(10, 20)) == b""
    assert len(stub.requests) == 1


@pytest.mark.usefixtures("hasty")
async def test_an_answer_that_is_cut_off_is_asked_for_again_then_given_up(
    stub: Stub, bucket: Bucket
) -> None:
    stub.answer = Answer(200, b"half", promised=8)
    with pytest.raises(Truncated):
        await bucket.get("packs/abc")
    assert len(stub.requests) == 2


@pytest.mark.usefixtures("hasty")
async def test_what_went_wrong_once_is_made_good_by_the_second_try(stub: Stub) -> None:
    async with Bucket("s3://bucket/prefix") as bucket:
        for passing in (Answer(200, b"half", promised=8), Answer(500), Answer(503)):
            stub.answers = [passing, Answer(200, b"content")]
            assert await bucket.get("packs/abc") == b"content"


@pytest.mark.usefixtures("hasty")
async def test_only_a_share_of_the_requests_is_made_again(stub: Stub) -> None:
    stub.answer = refusal(500, "InternalError")
    async with Bucket("s3://bucket/prefix") as bucket:
        for _ in range(100):
            await fails(bucket.get("packs/abc"), ServerFailed)
    assert 110 < len(stub.requests) <= 120


async def test_what_goes_wrong_is_counted_by_its_kind_each_time(stub: Stub) -> None:
    counts = Ledger()
    ledger.charge(counts)
    async with Bucket("s3://bucket/prefix") as bucket:
        for answer in (refusal(500, "InternalError"), Answer(200, b"half", promised=8), Answer(403)):
            stub.answer = answer
            with pytest.raises(StoreError):
                await bucket.get("packs/abc")
    assert counts.as_dict()["faults"] == {"forbidden": 1, "server": 2, "truncated": 2}
    assert counts.requests.GET == 5


@pytest.mark.parametrize(
    ("name", "part", "most"),
    [
        ("manifests/ns/key/0", None, MANIFEST_BYTES),
        ("preludes/job/linux", None, PRELUDE_BYTES),
        ("packs/abc", range(100, 300), 200),
    ],
)
async def test_more_than_an_object_may_have_is_not_held(
    stub: Stub, bucket: Bucket, name: str, part: range | None, most: int
) -> None:
    stub.answer = Answer(200, bytes(most))
    assert await bucket.get(name, part) == bytes(most)
    stub.answer = Answer(200, bytes(most + 1))
    with pytest.raises(Corrupt, match="more bytes than it may"):
        await bucket.get(name, part)


async def test_what_is_promised_to_be_more_is_not_waited_for(stub: Stub, bucket: Bucket) -> None:
    stub.answer = Answer(200, b"a", promised=10_000_000_000)
    with anyio.fail_after(1):
        with pytest.raises(Corrupt, match="more bytes than it may"):
            await bucket.get("manifests/ns/key/0")


@pytest.mark.parametrize(
    ("status", "code"),
    [(403, "InvalidObjectState"), (400, "InvalidRequest"), (400, "KMS.DisabledException")],
)
async def test_an_object_that_is_not_given_out_is_skipped_and_nothing_else(
    stub: Stub, bucket: Bucket, status: int, code: str
) -> None:
    stub.answer = refusal(status, code)
    with pytest.raises(Unreadable, match="restore it, or delete it"):
        await bucket.get("manifests/ns/key/0")
    assert len(stub.requests) == 1


async def test_a_list_that_is_no_xml_is_unreachable(stub: Stub, bucket: Bucket) -> None:
    stub.answer = Answer(200, b"<html>a portal that wants a login</html")
    with pytest.raises(Unreachable):
        await _list(bucket)


# What is sent.


async def test_an_absent_object_is_one_get_and_nothing_else(stub: Stub, bucket: Bucket) -> None:
    stub.answer = refusal(404, "NoSuchKey")
    with pytest.raises(ObjectAbsent):
        await bucket.get("manifests/ns/key/0")
    assert stub.requests == ["GET /bucket/prefix/v1/manifests/ns/key/0"]


async def test_a_refusal_is_not_tried_again(stub: Stub, bucket: Bucket) -> None:
    stub.answer = refusal(403, "AccessDenied")
    with pytest.raises(Forbidden):
        await bucket.create("packs/abc", b"content")
    assert stub.requests == ["PUT /bucket/prefix/v1/packs/abc"]


async def test_an_object_is_created_on_the_condition_that_there_is_none(stub: Stub, bucket: Bucket) -> None:
    stub.answer = Answer(200)
    assert await bucket.create("packs/abc", b"content") is True
    assert b"\r\nif-none-match: *\r\n" in stub.heads[0]


async def test_a_part_is_asked_for_by_its_first_and_last_byte(stub: Stub, bucket: Bucket) -> None:
    stub.answer = Answer(206, b"content", headers={"Content-Range": "bytes 10-16/100"})
    assert await bucket.get("packs/abc", range(10, 17)) == b"content"
    assert b"\r\nrange: bytes=10-16\r\n" in stub.heads[0]


async def test_a_whole_object_is_asked_for_without_a_range(stub: Stub, bucket: Bucket) -> None:
    stub.answer = Answer(200, b"content")
    assert await bucket.get("packs/abc") == b"content"
    assert b"\r\nrange:" not in stub.heads[0]


async def test_requests_are_counted_by_kind(stub: Stub, bucket: Bucket) -> None:
    counts = Ledger()
    ledger.charge(counts)
    stub.answer = refusal(403, "AccessDenied")
    for kind, times in {"get": 3, "create": 2, "list": 1, "delete": 4}.items():
        for _ in range(times):
            with pytest.raises(Forbidden):
                await REQUESTS[kind](bucket)
    assert counts.as_dict()["requests"] == {"GET": 3, "PUT": 2, "LIST": 1, "DELETE": 4}


# How long it may take.

UNBOUNDED_SECONDS = 5.0
"""Less than two requests take whose bound is not the one that a test sets."""


@pytest.mark.usefixtures("hasty")
async def test_a_server_that_accepts_and_never_answers_is_given_up(
    stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets, "SILENCE_SECONDS", 0.1)
    async with Bucket("s3://bucket/prefix") as bucket:
        for request in REQUESTS.values():
            stub.requests.clear()
            assert await fails(request(bucket), Unreachable, "AWS_ENDPOINT_URL_S3") < UNBOUNDED_SECONDS
            assert len(stub.requests) == 2


@pytest.mark.usefixtures("hasty")
async def test_a_server_that_answers_and_then_stops_is_given_up(
    stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets, "SILENCE_SECONDS", 0.1)
    stub.answer = Answer(200, b"half", promised=8)
    stub.hangs_up = False
    async with Bucket("s3://bucket/prefix") as bucket:
        assert await fails(bucket.get("packs/abc"), Unreachable) < UNBOUNDED_SECONDS


@pytest.mark.usefixtures("hasty")
async def test_the_time_of_one_request_is_bounded(
    stub: Stub, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets, "ANSWER_SECONDS", 0.1)
    for request in REQUESTS.values():
        assert await fails(request(bucket), TimedOut) < UNBOUNDED_SECONDS


@pytest.mark.parametrize("read", ["get", "list"])
async def test_a_read_that_is_not_answered_costs_a_second_one_beside_it(
    stub: Stub, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, read: str
) -> None:
    monkeypatch.setattr(buckets, "LATE_SECONDS", 0.1)
    stub.answers = [None, Answer(200, b"<ListBucketResult/>")]
    with anyio.fail_after(UNBOUNDED_SECONDS):
        await REQUESTS[read](bucket)
    assert len(stub.requests) == 2


async def test_the_first_answer_to_two_reads_counts_whichever_that_is(
    stub: Stub, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets, "LATE_SECONDS", 0.1)
    stub.answers = [None]
    stub.answer = refusal(404, "NoSuchKey")
    with anyio.fail_after(UNBOUNDED_SECONDS):
        await fails(bucket.get("packs/abc"), ObjectAbsent)
    assert len(stub.requests) == 2


async def test_reads_that_are_late_leave_others_their_retries(
    stub: Stub, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets, "LATE_SECONDS", 0.05)
    monkeypatch.setattr(buckets, "PAUSE_SECONDS", 0.0)
    stub.answers = [None, Answer(200, b"content")] * 12
    for _ in range(10):
        assert await bucket.get("packs/abc") == b"content"
    stub.answers = [Answer(500), Answer(200)]
    assert await bucket.create("packs/abc", b"content")


async def test_of_two_reads_the_one_whose_answer_begins_first_goes_on_alone(
    stub: Stub, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = Ledger()
    ledger.charge(counts)
    counts.events = []
    monkeypatch.setattr(buckets, "LATE_SECONDS", 0.05)
    stub.byte_seconds = 0.05
    stub.answers = [None]
    stub.answer = Answer(200, b"content")
    assert await bucket.get("packs/abc") == b"content"
    assert [event.outcome for event in counts.events] == ["CancelledError", ""]
    # The first was cancelled when the second began to answer.
    assert counts.events[1].end - counts.events[0].end > 0.2
    assert not counts.faults


async def test_content_that_takes_long_is_asked_for_once(
    stub: Stub, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets, "LATE_SECONDS", 0.5)
    stub.answer = Answer(200, b"content")
    stub.byte_seconds = 0.15
    assert await bucket.get("packs/abc") == b"content"
    assert len(stub.requests) == 1


@pytest.mark.parametrize("write", ["create", "delete"])
async def test_a_write_that_is_not_answered_is_not_made_beside_itself(
    stub: Stub, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, write: str
) -> None:
    monkeypatch.setattr(buckets, "LATE_SECONDS", 0.1)
    with anyio.move_on_after(0.5):
        await REQUESTS[write](bucket)
    assert len(stub.requests) == 1


@pytest.mark.usefixtures("hasty")
async def test_content_that_trickles_is_given_up(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "SILENCE_SECONDS", 0.2)
    stub.answer = Answer(200, bytes(1000))
    stub.byte_seconds = 0.05
    async with Bucket("s3://bucket/prefix") as bucket:
        assert await fails(bucket.get("packs/abc"), TimedOut) < UNBOUNDED_SECONDS


@pytest.mark.usefixtures("hasty")
async def test_an_answer_that_trickles_from_its_first_byte_is_given_up(
    stub: Stub, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets, "ANSWER_SECONDS", 0.3)
    stub.answer = refusal(200, "x" * 1000)
    stub.byte_seconds = 0.05
    stub.trickles_from_the_start = True
    for request in REQUESTS.values():
        assert await fails(request(bucket), TimedOut) < UNBOUNDED_SECONDS


@pytest.mark.usefixtures("hasty")
async def test_the_time_of_a_large_upload_that_nobody_reads_is_bounded(
    stub: Stub, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets, "ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(buckets, "LEAST_RATE", 1 << 30)
    monkeypatch.setattr(stub, "reads", False)
    assert await fails(bucket.create("packs/abc", bytes(32 << 20)), TimedOut) < UNBOUNDED_SECONDS


def test_a_server_that_never_answers_costs_at_most_its_share_of_the_job_s_time() -> None:
    assert buckets.CONNECT_SECONDS <= buckets.SILENCE_SECONDS <= 3.0
    assert buckets.ANSWER_SECONDS <= 6.0


@pytest.mark.usefixtures("hasty")
async def test_a_refused_connection_is_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    _lead_to(f"http://127.0.0.1:{free_ports(1)[0]}", monkeypatch)
    async with Bucket("s3://bucket/prefix") as bucket:
        for request in REQUESTS.values():
            assert await fails(request(bucket), Unreachable, "AWS_ENDPOINT_URL_S3") < UNBOUNDED_SECONDS


# What keeps the client from being made is said by each request.


async def test_no_credentials(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY":
        monkeypatch.delenv(name)
    async with Bucket("s3://bucket/prefix") as bucket:
        for request in REQUESTS.values():
            await fails(request(bucket), CredentialsAbsent, "AWS_PROFILE")
    assert stub.requests == []


@pytest.mark.parametrize("changes", [{"AWS_PROFILE": "nobody"}, {"AWS_SECRET_ACCESS_KEY": None}])
async def test_credentials_that_are_not_all_there(
    stub: Stub, monkeypatch: pytest.MonkeyPatch, changes: dict[str, str | None]
) -> None:
    for name, value in changes.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    async with Bucket("s3://bucket/prefix") as bucket:
        for request in REQUESTS.values():
            await fails(request(bucket), CredentialsAbsent)


async def test_an_endpoint_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    _lead_to("not a url", monkeypatch)
    async with Bucket("s3://bucket/prefix") as bucket:
        for request in REQUESTS.values():
            await fails(request(bucket), Unreachable, "AWS_ENDPOINT_URL_S3")


async def test_a_profile_of_the_user_s_files_is_used(
    stub: Stub, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY":
        monkeypatch.delenv(name)
    (home / ".aws").mkdir()
    (home / ".aws" / "credentials").write_text(
        "[default]\naws_access_key_id = mine\naws_secret_access_key = secret\n"
    )
    stub.answer = Answer(200, b"content")
    async with Bucket("s3://bucket/prefix") as bucket:
        assert await bucket.get("packs/abc") == b"content"
    assert b"credential=mine/" in stub.heads[0]


def test_a_url_that_is_none_is_refused() -> None:
    with pytest.raises(SettingsError, match="S3CACHE_URL"):
        Bucket("http://bucket/prefix")


# Real servers.


@pytest.mark.usefixtures("on_seaweedfs")
async def test_no_such_bucket_on_seaweedfs() -> None:
    async with Bucket("s3://no-such-bucket/prefix") as bucket:
        # To an administrator's PUT it makes the bucket.
        for kind in "get", "list", "delete":
            await fails(REQUESTS[kind](bucket), BucketAbsent, "S3CACHE_URL")


@pytest.mark.usefixtures("on_moto")
async def test_no_such_bucket_on_moto() -> None:
    async with Bucket("s3://no-such-bucket/prefix") as bucket:
        for request in REQUESTS.values():
            await fails(request(bucket), BucketAbsent, "S3CACHE_URL")


@pytest.mark.parametrize("name", ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"])
async def test_wrong_credentials_on_seaweedfs(
    on_seaweedfs: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "wrong")
    async with Bucket(on_seaweedfs) as bucket:
        for request in REQUESTS.values():
            await fails(request(bucket), Forbidden, "the access key or its secret is wrong")


async def test_more_names_than_a_page_holds_are_all_listed(on_seaweedfs: str) -> None:
    expected = [f"profiles/job/platform/{number:04d}" for number in range(1005)]
    counts = Ledger()
    async with Bucket(on_seaweedfs) as bucket:
        limiter = anyio.Semaphore(32)

        async def create(name: str) -> None:
            async with limiter:
                await bucket.create(name, b"")

        async with anyio.create_task_group() as group:
            for name in expected:
                group.start_soon(create, name)
        ledger.charge(counts)
        assert [listed.name async for listed in bucket.list("profiles/job/platform/")] == expected
    assert counts.requests.LIST == 2


async def test_prefixes_of_one_bucket_are_apart(on_seaweedfs: str) -> None:
    async with Bucket(on_seaweedfs) as one, Bucket(f"{on_seaweedfs}-2") as other:
        await one.create("packs/abc", b"one")
        assert await _list(other) == []
        with pytest.raises(ObjectAbsent):
            await other.get("packs/abc")


async def test_a_bucket_without_a_prefix(on_moto: str, moto_server: Server) -> None:
    moto_server.make_bucket("bare")
    async with Bucket("s3://bare") as bucket:
        await bucket.create("packs/abc", b"content")
        assert await _list(bucket) == ["packs/abc"]
    client = moto_server.client()
    try:
        keys = [item["Key"] for item in client.list_objects_v2(Bucket="bare")["Contents"]]
    finally:
        client.close()
    assert keys == ["v1/packs/abc"]
