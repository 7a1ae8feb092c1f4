"""Every error that s3cache raises.

S3CacheError
├── SettingsError            a setting has a value that cannot be used
├── InvalidName              a namespace, key or member name cannot be used
├── TooLarge                 a result or a segment is larger than any reader takes
├── Corrupt                  bytes do not match their digest, or cannot be decoded
│   ├── Removed              a slot's result was removed, and a slot above it was not
│   ├── Unreadable           an object is there, and the store does not give it out
│   └── Untrusted            nobody who is trusted has signed it
├── DiskTierError            the disk tier cannot be used
│   └── DiskFull             there is no room for an entry
├── SlotsExhausted           a key has as many variants as it may have
├── Claimed                  another machine is storing the same results
└── StoreError               an object store did not do what was asked
    ├── ObjectAbsent         there is no object of that name
    ├── BucketAbsent         there is no such bucket
    ├── CredentialsAbsent    no credentials were found, or they have expired
    ├── Forbidden            the credentials do not allow it
    ├── Busy                 the store asks for fewer requests
    ├── WrongRegion          the bucket lives in another region
    ├── WrongClock           the clock of this machine differs from that of the store
    ├── NotS3                what answers does not answer as S3 does
    └── Unreachable          no answer
        ├── TimedOut         none in time, or one that came too slowly
        ├── Truncated        one that ended too early
        └── ServerFailed     the store says that it failed
"""

from typing import ClassVar


class S3CacheError(Exception):
    """Base of every error that s3cache raises."""

    fault: ClassVar[str] = ""
    """The word under which a report counts it; "" is not counted."""


class SettingsError(S3CacheError, ValueError):
    """Raised when a setting has a value that cannot be used."""


class InvalidName(S3CacheError, ValueError):
    """Raised when a namespace, key or member name cannot be used."""


class TooLarge(S3CacheError, ValueError):
    """Raised when a result, a name in it or a segment is larger than any reader takes."""


class Corrupt(S3CacheError):
    """Raised when bytes do not match their digest, or cannot be decoded."""

    fault = "corrupt"


class Untrusted(Corrupt):
    """Raised when nobody who is trusted has signed an object, or for another place than it was found at."""

    fault = "untrusted"


class Removed(Corrupt):
    """Raised when a slot's result was removed, and a slot above it was not."""

    fault = ""


class Unreadable(Corrupt):
    """Raised when a store has an object and does not give it out: archived, or encrypted by a lost key."""

    fault = "unreadable"


class DiskTierError(S3CacheError):
    """Raised when the disk tier cannot be used."""


class DiskFull(DiskTierError):
    """Raised when there is no room for an entry."""


class SlotsExhausted(S3CacheError):
    """Raised when a key already has as many variants as it may have."""


class Claimed(S3CacheError):
    """Raised when another machine is storing the same results at this moment."""


class StoreError(S3CacheError):
    """Raised when an object store did not do what was asked."""

    fault = "failed"


class ObjectAbsent(StoreError):
    """Raised when there is no object of that name."""

    fault = ""


class BucketAbsent(StoreError):
    """Raised when there is no such bucket."""

    fault = "no bucket"


class CredentialsAbsent(StoreError):
    """Raised when no credentials were found, or they have expired."""

    fault = "credentials"
    remedy: ClassVar[str] = (
        "set AWS_PROFILE or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give this machine a role"
    )
    """What to do when there are none."""


class Forbidden(StoreError):
    """Raised when the credentials do not allow a request."""

    fault = "forbidden"


class Busy(StoreError):
    """Raised when the store asks for fewer requests (503), after retries."""

    fault = "busy"


class WrongRegion(StoreError):
    """Raised when the bucket lives in another region."""

    fault = "region"


class WrongClock(StoreError):
    """Raised when the clock of this machine differs too much from that of the store."""

    fault = "clock"


class NotS3(StoreError):
    """Raised when what answers does not answer as S3 does."""

    fault = "not s3"


class Unreachable(StoreError):
    """Raised when the store did not answer."""

    fault = "unreachable"


class TimedOut(Unreachable):
    """Raised when the store did not answer in time, or too slowly."""

    fault = "timeout"


class Truncated(Unreachable):
    """Raised when an answer ended too early."""

    fault = "truncated"


class ServerFailed(Unreachable):
    """Raised when the store says that it failed (5xx)."""

    fault = "server"
