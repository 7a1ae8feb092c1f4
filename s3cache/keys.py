"""Where keys come from: a file, the environment, or a command. And the file of those that are trusted."""

import os
import shlex
import shutil
import stat
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Literal, Self

import msgspec

from s3cache.errors import SettingsError
from s3cache.keyring import PublicKey, SigningKey

COMMAND_SECONDS = 10.0
"""How long a command may take to print a secret key."""
_FILE_BYTES = 1 << 20
_OTHERS_WRITE = 0o022
# A quote that is left open, and what is no text, are ValueErrors; "~" without a home is a RuntimeError.
_FAILURES = (OSError, subprocess.SubprocessError, ValueError, RuntimeError, SettingsError)


class KeySource(msgspec.Struct, frozen=True):
    """Where the secret key is: `file:PATH`, `env:NAME` or `command:COMMAND`, which needs no shell."""

    kind: Literal["file", "env", "command"]
    where: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the source that is written so. Raises SettingsError, without the text: it may be a key."""
        kind, colon, where = text.partition(":")
        try:
            if colon and where:
                # The agent, which reads it, runs in another folder.
                where = str(Path(where).absolute()) if kind == "file" and where[0] != "~" else where
                return msgspec.convert({"kind": kind, "where": where}, cls)
        except msgspec.ValidationError:
            pass
        raise SettingsError(
            "S3CACHE_SIGNING_KEY must be file:PATH, env:NAME or command:COMMAND, which say where the "
            "secret key is, not the key itself"
        )

    def load(self) -> SigningKey:
        """Return the key. Raises SettingsError, without the key, when there is none."""
        readers = {"file": _read, "env": _variable, "command": _output}
        try:
            return SigningKey.parse(_only_line(readers[self.kind](self.where)))
        except _FAILURES as error:
            raise SettingsError(f"S3CACHE_SIGNING_KEY: {self}: {_why(error)}") from None

    def __str__(self) -> str:
        return "command" if self.kind == "command" else f"{self.kind}:{self.where}"

    def __repr__(self) -> str:
        return f"KeySource({self})"


def trusted(text: str) -> tuple[PublicKey, ...]:
    """Return the keys that S3CACHE_TRUSTED_KEYS names: a file's, one a line, or keys between commas.

    Raises SettingsError when there are none, or one of them is no public key.
    """
    if not text:
        return ()
    try:
        lines = text.split(",") if is_inline(text) else _read(text).splitlines()
        keys = _keys_of(lines)
    except _FAILURES as error:
        raise SettingsError(
            f"S3CACHE_TRUSTED_KEYS must be public keys, or a file of such lines: {_why(error)}"
        ) from None
    if not keys:
        raise SettingsError(
            "S3CACHE_TRUSTED_KEYS names no key, so there is no cache; add one by `s3cache keys trust`"
        )
    return tuple({key.id: key for key in keys}.values())


def is_inline(text: str) -> bool:
    """Return whether these are keys, not the name of a file."""
    return " ed25519" in text


def inline(keys: Iterable[PublicKey]) -> str:
    """Return keys as S3CACHE_TRUSTED_KEYS may have them, without a file."""
    return ",".join(map(str, keys))


def write_secret(path: Path, key: SigningKey) -> None:
    """Write a secret key to a new file that its owner alone may read. Raises OSError, as when it exists."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(file, "w") as out:
        out.write(f"{key.secret_text}\n")
        out.flush()
        os.fsync(file)


def change_trusted(path: Path, add: Iterable[PublicKey], revoke: Iterable[str]) -> list[PublicKey]:
    """Add keys to a file of trusted keys, take those of some ids out, and return what is left.

    Comments stay. Raises SettingsError when the file holds what is no key, or lacks an id; OSError when it
    cannot be read or written.
    """
    path = path.resolve()
    lines = _read(os.fspath(path)).splitlines() if path.exists() else []
    held = _keys_of(lines)
    for key_id in revoke:
        if key_id not in {key.id for key in held}:
            raise SettingsError(f"{path} has no key {key_id}; `s3cache keys show` says what it has")
    lines = [line for line in lines if not {key.id for key in _keys_of([line])} & set(revoke)]
    for key in add:
        if key not in _keys_of(lines):
            lines.append(str(key))
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text("".join(f"{line}\n" for line in lines))
    with suppress(FileNotFoundError):
        shutil.copymode(path, unfinished)
    unfinished.replace(path)
    return list({key.id: key for key in _keys_of(lines)}.values())


def _read(path: str) -> str:
    """Return a file's text. Raises SettingsError when others may write it."""
    with Path(path).expanduser().open("rb") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        if mode & _OTHERS_WRITE:
            raise SettingsError(f"others may write {path} (mode {mode:04o}); chmod go-w {path}")
        return file.read(_FILE_BYTES).decode()


def _variable(name: str) -> str:
    if name not in os.environ:
        raise SettingsError(f"there is no variable {name}")
    return os.environ[name]


def _output(command: str) -> str:
    words = shlex.split(command)
    if not words:
        raise SettingsError("there is no command")
    done = subprocess.run(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        timeout=COMMAND_SECONDS,
        check=True,
    )
    return done.stdout.decode()


def _keys_of(lines: Iterable[str]) -> list[PublicKey]:
    return [PublicKey.parse(line) for line in lines if _says_something(line)]


def _only_line(text: str) -> str:
    lines = [line for line in text.splitlines() if _says_something(line)]
    if len(lines) != 1:
        raise SettingsError(f"there are {len(lines)} lines, one with a secret key was expected")
    return lines[0]


def _says_something(line: str) -> bool:
    return bool(line.strip()) and not line.lstrip().startswith("#")


def _why(error: Exception) -> str:
    match error:
        case OSError():
            return f"{error.strerror or error}"
        case subprocess.TimeoutExpired():
            return f"it took longer than {COMMAND_SECONDS:g} s"
        case subprocess.CalledProcessError():
            return f"it ended with status {error.returncode}"
        case UnicodeDecodeError():
            return "it is no text"
    return str(error)
