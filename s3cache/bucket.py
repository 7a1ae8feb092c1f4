"""The bucket: the one module that speaks to S3."""

import math
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from json import JSONDecodeError
from typing import Any, NamedTuple, Self, TypeVar

import aioboto3
import anyio
from aiobotocore.config import AioConfig
from aiohttp import ClientError as HttpError
from aiohttp import ClientPayloadError
from botocore import exceptions as boto
from botocore.handlers import add_expect_header

from s3cache import ledger
from s3cache.condemned import LIST_BYTES
from s3cache.errors import (
    BucketAbsent,
    Busy,
    Corrupt,
    CredentialsAbsent,
    Forbidden,
    NotS3,
    ObjectAbsent,
    S3CacheError,
    ServerFailed,
    StoreError,
    TimedOut,
    Truncated,
    Unreachable,
    Unreadable,
    WrongClock,
    WrongRegion,
)
from s3cache.frame import MAX_CONTENT_BYTES
from s3cache.ledger import Event
from s3cache.manifest import MANIFEST_BYTES
from s3cache.prelude import PRELUDE_BYTES
from s3cache.profile import SEGMENT_BYTES
from s3cache.settings import parse_url
from s3cache.stores.base import Listed, ObjectStore
from s3cache.stores.retries import Retries

T = TypeVar("T")
_Asking = Callable[[Callable[[], None]], Awaitable[T]]

LAYOUT = "v1"
CONNECTIONS = 64
CONNECT_SECONDS = 2.0
SILENCE_SECONDS = 3.0
"""A connection on which nothing arrives for this long is given up."""
LATE_SECONDS = 1.5
"""A read whose answer has not begun by then is asked for once more beside it: a stall costs no more."""
ANSWER_SECONDS = 6.0
"""How long an answer may take to begin, and one that is not content to end: for those that trickle."""
LEAST_RATE = 64 << 10
"""Bytes a second: content may take as long at this rate more."""
PAUSE_SECONDS = 0.5
"""How long, at most and by chance, is waited before a request is made again."""

_REGION_CODES = {
    "301",
    "307",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
    "PermanentRedirect",
    "TemporaryRedirect",
}
_REFUSAL_CODES = {"403", "AccessDenied", "AllAccessDisabled"}
_WRONG_KEY_CODES = {"InvalidAccessKeyId", "SignatureDoesNotMatch"}
CHUNK_BYTES = 1 << 20
_MOST_BYTES = {
    "condemned": LIST_BYTES,
    "manifests": MANIFEST_BYTES,
    "profiles": SEGMENT_BYTES,
    "preludes": PRELUDE_BYTES,
}
_TOO_MUCH = "{} has more bytes than it may"
_ENDPOINT = "check the network and AWS_ENDPOINT_URL_S3"
_REMEDY = "check the credentials and the bucket's policy"
_REMEDIES = {
    "GET": f"{_REMEDY}: it takes s3:GetObject, and s3:ListBucket for what is not there",
    "LIST": f"{_REMEDY}: it takes s3:ListBucket",
    "PUT": f"{_REMEDY}: it takes s3:PutObject, or set S3CACHE_MODE=read-only",
    "DELETE": f"{_REMEDY}: it takes s3:DeleteObject",
}
_SLOW_DOWN_STATUSES = {429, 503}
_FAILED_STATUSES = {500, 502, 504}
_EXPIRY_CODES = {"ExpiredToken", "ExpiredTokenException", "InvalidToken", "TokenRefreshRequired"}
_UNREADABLE_CODES = ("InvalidObjectState", "InvalidRequest", "KMS")
"""How they begin when an object is archived, or encrypted by a key that is not given or is gone."""
_CLOCK_CODES = {"RequestTimeTooSkewed", "RequestExpired"}
_CREDENTIAL_ERRORS = (
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.ProfileNotFound,
    boto.CredentialRetrievalError,
)
_LATE = (TimeoutError, boto.ReadTimeoutError, boto.ConnectTimeoutError)
_CUT_OFF = (boto.IncompleteReadError, boto.ResponseStreamingError, ClientPayloadError)
_FAILURES = (
    boto.BotoCoreError,
    boto.ClientError,
    HttpError,
    OSError,
    # Raised by botocore for answers that it cannot make sense of.
    ValueError,
    LookupError,
)


class Bucket(ObjectStore):
    """Objects under `<prefix>/v1/` of a bucket. As an async context manager it holds connections.

    What may pass is tried twice, as long as there are not too many `Retries`: botocore's own would not
    cover an answer's content, nor be counted. What keeps the client from being made is raised by each
    request.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._bucket, prefix = parse_url(url)
        self._prefix = f"{prefix}/{LAYOUT}/" if prefix else f"{LAYOUT}/"
        self._stack = AsyncExitStack()
        self._client: Any = None
        self._failure: S3CacheError | None = None
        self._retries = Retries()
        # Those that are late have not failed: they take none from those that have.
        self._hedges = Retries()

    async def __aenter__(self) -> Self:
        config = AioConfig(
            max_pool_connections=CONNECTIONS,
            connect_timeout=CONNECT_SECONDS,
            read_timeout=SILENCE_SECONDS,
            retries={"mode": "standard", "total_max_attempts": 1},
            # Not every S3 server understands checksums in trailers; content has a digest of ours.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        try:
            self._client = await self._stack.enter_async_context(
                aioboto3.Session().client("s3", config=config)
            )
            # For the 100-continue that it asks for, aiohttp waits without a timeout; and it is a round
            # trip more.
            self._client.meta.events.unregister("before-call.s3", add_expect_header)
        except (OSError, JSONDecodeError) as error:
            # Of the program that is to give credentials, which is not there or prints something else.
            self._failure = CredentialsAbsent(f"{self.url}: {error}; {CredentialsAbsent.remedy}")
        except (boto.BotoCoreError, ValueError) as error:
            self._failure = self._explain(error)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def get(self, name: str, part: range | None = None) -> bytes:
        """Return an object, or those of its bytes that lie in `part`.

        Raises ObjectAbsent, or another StoreError that says why not; Unreadable when it is archived or
        encrypted, Corrupt when there is more than an object of its kind, or `part`, has.
        """
        bounds = {"Range": f"bytes={part.start}-{part.stop - 1}"} if part is not None else {}

        async def request(begin: Callable[[], None]) -> bytes:
            async with self._request("GET", " ".join([name, *bounds.values()])) as (client, event, scope):
                limit = _most_bytes(name) if part is None else len(part)
                response = await client.get_object(Bucket=self._bucket, Key=self._prefix + name, **bounds)
                begin()
                async with response["Body"]:
                    size = response.get("ContentLength", 0)
                    if size > limit:
                        raise Corrupt(_TOO_MUCH.format(name))
                    scope.deadline = anyio.current_time() + SILENCE_SECONDS + size / LEAST_RATE
                    data = await _read(response["Body"], limit, name)
                    event.bytes = len(data)
                    return data

        try:
            return await self._twice(request, LATE_SECONDS)
        except _PastEnd:
            return b""

    async def create(self, name: str, data: bytes) -> bool:
        """Create an object; return False when there is one already."""

        async def request(_: Callable[[], None]) -> None:
            async with self._request("PUT", name, len(data)) as made:
                made.event.bytes = len(data)
                await made.client.put_object(
                    Bucket=self._bucket, Key=self._prefix + name, Body=data, IfNoneMatch="*"
                )

        try:
            await self._twice(request)
        except _Present:
            return False
        return True

    async def list(self, prefix: str) -> AsyncIterator[Listed]:
        """Yield the objects whose names begin with `prefix`; those of one folder come sorted."""
        page_of = {"Bucket": self._bucket, "Prefix": self._prefix + prefix}

        async def request(begin: Callable[[], None]) -> tuple[list[Listed], str | None]:
            async with self._request("LIST", prefix) as made:
                page = await made.client.list_objects_v2(**page_of)
                begin()
                listed = [
                    Listed(item["Key"][len(self._prefix) :], item["Size"], item["LastModified"].timestamp())
                    for item in page.get("Contents", ())
                ]
                return listed, page["NextContinuationToken"] if page.get("IsTruncated") else None

        while True:
            page, token = await self._twice(request, LATE_SECONDS)
            for listed in page:
                yield listed
            if token is None:
                return
            page_of["ContinuationToken"] = token

    async def delete(self, name: str) -> None:
        """Delete an object."""

        async def request(_: Callable[[], None]) -> None:
            async with self._request("DELETE", name) as made:
                await made.client.delete_object(Bucket=self._bucket, Key=self._prefix + name)

        await self._twice(request)

    async def _twice(self, request: _Asking[T], late: float = math.inf) -> T:
        """Make a request, which says when its answer begins, and make it again when that may help.

        Beside the first one when its answer does not begin within `late` seconds, or after it has failed.
        The one whose answer begins first goes on alone.
        """
        answers: list[T] = []
        failures: list[S3CacheError] = []
        asking: list[anyio.CancelScope] = []
        begun, ended = anyio.Event(), anyio.Event()

        async def ask(whole: anyio.CancelScope) -> None:
            def begin() -> None:
                begun.set()
                for other in asking:
                    if other is not scope:
                        other.cancel()

            with anyio.CancelScope() as scope:
                asking.append(scope)
                try:
                    answers.append(await request(begin))
                    whole.cancel()
                except (Unreachable, Busy, _Conflict) as error:
                    failures.append(error)
                except S3CacheError as error:
                    failures.append(error)
                    whole.cancel()
            begun.set()
            ended.set()

        self._retries.earn()
        self._hedges.earn()
        async with anyio.create_task_group() as group:
            group.start_soon(ask, group.cancel_scope)
            with anyio.move_on_after(late):
                await begun.wait()
            if begun.is_set() or not self._hedges.take():
                await ended.wait()
                if group.cancel_scope.cancel_called or self._failure or not self._retries.take():
                    group.cancel_scope.cancel()
                await anyio.sleep(random.uniform(0.0, PAUSE_SECONDS))  # noqa: S311
            group.start_soon(ask, group.cancel_scope)
        if answers:
            return answers[0]
        raise failures[-1].with_traceback(None)

    @asynccontextmanager
    async def _request(self, kind: str, name: str, size: int = 0) -> AsyncIterator["_Request"]:
        if self._failure:
            ledger.current().note(self._failure)
            raise self._failure.with_traceback(None)
        began = anyio.current_time()
        with ledger.current().request(kind, name) as event:
            try:
                with anyio.fail_after(ANSWER_SECONDS + size / LEAST_RATE) as scope:
                    yield _Request(self._client, event, scope)
            except _FAILURES as error:
                raise self._explain(error, kind, name) from error
            except anyio.get_cancelled_exc_class():
                # Who waited for it has given it up first.
                if anyio.current_time() - began > SILENCE_SECONDS:
                    ledger.current().note(TimedOut(name))
                raise

    def _explain(self, error: Exception, kind: str = "", name: str = "") -> StoreError | Unreadable:
        if isinstance(error, _CREDENTIAL_ERRORS):
            return CredentialsAbsent(f"{self.url}: {error}; {CredentialsAbsent.remedy}")
        if isinstance(error, _LATE):
            return TimedOut(f"{self.url}: {kind} was not answered in time; {_ENDPOINT}")
        if isinstance(error, _CUT_OFF):
            return Truncated(f"{self.url}: the answer to {kind} ended too early; {_ENDPOINT}")
        if isinstance(error, boto.EndpointConnectionError):
            endpoint = self._client.meta.endpoint_url
            return Unreachable(f"{self.url}: {endpoint} cannot be reached; {_ENDPOINT}")
        if not isinstance(error, boto.ClientError):
            return Unreachable(f"{self.url}: no answer ({type(error).__name__}: {error}); {_ENDPOINT}")
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code == "NoSuchKey":
            return ObjectAbsent(f"{name} is not there")
        if code == "404":
            return NotS3(f"{self.url}: this is no S3 that answers {kind} by 404; {_ENDPOINT}")
        if code in ("PreconditionFailed", "412") and kind == "PUT":
            return _Present(name)
        if code in ("InvalidRange", "416") and kind == "GET":
            return _PastEnd(name)
        if code.startswith(_UNREADABLE_CODES) and kind == "GET":
            return Unreadable(f"{self.url}: {name} is not given out ({code}); restore it, or delete it")
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if status in _SLOW_DOWN_STATUSES:
            return Busy(f"{self.url}: the bucket asks for fewer requests ({code})")
        if code in ("ConditionalRequestConflict", "409") and kind == "PUT":
            return _Conflict(f"{self.url}: other writers kept {name} busy")
        if code == "NoSuchBucket":
            return BucketAbsent(f"{self.url}: there is no such bucket; create it or set S3CACHE_URL")
        if code in _REGION_CODES:
            return WrongRegion(f"{self.url}: the bucket lives in another region; set AWS_DEFAULT_REGION")
        if code in _EXPIRY_CODES:
            return CredentialsAbsent(f"{self.url}: {code}; renew the credentials")
        if code in _CLOCK_CODES:
            return WrongClock(f"{self.url}: {code}; set the clock of this machine")
        if code in _REFUSAL_CODES:
            return Forbidden(f"{self.url}: {kind} is refused ({code}); {_REMEDIES.get(kind, _REMEDY)}")
        if code in _WRONG_KEY_CODES:
            return Forbidden(
                f"{self.url}: the access key or its secret is wrong ({code}); check AWS_PROFILE, or "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
        if code == "RequestTimeout":
            return TimedOut(f"{self.url}: {kind} did not arrive in time; {_ENDPOINT}")
        if status in _FAILED_STATUSES:
            return ServerFailed(f"{self.url}: {error}")
        return NotS3(f"{self.url}: {error}; {_ENDPOINT}")


class _Request(NamedTuple):
    """What a request is made with: the client, its event, and the scope whose deadline it has."""

    client: Any
    event: Event
    scope: anyio.CancelScope


async def _read(body: Any, limit: int, name: str) -> bytes:
    """Return a body, of which no more than `limit` bytes are held."""
    chunks: list[bytes] = []
    while chunk := await body.read(CHUNK_BYTES):
        chunks.append(chunk)
        limit -= len(chunk)
        if limit < 0:
            raise Corrupt(_TOO_MUCH.format(name))
    return b"".join(chunks)


def _most_bytes(name: str) -> int:
    return _MOST_BYTES.get(name.partition("/")[0], MAX_CONTENT_BYTES)


class _Present(StoreError):
    """Raised when a conditional write found an object."""

    fault = ""


class _PastEnd(StoreError):
    """Raised when a part begins where the object has ended."""

    fault = ""


class _Conflict(StoreError):
    """Raised when a conditional write met another at the same moment; nothing was written."""

    fault = "conflict"
