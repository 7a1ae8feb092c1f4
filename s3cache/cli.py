"""The command line: `s3cache run` starts a job warm, `s3cache warm` fetches alone."""

import json
import os
import sys
import time
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import click
import msgspec

from s3cache.agent import protocol
from s3cache.agent.address import TRACE_VARIABLE
from s3cache.names import KERNELS_JOB, printable
from s3cache.settings import Mode, Settings, job_of
from s3cache.terminal import bar, said_errors, size

TRITON_CACHE_MANAGER = "s3cache.integration.triton.cache_manager:S3CacheManager"
"""For what uses Triton without torch, which would tell us."""
FLUSH_SECONDS = 10.0
"""How long `run` waits, after the command ended, for results that are not stored yet."""


class _Commands(click.Group):
    """The commands, of which those of other packages are imported when they are called."""

    _ELSEWHERE: ClassVar[dict[str, str]] = {
        "gc": "s3cache.commands.gc",
        "kernels": "s3cache.kernels.cli",
        "keys": "s3cache.commands.keys",
        "verify": "s3cache.commands.verify",
    }

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return sorted([*super().list_commands(ctx), *self._ELSEWHERE])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command of that name, or None."""
        if cmd_name not in self._ELSEWHERE:
            return super().get_command(ctx, cmd_name)
        command: click.Command = getattr(import_module(self._ELSEWHERE[cmd_name]), cmd_name)
        return command


@click.group(cls=_Commands)
@click.version_option(package_name="torch-s3cache")
def main() -> None:
    """Start jobs warm from an S3 bucket."""


@main.command(context_settings={"allow_interspersed_args": False})
@click.option("--url", help="s3://bucket/prefix; S3CACHE_URL by default.")
@click.option("--job", help="The name the profile is filed under; by default the script's.")
@click.option("--report", type=click.Path(dir_okay=False, path_type=Path), help="Write a report here.")
@click.option(
    "--trace", type=click.Path(dir_okay=False, path_type=Path), help="Draw the start here, as HTML."
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(
    url: str | None, job: str | None, report: Path | None, trace: Path | None, command: tuple[str, ...]
) -> None:
    """Run COMMAND with the cache on, and begin to fetch before it imports anything.

    Signals are passed on; the exit status is the command's, or 128 and the number of the signal that
    ended it.
    """
    from s3cache import client as clients
    from s3cache import launcher

    started = time.monotonic()
    if trace:
        _check_that_it_can_be_written(trace)
    _set(TRACE_VARIABLE, "1" if trace else None)
    _set("S3CACHE_URL", url)
    _set("S3CACHE_REPORT", str(report.absolute()) if report else None)
    _set("S3CACHE_JOB", job or os.environ.get("S3CACHE_JOB") or job_of(command))
    client = clients.current()
    if client:
        client.start()
        if launcher.is_of_this_environment(command):
            os.environ.setdefault("TRITON_CACHE_MANAGER", TRITON_CACHE_MANAGER)
    with bar(client.progress) if client else nullcontext():
        status = launcher.run(command)
    flushed = client.flush(FLUSH_SECONDS) if client else None
    warnings: list[str] = []
    if flushed:
        written = json.loads(flushed.report)
        said = summary(written, flushed.pending)
        warnings = written["warnings"]
    elif client:
        said = "s3cache: no word from the agent; its log may say why"
    elif os.environ.get("S3CACHE_URL"):
        said = "s3cache: off"
    else:
        said = "s3cache: off; set S3CACHE_URL, or give --url"
    if trace:
        kept = client.trace() if client and flushed else None
        _write_trace(trace, [said, *warnings], kept, started)
    click.echo(said, err=True)
    sys.exit(status)


@main.command()
@click.option("--url", help="s3://bucket/prefix; S3CACHE_URL by default.")
@click.option("--job", help="The job whose profile is fetched; S3CACHE_JOB by default.")
@click.option("--kernels", is_flag=True, help="Fetch the kernels that were compiled ahead, too.")
def warm(url: str | None, job: str | None, kernels: bool) -> None:
    """Fetch what a job used on its last starts into the disk tier, and end.

    Exits with 1 when the bucket cannot be read.
    """
    _set("S3CACHE_URL", url)
    named = job or os.environ.get("S3CACHE_JOB")
    jobs = [name for name in (named, KERNELS_JOB if kernels else None) if name]
    if not jobs:
        raise click.UsageError("say whose profile to fetch: --job NAME, or S3CACHE_JOB, or --kernels")
    _set("S3CACHE_JOB", jobs[0])
    with said_errors():
        settings = Settings.from_environment()
    if settings.mode is Mode.OFF:
        click.echo("s3cache: off, by S3CACHE_MODE")
        return
    for name in dict.fromkeys(jobs):
        click.echo(_fetch(msgspec.structs.replace(settings, job=name)))


def _fetch(settings: Settings) -> str:
    from s3cache import warming
    from s3cache.prefetch import Progress

    progress = Progress()
    with said_errors(), bar(lambda: progress):
        warmed = warming.warm(settings, progress)
    if warmed.entries:
        here = f"{warmed.entries} entries of {settings.job} are here"
    else:
        here = f"{settings.url} has no profile of {settings.job} yet, so nothing was fetched"
    return f"s3cache: {here}, {size(warmed.bytes_down)} down in {warmed.seconds:.1f} s"


@main.command()
@click.option("--url", help="s3://bucket/prefix; S3CACHE_URL by default.")
@click.option("--member", help="Write this member, as ptx, to the standard output, and nothing else.")
@click.option("--slot", type=click.IntRange(0), help="This slot alone; by default all of them.")
@click.argument("namespace")
@click.argument("key")
def show(url: str | None, member: str | None, slot: int | None, namespace: str, key: str) -> None:
    """Show what the bucket has under KEY in NAMESPACE, as triton or fx-graph.

    Exits with 1 when there is nothing, or no such member.
    """
    from s3cache import showing

    _set("S3CACHE_URL", url)
    with said_errors():
        settings = Settings.from_environment()
        found = showing.show(settings, namespace, key, member, slot)
    if not found:
        where = f"{namespace} {key}" + ("" if slot is None else f" slot {slot}")
        raise click.ClickException(f"{settings.url} has nothing under {where}")
    if member:
        contents = [shown.content for shown in found if shown.content is not None]
        if not contents:
            raise click.ClickException(f"{namespace} {key} has no member {member}")
        sys.stdout.buffer.write(contents[0])
        return
    for shown in found:
        required = ", ".join(f"{name} {value}" for name, value in shown.manifest.requires.items())
        requires = printable(required)
        fit = "" if shown.is_for_this_machine else ", which this machine does not have"
        click.echo(f"slot {shown.slot}" + (f", for {requires}{fit}" if requires else ""))
        for each in shown.manifest.members:
            click.echo(
                f"  {each.name:<12} {size(each.size):>9}" + ("  on demand" if each.on_demand else "")
            )


def summary(report: dict[str, Any], pending: int) -> str:
    """Return the one line that says what the cache did in a run."""
    counts: dict[str, int] = {}
    for namespace in report["namespaces"].values():
        for name, count in namespace.items():
            counts[name] = counts.get(name, 0) + count
    got = {name: counts.get(name, 0) for name in ("bucket_hits", "disk_hits", "misses", "puts")}
    waiting = f", {pending} yet to be stored" if pending else ""
    prefetched = report["prefetched_bytes"]
    after = (
        f"; prefetched {size(prefetched)} in {report['seconds']['prefetch']:.1f} s" if prefetched else ""
    )
    if report["pinned"] is not None:
        after += f"; pinned: {report['pinned']} entries"
    counted = ", ".join(f"{count} {fault}" for fault, count in report["faults"].items())
    faults = f"; faults: {counted}" if counted else ""
    return (
        f"s3cache: {got['bucket_hits'] + got['disk_hits']} hits ({got['bucket_hits']} from the bucket), "
        f"{got['misses']} misses, {got['puts']} stored{waiting}; "
        f"{size(counts.get('bytes_down', 0))} down, {size(counts.get('bytes_up', 0))} up, "
        f"{sum(report['requests'].values())} requests{'' if report['trusted_keys'] else ', unsigned'}; "
        f"waited {report['seconds'].get('lookup', 0.0):.1f} s{after}{faults}"
    )


def _check_that_it_can_be_written(trace: Path) -> None:
    try:
        trace.open("a").close()
    except OSError as error:
        raise click.BadParameter(
            f"{trace} cannot be written: {error.strerror}; name a file in a folder that you may write to",
            param_hint="--trace",
        ) from error


def _write_trace(trace: Path, facts: list[str], kept: protocol.Events | None, started: float) -> None:
    from s3cache.trace import render

    events, left_out = (kept.events, kept.left_out) if kept else ([], 0)
    try:
        # Not the command: there may be secrets among its arguments.
        page = render(os.environ["S3CACHE_JOB"], facts, events, left_out, started)
        # A name's bytes need not be UTF-8.
        trace.write_text(page, encoding="utf-8", errors="replace")
    except OSError as error:
        click.echo(f"s3cache: {trace} cannot be written: {error.strerror}; name another file", err=True)


def _set(name: str, value: str | None) -> None:
    if value:
        os.environ[name] = value
