"""`s3cache verify`: reading a bucket through."""

import os
from collections import Counter

import anyio
import click

from s3cache import ledger, verification
from s3cache.ledger import Ledger
from s3cache.names import printable
from s3cache.settings import Mode, Settings
from s3cache.terminal import requests, said_errors
from s3cache.verification import Finding, Verdict


class _SampleType(click.ParamType):  # type: ignore[type-arg]
    name = "sample"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | None:
        if value == "all":
            return None
        if not str(value).isdecimal() or not int(str(value)):
            self.fail(f"{value} is neither a number nor all", param, ctx)
        return int(str(value))


@click.command()
@click.option("--url", envvar="S3CACHE_URL", default="", help="s3://bucket/prefix; S3CACHE_URL by default.")
@click.option(
    "--sample",
    metavar="N|all",
    default="all",
    show_default=True,
    type=_SampleType(),
    help="Read so many manifests, and the packs that they name.",
)
@click.option("--repair", is_flag=True, help="Delete what is wrong, so that it is stored anew; reads all.")
def verify(url: str, sample: int | None, repair: bool) -> None:
    """Check all that lies in the bucket, and mend it.

    It says what is wrong, unsigned or untrusted, missing, or unreferenced, which `s3cache gc` takes.
    What S3CACHE_TRUSTED_KEYS does not name is untrusted here, and deleted by --repair.

    It costs a LIST for each thousand objects and a GET for each that is read, and all their bytes. Exits
    with 1 when something is wrong, untrusted or missing that was not repaired.
    """
    if repair and sample is not None:
        raise click.UsageError("--repair reads all: leave --sample away")
    counts = Ledger()
    with said_errors():
        settings = Settings.from_environment({**os.environ, "S3CACHE_URL": url})
        if repair and settings.mode is not Mode.READ_WRITE:
            raise click.UsageError(f"--repair writes, and S3CACHE_MODE is {settings.mode.value}")
        found = anyio.run(_verify, settings, sample, repair, counts)
    if not settings.trusted_keys:
        click.echo("s3cache: no signature was checked, since S3CACHE_TRUSTED_KEYS is not set", err=True)
    if not counts.requests.GET:
        click.echo(f"s3cache: there is nothing of s3cache's at {settings.url}", err=True)
    said = ", ".join(f"{found[verdict]} {verdict.value}" for verdict in Verdict)
    is_well = not any(found[each] for each in Verdict if each is not Verdict.UNREFERENCED)
    hint = "" if repair or is_well else "; --repair deletes what is wrong or untrusted"
    click.echo(f"s3cache: {said}; {requests(counts)}{hint}")
    if not repair and not is_well:
        raise SystemExit(1)


async def _verify(settings: Settings, sample: int | None, repair: bool, counts: Ledger) -> Counter[Verdict]:
    from s3cache.bucket import Bucket

    ledger.charge(counts)
    async with Bucket(settings.url) as bucket:
        return await verification.verify(bucket, settings.keyring(), _print, sample=sample, repair=repair)


def _print(finding: Finding) -> None:
    click.echo(f"{finding.verdict.value} {printable(finding.name)}: {printable(finding.why)}")
