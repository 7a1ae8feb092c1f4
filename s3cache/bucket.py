"""The bucket: the one module that speaks to S3."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Self

import aioboto3
import anyio
from aiobotocore.config import AioConfig
from aiohttp import ClientError as HttpError
from botocore import exceptions as boto
from botocore.handlers import add_expect_header

from s3cache import ledger
from s3cache.errors import (
    BucketAbsent,
    Busy,
    Corrupt,
    CredentialsAbsent,
    Forbidden,
    ObjectAbsent,
    StoreError,
    Unreachable,
    WrongRegion,
)
from s3cache.frame import MAX_CONTENT_BYTES
from s3cache.ledger import Event
from s3cache.manifest import MANIFEST_BYTES
from s3cache.prelude import PRELUDE_BYTES
from s3cache.profile import SEGMENT_BYTES
from s3cache.settings import parse_url
from s3cache.stores.base import Listed, ObjectStore

LAYOUT = "v1"
CONNECTIONS = 64
CONNECT_SECONDS = 2.0
SILENCE_SECONDS = 3.0
"""A connection on which nothing arrives for this long is given up."""
REQUEST_SECONDS = 120.0
ATTEMPTS = 2
_CONFLICT_SECONDS = 0.1

_REGION_CODES = {
    "301",
    "307",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
    "PermanentRedirect",
    "TemporaryRedirect",
}
_REFUSAL_CODES = {
    "403",
    "AccessDenied",
    "AllAccessDisabled",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
}
CHUNK_BYTES = 1 << 20
_MOST_BYTES = {
    "claims": 0,
    "manifests": MANIFEST_BYTES,
    "profiles": SEGMENT_BYTES,
    "preludes": PRELUDE_BYTES,
}
_ENDPOINT = "check the network and AWS_ENDPOINT_URL_S3"
_REMEDY = "check the credentials and the bucket's policy"
_REMEDIES = {
    "GET": f"{_REMEDY}: it takes s3:GetObject, and s3:ListBucket for what is not there",
    "LIST": f"{_REMEDY}: it takes s3:ListBucket",
    "PUT": f"{_REMEDY}: it takes s3:PutObject, or set S3CACHE_MODE=read-only",
    "DELETE": f"{_REMEDY}: it takes s3:DeleteObject",
}
_SLOW_DOWN_STATUSES = {429, 503}
_EXPIRY_CODES = {"ExpiredToken", "ExpiredTokenException", "InvalidToken", "TokenRefreshRequired"}
_CREDENTIAL_ERRORS = (
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.ProfileNotFound,
    boto.CredentialRetrievalError,
)


class Bucket(ObjectStore):
    """Objects under `<prefix>/v1/` of a bucket. As an async context manager it holds connections.

    Retries are botocore's own. What keeps the client from being made is raised by each request.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._bucket, prefix = parse_url(url)
        self._prefix = f"{prefix}/{LAYOUT}/" if prefix else f"{LAYOUT}/"
        self._stack = AsyncExitStack()
        self._client: Any = None
        self._failure: StoreError | None = None

    async def __aenter__(self) -> Self:
        config = AioConfig(
            max_pool_connections=CONNECTIONS,
            connect_timeout=CONNECT_SECONDS,
            read_timeout=SILENCE_SECONDS,
            retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
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
        except (boto.BotoCoreError, ValueError) as error:
            self._failure = self._explain(error)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def get(self, name: str, part: range | None = None) -> bytes:
        """Return an object, or those of its bytes that lie in `part`.

        Raises ObjectAbsent, or another StoreError that says why not; Corrupt when more comes than an object
        of its kind, or `part`, has.
        """
        bounds = {"Range": f"bytes={part.start}-{part.stop - 1}"} if part is not None else {}
        try:
            async with self._request("GET", " ".join([name, *bounds.values()])) as (client, event):
                response = await client.get_object(Bucket=self._bucket, Key=self._prefix + name, **bounds)
                async with response["Body"]:
                    limit = _most_bytes(name) if part is None else len(part)
                    data = await _read(response["Body"], limit, name)
                    event.bytes = len(data)
                    return data
        except _PastEnd:
            return b""

    async def create(self, name: str, data: bytes) -> bool:
        """Create an object; return False when there is one already."""
        for _ in range(ATTEMPTS):
            try:
                async with self._request("PUT", name) as (client, event):
                    event.bytes = len(data)
                    await client.put_object(
                        Bucket=self._bucket, Key=self._prefix + name, Body=data, IfNoneMatch="*"
                    )
                return True
            except _Present:
                return False
            except _Conflict:
                await anyio.sleep(_CONFLICT_SECONDS)
        raise StoreError(f"{self.url}: other writers kept {name} busy")

    async def list(self, prefix: str) -> AsyncIterator[Listed]:
        """Yield the objects whose names begin with `prefix`; those of one folder come sorted."""
        page_of = {"Bucket": self._bucket, "Prefix": self._prefix + prefix}
        while True:
            async with self._request("LIST", prefix) as (client, _):
                page = await client.list_objects_v2(**page_of)
            for item in page.get("Contents", ()):
                name = item["Key"][len(self._prefix) :]
                yield Listed(name, item["Size"], item["LastModified"].timestamp())
            if not page.get("IsTruncated"):
                return
            page_of["ContinuationToken"] = page["NextContinuationToken"]

    async def delete(self, name: str) -> None:
        """Delete an object."""
        async with self._request("DELETE", name) as (client, _):
            await client.delete_object(Bucket=self._bucket, Key=self._prefix + name)

    @asynccontextmanager
    async def _request(self, kind: str, name: str) -> AsyncIterator[tuple[Any, Event]]:
        if self._failure:
            raise self._failure.with_traceback(None)
        with ledger.current().request(kind, name) as event:
            try:
                with anyio.fail_after(REQUEST_SECONDS):
                    yield self._client, event
            except (boto.BotoCoreError, boto.ClientError, HttpError, OSError) as error:
                raise self._explain(error, kind, name) from error

    def _explain(self, error: Exception, kind: str = "", name: str = "") -> StoreError:
        if isinstance(error, _CREDENTIAL_ERRORS):
            return CredentialsAbsent(
                f"{self.url}: {error}; set AWS_PROFILE or AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, or give this machine a role"
            )
        if not isinstance(error, boto.ClientError):
            return Unreachable(f"{self.url}: no answer ({type(error).__name__}: {error}); {_ENDPOINT}")
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code == "NoSuchKey":
            return ObjectAbsent(f"{name} is not there")
        if code == "404":
            return Unreachable(f"{self.url}: this is no S3 that answers {kind} by 404; {_ENDPOINT}")
        if code in ("PreconditionFailed", "412"):
            return _Present(name)
        if code in ("InvalidRange", "416"):
            return _PastEnd(name)
        if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") in _SLOW_DOWN_STATUSES:
            return Busy(f"{self.url}: the bucket asks for fewer requests ({code})")
        if code in ("ConditionalRequestConflict", "409"):
            return _Conflict(name)
        if code == "NoSuchBucket":
            return BucketAbsent(f"{self.url}: there is no such bucket; create it or set S3CACHE_URL")
        if code in _REGION_CODES:
            return WrongRegion(f"{self.url}: the bucket lives in another region; set AWS_REGION")
        if code in _EXPIRY_CODES:
            return CredentialsAbsent(f"{self.url}: {code}; renew the credentials")
        if code in _REFUSAL_CODES:
            return Forbidden(f"{self.url}: {kind} is refused ({code}); {_REMEDIES.get(kind, _REMEDY)}")
        return Unreachable(f"{self.url}: {error}")


async def _read(body: Any, limit: int, name: str) -> bytes:
    """Return a body, of which no more than `limit` bytes are held."""
    chunks: list[bytes] = []
    while chunk := await body.read(CHUNK_BYTES):
        chunks.append(chunk)
        limit -= len(chunk)
        if limit < 0:
            raise Corrupt(f"{name} has more bytes than it may")
    return b"".join(chunks)


def _most_bytes(name: str) -> int:
    return _MOST_BYTES.get(name.partition("/")[0], MAX_CONTENT_BYTES)


class _Present(StoreError):
    """Raised when a conditional write found an object."""


class _PastEnd(StoreError):
    """Raised when a part begins where the object has ended."""


class _Conflict(StoreError):
    """Raised when a conditional write met another at the same moment; nothing was written."""
