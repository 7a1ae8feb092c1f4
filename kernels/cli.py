"""`s3cache kernels`: compiling declared kernels on a machine without a GPU."""

import json
import os
import platform
import tempfile
from importlib.metadata import version

import click

from s3cache import client as clients
from s3cache import fleet
from s3cache.kernels.compiling import Compiled, Job, compile_all, jobs_of
from s3cache.kernels.target import Target
from s3cache.machine import platform_tag
from s3cache.names import KERNELS_JOB
from s3cache.settings import Mode, Settings
from s3cache.terminal import said_errors

LIBRARY = tuple(
    f"s3cache.kernels.library.{name}" for name in ("cross_entropy", "matmul", "norms", "rope", "swiglu")
)
PUSH_SECONDS = 600.0


@click.group()
def kernels() -> None:
    """Compile Triton kernels for GPUs that are elsewhere."""


class _TargetType(click.ParamType):  # type: ignore[type-arg]
    name = "target"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> Target:
        try:
            return Target.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


@kernels.command("compile")
@click.argument("sources", nargs=-1, metavar="[MODULE_OR_FILE]...")
@click.option(
    "--target",
    "targets",
    multiple=True,
    type=_TargetType(),
    default=["cuda:90"],
    show_default=True,
    help="What to compile for, as cuda:90 for an H100; may be given several times.",
)
@click.option("--jobs", default=os.cpu_count() or 1, show_default=True, type=click.IntRange(1))
@click.option("--push", is_flag=True, help="Store what was compiled in the bucket.")
@click.option("--check", is_flag=True, help="Refuse when the fleet has another Python or Triton.")
def compile_kernels(
    sources: tuple[str, ...], targets: tuple[Target, ...], jobs: int, push: bool, check: bool
) -> None:
    """Compile every kernel that modules or files declare, by default the library's, for every target.

    Python and Triton must be of the versions that the GPU machines have. Exits with 1 when a kernel
    cannot be compiled; the others are compiled nevertheless.
    """
    if os.environ.get("TRITON_INTERPRET", "0") != "0":
        raise click.UsageError("with TRITON_INTERPRET set nothing is compiled: unset it")
    if push or check:
        with said_errors():
            settings = Settings.from_environment()
        if push and settings.refusal:
            raise click.UsageError(f"--push stores nothing: {settings.refusal}")
        if push and "triton" in settings.exclude:
            raise click.UsageError("--push stores nothing: S3CACHE_EXCLUDE has triton; take it out")
        if check:
            _check(settings)
    with tempfile.TemporaryDirectory(prefix="s3cache-kernels-") as folder:
        # A source that imports torch switches the cache on.
        _set_environment(push, folder)
        work = _jobs(sources or LIBRARY, targets)
        client = clients.current() if push else None
        if client:
            client.start()
        elif push:
            raise click.ClickException("--push stores nothing: the cache is off, as said above")
        done = _compile(work, jobs)
    failed = [compiled for compiled in done if compiled.error]
    click.echo(f"s3cache: {len(work) - len(failed)} of {len(work)} kernels are compiled")
    for compiled in failed:
        click.echo(f"{compiled.title}: {compiled.error}", err=True)
    if client:
        _push(client, [compiled for compiled in done if not compiled.error])
    if failed:
        raise SystemExit(1)


def _jobs(sources: tuple[str, ...], targets: tuple[Target, ...]) -> list[Job]:
    work: list[Job] = []
    for source in sources:
        try:
            of_source = jobs_of(source, targets)
        except ImportError as error:
            raise click.BadParameter(str(error), param_hint="MODULE_OR_FILE") from error
        if not of_source:
            raise click.BadParameter(
                f"{source} declares no kernel: put s3cache.kernels.declare above one",
                param_hint="MODULE_OR_FILE",
            )
        work += of_source
    return work


def _compile(work: list[Job], jobs: int) -> list[Compiled]:
    with click.progressbar(
        compile_all(work, min(jobs, len(work))), length=len(work), label="s3cache: compiling"
    ) as done:
        return list(done)


def _push(client: clients.Client, compiled: list[Compiled]) -> None:
    flushed = client.flush(PUSH_SECONDS)
    if flushed is None:
        raise click.ClickException("no word from the agent of what is stored; its log may say why")
    # What the bucket refuses is dropped, and with that no longer pending.
    warnings = json.loads(flushed.report)["warnings"]
    if flushed.pending or warnings:
        raise click.ClickException(": ".join(["kernels may be missing in the bucket", *warnings]))
    missing = [each for each in compiled if client.get("triton", each.key, []) is None]
    if missing:
        raise click.ClickException(
            f"{len(missing)} of {len(compiled)} kernels are not in the bucket; see above"
        )


def _check(settings: Settings) -> None:
    """Hold the versions here against those of the machines with GPUs that wrote to the bucket."""
    with said_errors():
        known = [report for report in fleet.reports(settings) if report.has_gpus]
    python, triton = platform.python_version(), version("triton")
    others = [report for report in known if not report.finds(python, triton)]
    for report in others:
        click.echo(f"s3cache: other versions: {report}", err=True)
    here = f"here are Python {python}, triton {triton}, {platform_tag()}"
    if not known:
        raise click.ClickException(
            f"nothing is known of the fleet: no machine with a GPU has written to {settings.url} yet; "
            "let one run a job, or leave --check out"
        )
    if len(others) == len(known):
        raise click.ClickException(
            f"no machine of the fleet would find what is compiled by these versions: {here}"
        )


def _set_environment(push: bool, folder: str) -> None:
    """Let the processes that compile keep what they make where it belongs."""
    if push:
        os.environ["S3CACHE_JOB"] = KERNELS_JOB
        # What lies in Triton's own folder would not be stored.
        os.environ["TRITON_CACHE_DIR"] = folder
        # Nor would be what a manager of the user's keeps.
        os.environ.pop("TRITON_CACHE_MANAGER", None)
        # A pinned run does not see what it stores.
        os.environ.pop("S3CACHE_PIN", None)
    else:
        os.environ["S3CACHE_MODE"] = Mode.OFF.value
