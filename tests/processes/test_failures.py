"""Whatever is broken: the job runs to its own exit status, is told once, and loses five seconds at most."""

import os
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, chdir, contextmanager, nullcontext
from pathlib import Path

import pytest
from filelock import FileLock

from s3cache.agent.address import agent_directory
from s3cache.settings import Settings
from tests.processes.conftest import READER, NewMachine
from tests.processes.machines import UNSIGNED, Bucket, Machine, credentials_of, ended, least, wait_for
from tests.processes.stubs import REFUSING, failing, silent

EXTRA_SECONDS = 5.0
STATUS = 7
JOB = """
def use(number):
    if cache:
        assert cache.get("fx-graph", f"absent-{number}") is None
        cache.put("fx-graph", f"key-{number}", {"graph": content(number, 100_000)})

for number in range(5):
    use(number)
time.sleep(0.5)
for number in range(5, 10):
    use(number)
sys.exit(7)
"""

Variables = Mapping[str, str | None]
Failure = Callable[[Machine], AbstractContextManager[Variables]]


@contextmanager
def never_answers(_: Machine) -> Iterator[Variables]:
    with silent() as endpoint:
        yield {"AWS_ENDPOINT_URL_S3": endpoint}


@contextmanager
def no_credentials(_: Machine) -> Iterator[Variables]:
    # An address that leads nowhere, as the metadata service of a machine outside a cloud.
    with silent() as endpoint:
        yield {
            "AWS_ACCESS_KEY_ID": None,
            "AWS_SECRET_ACCESS_KEY": None,
            "AWS_EC2_METADATA_DISABLED": None,
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": endpoint,
        }


def credential_program(command: str, **more: str) -> Failure:
    @contextmanager
    def config(machine: Machine) -> Iterator[Variables]:
        yield credentials_of(machine, command) | more

    return config


def answers(status: int, code: str) -> Failure:
    @contextmanager
    def stub(_: Machine) -> Iterator[Variables]:
        with failing(status, code) as endpoint:
            yield {"AWS_ENDPOINT_URL_S3": endpoint}

    return stub


def variables(**values: str | None) -> Failure:
    return lambda machine: nullcontext(
        {name: value and value.format(folder=machine.folder) for name, value in values.items()}
    )


@contextmanager
def refused(_: Machine) -> Iterator[Variables]:
    yield {"AWS_ENDPOINT_URL_S3": REFUSING}


@contextmanager
def full_disk(machine: Machine) -> Iterator[Variables]:
    with _mounted(machine.folder / "full", "size=1m") as folder:
        (folder / "filler").write_bytes(bytes((1 << 20) - 4096))
        yield {"S3CACHE_DIR": str(folder / "cache")}


@contextmanager
def read_only_disk(machine: Machine) -> Iterator[Variables]:
    with _mounted(machine.folder / "fixed", "size=1m,ro") as folder:
        yield {"S3CACHE_DIR": str(folder)}


@contextmanager
def file_in_place_of_the_folder(machine: Machine) -> Iterator[Variables]:
    machine.cache.write_text("")
    yield {}


@contextmanager
def lock_held_by_another(machine: Machine) -> Iterator[Variables]:
    environment = machine.environment()
    folder = agent_directory(Settings.from_environment(environment, ["job.py"]), environment)
    folder.mkdir(parents=True)
    with FileLock(folder / "lock"):
        yield {}


@contextmanager
def agent_that_never_answers(machine: Machine) -> Iterator[Variables]:
    environment = machine.environment()
    folder = agent_directory(Settings.from_environment(environment, ["job.py"]), environment)
    folder.mkdir(parents=True)
    with FileLock(folder / "lock"), socket.socket(socket.AF_UNIX) as listener:
        # By a relative path: the absolute one is longer than a socket's may be.
        with chdir(folder):
            listener.bind("socket")
        listener.listen()
        yield {}


FAILURES: dict[str, tuple[Failure, str]] = {
    "no such bucket": (variables(S3CACHE_URL="s3://no-such-bucket/prefix"), "create it or set S3CACHE_URL"),
    "no such bucket to write to": (answers(404, "NoSuchBucket"), "create it or set S3CACHE_URL"),
    "no credentials": (no_credentials, "AWS_ACCESS_KEY_ID"),
    "credentials that do not come": (credential_program("sleep 20"), "AWS_ACCESS_KEY_ID"),
    "credentials that do not come to a pinned run": (
        credential_program("sleep 20", S3CACHE_PIN="1"),
        "AWS_ACCESS_KEY_ID",
    ),
    "no such credential program": (credential_program("/nowhere/program"), "/nowhere/program"),
    "credential program that prints no JSON": (credential_program("echo hello"), "AWS_ACCESS_KEY_ID"),
    "no such profile": (variables(AWS_PROFILE="absent"), "AWS_PROFILE"),
    "wrong secret": (variables(AWS_SECRET_ACCESS_KEY="wrong"), "the access key or its secret is wrong"),
    "another region": (answers(301, "PermanentRedirect"), "AWS_DEFAULT_REGION"),
    "another region in the signature": (answers(400, "AuthorizationHeaderMalformed"), "AWS_DEFAULT_REGION"),
    "refused connection": (refused, "AWS_ENDPOINT_URL_S3"),
    "server that never answers": (never_answers, "AWS_ENDPOINT_URL_S3"),
    "server that fails": (answers(500, "InternalError"), "InternalError"),
    "server that is no S3": (answers(404, "404"), "AWS_ENDPOINT_URL_S3"),
    "bucket one may only read": (
        variables(AWS_ACCESS_KEY_ID=READER[0], AWS_SECRET_ACCESS_KEY=READER[1]),
        "check the credentials and the bucket's policy",
    ),
    "full disk": (full_disk, "S3CACHE_DIR"),
    "disk one may not write": (read_only_disk, "set S3CACHE_DIR"),
    "file in place of the cache folder": (file_in_place_of_the_folder, "set S3CACHE_DIR"),
    "folder below a file": (variables(S3CACHE_DIR="{folder}/job.py/cache"), "set S3CACHE_DIR"),
    "agent that cannot start": (lock_held_by_another, "log"),
    "agent that never answers": (agent_that_never_answers, "log"),
    "report below a file": (variables(S3CACHE_REPORT="{folder}/job.py/report.json"), "S3CACHE_REPORT"),
    "wrong url": (variables(S3CACHE_URL="https://bucket"), "S3CACHE_URL"),
    "wrong mode": (variables(S3CACHE_MODE="readonly"), "S3CACHE_MODE"),
    "wrong limit": (variables(S3CACHE_DISK_LIMIT="much"), "S3CACHE_DISK_LIMIT"),
}

# Those that would go on for longer than a job waits.
LASTING = [
    "no credentials",
    "credentials that do not come",
    "credentials that do not come to a pinned run",
    "server that never answers",
    "agent that cannot start",
    "agent that never answers",
]

# Those that the launcher meets in another way than the job.
LAUNCHED = [
    "credentials that do not come",
    "refused connection",
    "server that never answers",
    "bucket one may only read",
    "full disk",
    "disk one may not write",
    "agent that cannot start",
    "agent that never answers",
    "report below a file",
    "wrong url",
    "wrong mode",
]


@pytest.fixture(scope="module")
def seconds_without_cache(tmp_path_factory: pytest.TempPathFactory) -> float:
    machine = Machine(tmp_path_factory.mktemp("machine"), {})
    jobs = [machine.run(JOB) for _ in range(3)]
    assert {job[:3] for job in jobs} == {(STATUS, "", "")}
    return min(job.seconds for job in jobs)


@pytest.mark.parametrize("name", FAILURES)
def test_job_runs_to_its_end_and_is_told_once(
    new_machine: NewMachine, name: str, seconds_without_cache: float
) -> None:
    failure, advice = FAILURES[name]

    def extra() -> float:
        machine = new_machine(is_unhurried=name not in LASTING)
        with failure(machine) as settings:
            job = machine.run(JOB, **settings)
            assert (job.status, job.stdout) == (STATUS, "")
            assert len(job.stderr.splitlines()) == 1, job.stderr
            assert job.stderr.startswith("s3cache")
            assert advice in job.stderr
        return job.seconds - seconds_without_cache

    assert least(extra, EXTRA_SECONDS) <= EXTRA_SECONDS


@pytest.mark.parametrize("name", LAUNCHED)
def test_launched_job_runs_to_its_end_and_is_told_once(
    new_machine: NewMachine, name: str, seconds_without_cache: float
) -> None:
    failure, advice = FAILURES[name]

    def extra() -> float:
        machine = new_machine(is_unhurried=name not in LASTING)
        with failure(machine) as settings:
            script = machine.script(JOB)
            job = machine.s3cache("run", "--", machine.python, str(script), **settings)
            assert (job.status, job.stdout) == (STATUS, "")
            warning, summary = job.stderr.splitlines()
            assert advice in warning
            assert summary.startswith("s3cache: ")
        return job.seconds - seconds_without_cache

    assert least(extra, EXTRA_SECONDS) <= EXTRA_SECONDS


def test_job_is_told_while_it_runs(machine: Machine) -> None:
    job = machine.start(
        'cache.get("fx-graph", "absent")\nsay("ready")\nsys.stdin.read()', AWS_ENDPOINT_URL_S3=REFUSING
    )
    stderr = job.stderr
    assert job.stdout
    assert stderr
    assert job.stdout.readline() == "ready\n"
    assert stderr.readline().startswith(UNSIGNED)
    os.set_blocking(stderr.fileno(), False)
    wait_for(lambda: "AWS_ENDPOINT_URL_S3" in stderr.readline(), "the job to be told")
    assert ended(job)[:3] == (0, "", "")


def test_many_processes_of_one_job_are_told_once(machine: Machine) -> None:
    script = machine.script(JOB, "rank.py")
    job = machine.run(
        f"""
        import subprocess
        ranks = [subprocess.Popen([sys.executable, {str(script)!r}]) for _ in range(6)]
        sys.exit(max(rank.wait() for rank in ranks))
        """,
        AWS_ENDPOINT_URL_S3=REFUSING,
    )
    assert (job.status, job.stdout) == (STATUS, "")
    assert len(job.stderr.splitlines()) == 1, job.stderr


def test_disk_tier_makes_do_with_a_small_disk(machine: Machine) -> None:
    with _mounted(machine.folder / "small", "size=3m") as folder:
        machine.cache = folder / "cache"
        for _ in range(2):
            job = machine.run(JOB)
            assert (job.status, job.stdout) == (STATUS, "")
            assert len(job.stderr.splitlines()) <= 1
            machine.wait_until_idle()
        assert list(machine.cache.glob("tier/*/objects/packs/*/*"))


def test_bucket_one_may_only_read_is_read(new_machine: NewMachine, bucket: Bucket) -> None:
    recording = new_machine()
    recording.run('cache.put("fx-graph", "key", {"graph": content("key", 200_000)})')
    recording.wait_until_idle()
    before = bucket.names()

    machine = new_machine()
    machine.settings = machine.settings | {
        "AWS_ACCESS_KEY_ID": READER[0],
        "AWS_SECRET_ACCESS_KEY": READER[1],
    }
    job = machine.run(
        """
        cache.put("fx-graph", "other", {"graph": b"result"})
        time.sleep(1)
        assert cache.get("fx-graph", "key").members == {"graph": content("key", 200_000)}
        """
    )
    assert (job.status, len(job.stderr.splitlines())) == (0, 1), job.stderr
    machine.wait_until_idle()
    assert bucket.names() == before
    assert len(list(machine.cache.glob("tier/*/objects/packs/*/*"))) == 1


@contextmanager
def _mounted(folder: Path, options: str) -> Iterator[Path]:
    """Mount a small filesystem; skips the test where one may not."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False, timeout=10)
    if mounted.returncode:
        pytest.skip(f"no small filesystem can be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        # Detached: an agent may still look at it.
        subprocess.run(["umount", "--lazy", str(folder)], check=True, timeout=10)
