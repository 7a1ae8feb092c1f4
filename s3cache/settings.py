"""Every setting, read from the environment once and checked."""

import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import Self

import msgspec

from s3cache import folders, keys
from s3cache.digest import digest_of
from s3cache.errors import InvalidName, SettingsError
from s3cache.folders import Access
from s3cache.keyring import Keyring, PublicKey
from s3cache.keys import KeySource
from s3cache.names import check_namespace, component

DEFAULT_DISK_LIMIT = "10GiB"
DEFAULT_DEADLINE_SECONDS = 120.0
_URL = re.compile(r"s3://([A-Za-z0-9._-]+)((?:/[^?#]*)?)\Z")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(I?)B?\Z")
_PYTHON = re.compile(r"python[\d.]*\Z")


class Mode(Enum):
    """What the cache may do."""

    READ_WRITE = "read-write"
    READ_ONLY = "read-only"
    OFF = "off"


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What s3cache was told to do. Credentials, region and endpoint are botocore's own settings."""

    url: str
    """`s3://bucket/prefix`"""
    directory: Path
    """The folder of the disk tier, the spool and the agent's socket."""
    disk_limit: int
    """Bytes that the disk tier may hold."""
    mode: Mode = Mode.READ_WRITE
    job: str
    """The name that the profile is filed under."""
    report: Path | None = None
    """The file that the report is written to."""
    exclude: frozenset[str] = frozenset()
    """Namespaces that are neither read nor written."""
    deadline_seconds: float = DEFAULT_DEADLINE_SECONDS
    """How long a process waits for the bucket in all; past that it compiles."""
    trusted_keys: tuple[PublicKey, ...] = ()
    """Whose results are used; none: everybody's."""
    signing_key: KeySource | None = None
    """Where the key is that signs what is stored."""
    shared_group: bool = False
    """Whether the group that owns the folder may write there."""
    pin: bool = False
    """Whether all processes of a run see the same, from its start on."""

    @classmethod
    def from_environment(
        cls, environ: Mapping[str, str] | None = None, command: Sequence[str] | None = None
    ) -> Self:
        """Return the settings in `environ`, the process's own by default.

        The job is named after `command`, the process's own by default, unless S3CACHE_JOB is set.
        Raises SettingsError, which names the variable, when a value cannot be used.
        """
        environ = os.environ if environ is None else environ
        url = environ.get("S3CACHE_URL", "")
        parse_url(url)
        report = environ.get("S3CACHE_REPORT")
        source = environ.get("S3CACHE_SIGNING_KEY")
        signing_key = KeySource.parse(source) if source else None
        trusted_keys = keys.trusted(environ.get("S3CACHE_TRUSTED_KEYS", ""))
        if signing_key and not trusted_keys:
            raise SettingsError(
                "S3CACHE_SIGNING_KEY is set and S3CACHE_TRUSTED_KEYS is not: set it to the public key that "
                "`s3cache keys show` prints, with those of all others whose results are to be used"
            )
        return cls(
            url=url.rstrip("/"),
            directory=_directory(environ.get("S3CACHE_DIR")),
            disk_limit=_size(environ.get("S3CACHE_DISK_LIMIT") or DEFAULT_DISK_LIMIT),
            mode=_mode(environ.get("S3CACHE_MODE") or Mode.READ_WRITE.value),
            job=_text(environ.get("S3CACHE_JOB") or job_of(sys.orig_argv if command is None else command)),
            report=_file(report) if report else None,
            exclude=_namespaces(environ.get("S3CACHE_EXCLUDE", "")),
            deadline_seconds=_seconds(environ.get("S3CACHE_DEADLINE") or str(DEFAULT_DEADLINE_SECONDS)),
            trusted_keys=trusted_keys,
            signing_key=signing_key,
            shared_group=_switch("S3CACHE_SHARED_GROUP", environ.get("S3CACHE_SHARED_GROUP") or "0"),
            pin=_switch("S3CACHE_PIN", environ.get("S3CACHE_PIN") or "0"),
        )

    @property
    def refusal(self) -> str | None:
        """Why nothing is written to the bucket, None when it is."""
        if self.mode is not Mode.READ_WRITE:
            return f"S3CACHE_MODE is {self.mode.value}"
        if self.trusted_keys and self.signing_key is None:
            return (
                "S3CACHE_TRUSTED_KEYS is set and S3CACHE_SIGNING_KEY is not, so nobody would trust what is "
                "stored here; set it, or S3CACHE_MODE=read-only"
            )
        return None

    @property
    def access(self) -> Access:
        """Who may write in the folder."""
        return folders.GROUP if self.shared_group else folders.OWNER

    @property
    def own_folders(self) -> tuple[Path, ...]:
        """The folder, and those that are in it for all URLs."""
        return self.directory, *(self.directory / name for name in ("tier", "spool"))

    def keyring(self) -> Keyring:
        """Return the keys that are trusted; they sign nothing."""
        return Keyring(parse_url(self.url)[1], self.trusted_keys)

    def signing_keyring(self) -> Keyring:
        """Return the keys that are trusted, with the one that signs, if there is one.

        Raises SettingsError when it cannot be had, or is not trusted.
        """
        signing = self.signing_key.load() if self.signing_key else None
        return Keyring(parse_url(self.url)[1], self.trusted_keys, signing)

    @property
    def tier_directory(self) -> Path:
        """The folder of the disk tier for this URL: what one bucket says is not taken for another's."""
        return self.directory / "tier" / digest_of(self.url.encode())[:16]

    @property
    def spool_directory(self) -> Path:
        """The folder that holds what is yet to be uploaded to this URL."""
        return self.directory / "spool" / digest_of(self.url.encode())[:16]


def parse_url(url: str) -> tuple[str, str]:
    """Return bucket and prefix of an `s3://bucket/prefix`; the prefix may be empty.

    Raises SettingsError when it is anything else.
    """
    match = _URL.match(url)
    if not url:
        raise SettingsError("S3CACHE_URL is not set; set it to s3://bucket/prefix")
    if not match:
        raise SettingsError(f"S3CACHE_URL must be s3://bucket/prefix, not {url!r}")
    return match[1], match[2].strip("/")


def job_of(command: Sequence[str]) -> str:
    """Return the name of a command: its script or module, else the program."""
    arguments = list(command) or ["python"]
    for argument in arguments:
        if argument.endswith(".py"):
            return Path(argument).stem
    if "-m" in arguments[:-1]:
        return component(arguments[arguments.index("-m") + 1])
    if _PYTHON.match(Path(arguments[0]).name):
        scripts = [a for a in arguments[1:] if not a.startswith("-")]
        return component(Path(scripts[0]).name) if scripts and "-c" not in arguments else "python"
    return component(Path(arguments[0]).name)


def _text(value: str) -> str:
    """Return what the environment holds as text that can be encoded, whatever its bytes are."""
    return value.encode(errors="backslashreplace").decode()


def _file(value: str) -> Path:
    if _text(value) != value:
        raise SettingsError(f"S3CACHE_REPORT must be a path in UTF-8, not {_text(value)}")
    return Path(value).absolute()


def _directory(value: str | None) -> Path:
    try:
        if value:
            return Path(value).expanduser().absolute()
        import platformdirs

        return platformdirs.user_cache_path("s3cache")
    except RuntimeError as error:
        raise SettingsError(f"S3CACHE_DIR must be a folder, not {value or ''!r}: {error}") from error


def _size(text: str) -> int:
    match = _SIZE.match(text.strip().upper())
    if not match:
        raise SettingsError(f"S3CACHE_DISK_LIMIT must be a size as 10GiB or 500MB, not {text!r}")
    number, unit, binary = match.groups()
    return int(float(number) * (1024 if binary or not unit else 1000) ** " KMGT".index(unit or " "))


def _namespaces(text: str) -> frozenset[str]:
    try:
        return frozenset(check_namespace(name) for name in map(str.strip, text.split(",")) if name)
    except InvalidName as error:
        raise SettingsError(f"S3CACHE_EXCLUDE must be namespaces as triton,dynamo-pgo: {error}") from error


def _seconds(text: str) -> float:
    with suppress(ValueError):
        if 0 <= (seconds := float(text)) < math.inf:
            return seconds
    raise SettingsError(f"S3CACHE_DEADLINE must be a number of seconds as 120 or 0.5, not {text!r}")


def _switch(name: str, text: str) -> bool:
    if text not in ("0", "1"):
        raise SettingsError(f"{name} must be 0 or 1, not {text!r}")
    return text == "1"


def _mode(text: str) -> Mode:
    try:
        return Mode(text)
    except ValueError:
        modes = ", ".join(mode.value for mode in Mode)
        raise SettingsError(f"S3CACHE_MODE must be one of {modes}, not {text!r}") from None
