"""`s3cache keys`: the keys that sign results, and those that are trusted."""

import os
import socket
from pathlib import Path

import click

from s3cache import keys as sources
from s3cache.errors import S3CacheError
from s3cache.keyring import KEY_BYTES, PublicKey, SigningKey
from s3cache.keys import KeySource


@click.group()
def keys() -> None:
    """Make keys that sign results, and say which are trusted.

    A secret key belongs to who stores results (S3CACHE_SIGNING_KEY); everybody names the public keys
    whose results are to be used (S3CACHE_TRUSTED_KEYS).
    """


@keys.command()
@click.option("--name", help="Whose it is, as ci; by default this machine's name.")
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("s3cache.key"),
    show_default=True,
    help="Write the secret key here, for its owner alone to read.",
)
def new(name: str | None, out: Path) -> None:
    """Make a secret key, and print its public key.

    Exits with 1, and changes nothing, when there is such a file.
    """
    try:
        key = SigningKey(name or socket.gethostname(), os.urandom(KEY_BYTES))
        PublicKey.parse(str(key.public))
        sources.write_secret(out, key)
    except FileExistsError:
        raise click.ClickException(f"{out} is there already; name another file by --out") from None
    except OSError as error:
        raise click.ClickException(
            f"{out} cannot be written: {error.strerror}; name another file"
        ) from error
    except S3CacheError as error:
        raise click.BadParameter("letters, digits, '.', '_', '@' and '-'", param_hint="--name") from error
    click.echo(str(key.public))
    click.echo(f"S3CACHE_SIGNING_KEY=file:{out.absolute()} signs with it", err=True)
    click.echo(f"its id is {key.public.id}", err=True)


@keys.command()
def show() -> None:
    """Show which keys are trusted, and which one signs here.

    Exits with 1 when a setting cannot be used.
    """
    try:
        trusted = sources.trusted(os.environ.get("S3CACHE_TRUSTED_KEYS", ""))
        source = os.environ.get("S3CACHE_SIGNING_KEY")
        signing = KeySource.parse(source).load().public if source else None
    except S3CacheError as error:
        raise click.ClickException(str(error)) from error
    for key in trusted:
        click.echo(f"{key.id}  {key}" + ("  (signs here)" if key == signing else ""))
    if signing is None:
        click.echo("S3CACHE_SIGNING_KEY is not set: nothing is signed here", err=True)
    elif signing not in trusted:
        raise click.ClickException(
            f"{signing.id} signs here and is not trusted here, so there is no cache; "
            f'name its public key in S3CACHE_TRUSTED_KEYS: "{signing}"'
        )
    if not trusted:
        click.echo("S3CACHE_TRUSTED_KEYS is not set: everybody is trusted", err=True)


@keys.command()
@click.option("--file", "path", type=click.Path(dir_okay=False, path_type=Path), help="Of trusted keys.")
@click.option(
    "--revoke", multiple=True, metavar="ID", help="Trust the key of this id, which `show` says, no more."
)
@click.argument("public", nargs=-1, metavar="[KEY]...")
def trust(path: Path | None, revoke: tuple[str, ...], public: tuple[str, ...]) -> None:
    """Trust each KEY, as "ci ed25519:BASE64", from now on.

    Changes the file that S3CACHE_TRUSTED_KEYS names, or --file. Exits with 1, and changes nothing, when a
    key cannot be used.
    """
    named = os.environ.get("S3CACHE_TRUSTED_KEYS", "")
    if path is None and (not named or sources.is_inline(named)):
        raise click.UsageError("say which file to change: --file PATH, or S3CACHE_TRUSTED_KEYS=PATH")
    if not public and not revoke:
        raise click.UsageError("say which KEY to trust, or which ID to --revoke")
    path = path or Path(named).expanduser()
    try:
        left = sources.change_trusted(path, [PublicKey.parse(text) for text in public], revoke)
    except S3CacheError as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        raise click.ClickException(f"{path} cannot be changed: {error.strerror}") from error
    click.echo(f"{path} has {len(left)} key{'' if len(left) == 1 else 's'}")
    if not left:
        click.echo("a job that is told to trust nobody runs without the cache", err=True)
