"""`s3cache run` is as if the command had been started itself, and `s3cache warm` fetches alone."""

import json
import os
import signal
import sys

import pytest

from tests.processes.conftest import NewBucket, NewMachine
from tests.processes.machines import Bucket, Machine, ended
from tests.processes.stubs import counting, refusing

RECORD = """
cache.put("fx-graph", "small", {"graph": b"result"})
cache.put("fx-graph", "big", {"graph": content("big", 300_000)})
"""
READ = """
assert cache.get("fx-graph", "small").members == {"graph": b"result"}
assert cache.get("fx-graph", "big").members == {"graph": content("big", 300_000)}
"""


@pytest.fixture(scope="module")
def recorded(new_bucket: NewBucket, tmp_path_factory: pytest.TempPathFactory) -> Bucket:
    """A place that one machine has recorded into."""
    place = new_bucket()
    machine = Machine(tmp_path_factory.mktemp("machines") / "recording", place.settings)
    assert machine.run(RECORD).status == 0
    machine.wait_until_idle()
    return place


@pytest.mark.parametrize("status", [0, 1, 7, 126, 127, 255])
def test_exit_status_is_the_commands(machine: Machine, status: int) -> None:
    job = machine.s3cache("run", "--", "sh", "-c", f"exit {status}", S3CACHE_MODE="off")
    assert job[:3] == (status, "", "s3cache: off\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV])
def test_exit_status_of_a_killed_command_is_128_and_the_signal(machine: Machine, number: int) -> None:
    job = machine.s3cache("run", "--", "sh", "-c", f"kill -{number} $$", S3CACHE_MODE="off")
    assert job.status == 128 + number


def test_command_that_is_not_there(machine: Machine) -> None:
    job = machine.s3cache("run", "--", "no-such-command", S3CACHE_MODE="off")
    assert job.status == 127
    assert job.stderr.splitlines()[0] == "s3cache: cannot run no-such-command: No such file or directory"


def test_command_that_cannot_be_executed(machine: Machine) -> None:
    file = machine.folder / "file"
    file.write_text("")
    job = machine.s3cache("run", "--", str(file), S3CACHE_MODE="off")
    assert job.status == 126
    assert job.stderr.splitlines()[0] == f"s3cache: cannot run {file}: Permission denied"


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT]
)
def test_signals_are_passed_on(machine: Machine, number: signal.Signals) -> None:
    script = machine.folder / "trap.sh"
    script.write_text(
        f"trap 'echo {number.name}; exit 7' {number.name[3:]}\necho ready\nwhile :; do sleep 0.05; done\n"
    )
    job = machine.execute([*machine.command_line(), "run", "--", "sh", str(script)], S3CACHE_MODE="off")
    assert job.stdout
    assert job.stdout.readline() == "ready\n"
    os.kill(job.pid, number)
    assert ended(job)[:3] == (7, f"{number.name}\n", "s3cache: off\n")


def test_signal_to_the_whole_group_ends_the_command_and_the_results_arrive(
    machine: Machine, bucket: Bucket
) -> None:
    script = machine.script(
        """
        def leave(number, frame):
            # It comes from the group and from the launcher.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            cache.put("fx-graph", "in-the-handler", {"graph": b"result"})
            sys.exit(9)

        signal.signal(signal.SIGTERM, leave)
        say("ready")
        time.sleep(60)
        """
    )
    job = machine.execute([*machine.command_line(), "run", "--", machine.python, str(script)])
    assert job.stdout
    assert job.stdout.readline() == "ready\n"
    os.killpg(job.pid, signal.SIGTERM)
    end = ended(job)
    assert end.status == 9
    # It waited: what the handler put is there as soon as the launcher is gone.
    assert bucket.keys("fx-graph") == ["in-the-handler"]


def test_command_has_the_signals_of_a_shell(machine: Machine) -> None:
    job = machine.s3cache("run", "--", "cat", "/proc/self/status", S3CACHE_MODE="off")
    status = dict(line.split(":\t", 1) for line in job.stdout.splitlines())
    assert int(status["SigBlk"], 16) == 0
    # Two that the C library has for itself are ignored in whatever it spawns.
    assert int(status["SigIgn"], 16) & ~(0b11 << 31) == 0


def test_stdin_and_stdout_are_the_commands(machine: Machine) -> None:
    job = machine.execute([*machine.command_line(), "run", "--", "cat"])
    assert ended(job, says="first\nsecond")[:2] == (0, "first\nsecond")


def test_options_of_the_command_are_its_own(machine: Machine) -> None:
    options = ["--url", "x", "--job", "y", "--report", "z", "--help", "-v", "--", "-"]
    show = [machine.python, "-c", "import sys; print(sys.argv[1:])", *options]
    expected = f"{options}\n"
    assert machine.s3cache("run", "--", *show, S3CACHE_MODE="off").stdout == expected
    assert machine.s3cache("run", *show, S3CACHE_MODE="off").stdout == expected


def test_option_that_does_not_exist_is_refused(machine: Machine) -> None:
    job = machine.s3cache("run", "--jbo", "x", "true", S3CACHE_MODE="off")
    assert job.status == 2
    assert "--jbo" in job.stderr


def test_last_line_says_what_the_cache_did(new_machine: NewMachine, bucket: Bucket) -> None:
    recording = new_machine()
    script = recording.script(RECORD)
    job = recording.s3cache("run", "--", recording.python, str(script))
    assert job[:2] == (0, "")
    (line,) = job.stderr.splitlines()
    assert line.startswith("s3cache: 0 hits (0 from the bucket), 0 misses, 2 stored; 0 B down, 300.")
    # It waited for the uploads, and for the profile.
    assert bucket.keys("fx-graph") == ["big", "small"]
    assert len(bucket.names("profiles/job/")) == 1

    machine = new_machine()
    script = machine.script(READ)
    job = machine.s3cache("run", "--", machine.python, str(script))
    assert job[:2] == (0, "")
    (line,) = job.stderr.splitlines()
    assert line.startswith("s3cache: 2 hits (2 from the bucket), 0 misses, 0 stored; 300.")


def test_options_name_url_job_and_report(new_machine: NewMachine, bucket: Bucket) -> None:
    machine = new_machine()
    script = machine.script(RECORD)
    options = ["--url", bucket.url, "--job", "a-job", "--report", "report.json"]
    command = [machine.python, str(script)]
    job = machine.s3cache("run", *options, *command, S3CACHE_URL="s3://another-bucket", S3CACHE_JOB="other")
    assert job.status == 0
    assert len(bucket.names("profiles/a-job/")) == 1
    said = json.loads((machine.folder / "report.json").read_text())
    assert said["job"] == "a-job"
    assert said["namespaces"]["fx-graph"]["puts"] == 2


def test_job_is_named_after_the_script(machine: Machine) -> None:
    script = machine.script("", "train_llama.py")
    command = ["--report", "report.json", "--", "env", machine.python, str(script), "--layers", "4"]
    assert machine.s3cache("run", *command).status == 0
    assert json.loads((machine.folder / "report.json").read_text())["job"] == "train_llama"


def test_fetching_begins_before_the_command_does_anything(
    new_machine: NewMachine, recorded: Bucket
) -> None:
    machine = new_machine(knows=recorded)
    count = f"sleep 2; find {machine.cache}/tier/*/objects/packs -type f | wc -l"
    job = machine.s3cache("run", "--job", "job", "--", "sh", "-c", count)
    assert job[:2] == (0, "1\n")


def test_commands_work_without_torch(new_machine: NewMachine, recorded: Bucket) -> None:
    machine = new_machine(knows=recorded)
    for name in ("torch", "triton"):
        (machine.folder / f"{name}.py").write_text("raise ImportError('not installed')\n")
    blocked = {"PYTHONPATH": str(machine.folder)}
    assert machine.s3cache("warm", "--job", "job", **blocked).status == 0
    script = machine.script(READ)
    assert machine.s3cache("run", "--", machine.python, str(script), **blocked).status == 0


def test_warm_fetches_what_a_job_needs(new_machine: NewMachine, recorded: Bucket) -> None:
    machine = new_machine(knows=recorded)
    warm = machine.s3cache("warm", "--job", "job")
    assert (warm.status, warm.stderr) == (0, "")
    assert warm.stdout.startswith("s3cache: 2 entries of job are here, 300.")
    assert not machine.agents()
    with counting(machine.settings["AWS_ENDPOINT_URL_S3"]) as proxy:
        assert machine.run(READ, AWS_ENDPOINT_URL_S3=proxy.endpoint)[:3] == (0, "", "")
        machine.wait_until_idle()
        # LIST is a GET too, but of the bucket.
        assert [path for path in proxy.paths("GET") if "list-type" not in path] == []
    again = machine.s3cache("warm", S3CACHE_JOB="job")
    assert again.stdout.startswith("s3cache: 2 entries of job are here, 0 B down")


@pytest.mark.parametrize(
    ("variables", "advice"),
    [
        ({"S3CACHE_URL": "s3://no-such-bucket/prefix"}, "there is no such bucket"),
        ({"AWS_ENDPOINT_URL_S3": refusing()}, "AWS_ENDPOINT_URL_S3"),
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "check the credentials"),
        ({"S3CACHE_DIR": "/dev/null/cache"}, "set S3CACHE_DIR"),
    ],
)
def test_warm_ends_with_1_when_it_cannot_fetch(
    machine: Machine, variables: dict[str, str], advice: str
) -> None:
    warm = machine.s3cache("warm", "--job", "job", **variables)
    assert (warm.status, warm.stdout) == (1, "")
    assert advice in warm.stderr
    assert len(warm.stderr.splitlines()) == 1


def test_warm_wants_to_know_the_job(machine: Machine) -> None:
    warm = machine.s3cache("warm")
    assert warm.status == 2
    assert "S3CACHE_JOB" in warm.stderr


def test_warm_refuses_a_wrong_setting_by_name(machine: Machine) -> None:
    warm = machine.s3cache("warm", "--job", "job", S3CACHE_DISK_LIMIT="much")
    assert warm.status == 2
    assert "S3CACHE_DISK_LIMIT" in warm.stderr


def test_interrupt_from_a_terminal_reaches_the_command_once(machine: Machine) -> None:
    script = machine.folder / "count.py"
    script.write_text(
        "import signal, time\n"
        "got = []\n"
        "signal.signal(signal.SIGINT, lambda *_: got.append(1))\n"
        "print('ready', flush=True)\n"
        "deadline = time.monotonic() + 1\n"
        "while time.monotonic() < deadline: time.sleep(0.05)\n"
        "print(len(got), flush=True)\n"
    )
    # A terminal whose foreground group is the launcher's.
    terminal = machine.folder / "terminal.py"
    terminal.write_text(
        "import os, pty, sys\n"
        "child, fd = pty.fork()\n"
        "if not child:\n"
        "    os.execvp(sys.argv[1], sys.argv[1:])\n"
        "seen = b''\n"
        "while b'ready' not in seen:\n"
        "    seen += os.read(fd, 1000)\n"
        "os.write(fd, b'\\x03')\n"
        "try:\n"
        "    while part := os.read(fd, 1000):\n"
        "        seen += part\n"
        "except OSError:\n"
        "    pass\n"
        # The terminal echoes ^C.
        "print(seen.split()[-3].removeprefix(b'^C'), os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    command = [*machine.command_line(), "run", "--", machine.python, str(script)]
    job = machine.run_command([sys.executable, str(terminal), *command], S3CACHE_MODE="off")
    assert job[:3] == (0, "b'1' 0\n", "")
