"""`s3cache gc`: what no profile used for a long time goes."""

import os
import time
from collections.abc import Iterable

import anyio
import click

from s3cache import collection, ledger
from s3cache.collection import Collected, Terms
from s3cache.inventory import Total
from s3cache.ledger import Ledger
from s3cache.settings import Mode, Settings
from s3cache.terminal import requests, said_errors, size

DAY_SECONDS = 86_400
HOUR_SECONDS = 3600


@click.command()
@click.option("--url", envvar="S3CACHE_URL", default="", help="s3://bucket/prefix; S3CACHE_URL by default.")
@click.option(
    "--days", default=30, show_default=True, type=click.IntRange(1), help="What is unused for so long goes."
)
@click.option(
    "--grace",
    default=24,
    show_default=True,
    type=click.IntRange(1),
    help="Hours from being condemned to being deleted: longer than any job takes to start.",
)
@click.option("--keep", metavar="JOB", multiple=True, help="Keep the profile of a job, however old it is.")
@click.option(
    "--delete",
    is_flag=True,
    help="Do it: it takes s3:PutObject and s3:DeleteObject. Without this, only say what would be done.",
)
def gc(url: str, days: int, grace: int, keep: tuple[str, ...], delete: bool) -> None:
    """Delete what no profile used for long.

    It condemns what no profile used for DAYS days, and deletes what an earlier run condemned GRACE hours
    ago and is still not used. Run it once a day. It costs a LIST for each thousand objects and a GET for
    each manifest that stays; it may be ended at any moment, and run beside jobs.
    """
    counts = Ledger()
    terms = Terms(days * DAY_SECONDS, grace * HOUR_SECONDS, keep)
    with said_errors():
        # It needs no keys, nor a job.
        mode = os.environ.get("S3CACHE_MODE", "")
        settings = Settings.from_environment({"S3CACHE_URL": url, "S3CACHE_MODE": mode})
        if delete and settings.mode is not Mode.READ_WRITE:
            raise click.UsageError(f"--delete writes, and S3CACHE_MODE is {settings.mode.value}")
        collected = anyio.run(_collect, url, terms, delete, counts)
    for job in collected.absent:
        click.echo(f"s3cache: --keep {job}: no job of that name has a profile", err=True)
    for line in describe(collected, days, counts, delete=delete):
        click.echo(line)


async def _collect(url: str, terms: Terms, delete: bool, counts: Ledger) -> Collected:
    from s3cache.bucket import Bucket

    ledger.charge(counts)
    async with Bucket(url) as bucket:
        return await collection.collect(bucket, terms, delete=delete)


def describe(collected: Collected, days: int, counts: Ledger, *, delete: bool) -> Iterable[str]:
    """Yield what is said of a clean-up, line by line."""
    if collected.unused:
        yield f"profiles of which no use was seen for {days} days:"
        for profile in collected.unused:
            day = time.strftime("%Y-%m-%d", time.gmtime(profile.last_used))
            yield (
                f"  {profile.job} on {profile.platform}: {profile.entries} entries, "
                f"{size(profile.bytes)}, last used {day}"
            )
        yield "A machine that may not write leaves no trace of use: --keep JOB keeps the profile of a job."
    yield f"{'' if delete else 'would be '}condemned: {_said(collected.condemned)}"
    if collected.waiting:
        yield f"condemned earlier, and not long enough ago: {_said(collected.waiting)}"
    yield f"{'' if delete else 'would be '}deleted: {_said(collected.going)}"
    yield f"s3cache: {requests(counts)}{'' if delete else '; nothing was changed, --delete does it'}"


def _said(totals: list[Total]) -> str:
    return ", ".join(f"{of.objects} {of.kind} ({size(of.bytes)})" for of in totals) or "nothing"
