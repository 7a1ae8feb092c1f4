"""`s3cache run` is as if the command had been started itself, and `s3cache warm` fetches alone."""

import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest

from s3cache.launcher import is_of_this_environment
from tests.processes.conftest import NewMachine, RecordedBy
from tests.processes.machines import UNSIGNED, Bucket, Machine, ended
from tests.processes.stubs import REFUSING, counting

RECORD = """
cache.put("fx-graph", "small", {"graph": b"result"})
cache.put("fx-graph", "big", {"graph": content("big", 300_000)})
"""
READ = """
assert cache.get("fx-graph", "small").members == {"graph": b"result"}
assert cache.get("fx-graph", "big").members == {"graph": content("big", 300_000)}
"""


@pytest.fixture(scope="module")
def recorded(recorded_by: RecordedBy) -> Bucket:
    """A place that one machine has recorded into."""
    return recorded_by(RECORD)


@pytest.fixture(scope="module")
def packed(recorded_by: RecordedBy) -> Bucket:
    """Another one, for what takes its prelude away."""
    return recorded_by(RECORD)


@pytest.fixture
def loose(packed: Bucket) -> Bucket:
    """That place without a prelude: its pack comes by itself."""
    for name in packed.names("preludes/"):
        packed.delete(name)
    return packed


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


def executable(path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(0o700)
    return str(path)


def test_what_our_python_runs_is_of_this_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    ours = Path(sys.executable)
    assert is_of_this_environment([str(ours), "train.py"])
    also_ours = ours.with_name(f"python{sys.version_info.major}.{sys.version_info.minor}")
    for interpreter in ours, also_ours:
        assert is_of_this_environment([executable(tmp_path / "torchrun", f"#!{interpreter}\n")])
    monkeypatch.setenv("PATH", f"{tmp_path}:{ours.parent}")
    assert is_of_this_environment([ours.name, "train.py"])
    assert is_of_this_environment(["torchrun", "train.py"])
    monkeypatch.chdir(ours.parent.parent)
    assert is_of_this_environment([f"bin/{ours.name}", "train.py"])


def test_what_another_program_runs_is_not_of_this_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A virtual environment's Python is a link to the one that it was made by.
    ours, other = tmp_path / "python", sys.executable
    ours.symlink_to(other)
    monkeypatch.setattr(sys, "executable", str(ours))
    beside = executable(tmp_path / "program", "")
    for interpreter in ("/bin/sh", "/usr/bin/env python", other, beside):
        assert not is_of_this_environment([executable(tmp_path / "script", f"#!{interpreter}\n")])
    for command in (other, beside, "sh", "no-such-command", str(tmp_path)):
        assert not is_of_this_environment([command])


def test_without_triton_nothing_is_of_this_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    assert not is_of_this_environment([sys.executable])


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
    job = machine.s3cache("run", "--job", "job", "--", "sh", "-c", until_a_pack_is_here(machine))
    assert job.status == 0
    assert len(machine.frames()) == 1


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
        ({"AWS_ENDPOINT_URL_S3": REFUSING}, "AWS_ENDPOINT_URL_S3"),
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "the access key or its secret is wrong"),
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


def until_a_pack_is_here(machine: Machine) -> str:
    """Return a command of the shell that ends a moment after a frame of a pack has come."""
    folder = f"{machine.cache}/tier/*/objects/packs"
    return f"until find {folder} -type f 2>/dev/null | grep -q .; do sleep 0.05; done; sleep 0.3"


ON_A_TERMINAL = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"


def on_a_terminal(machine: Machine, *arguments: str, **variables: str | None) -> tuple[int, list[str]]:
    """Run the command line `s3cache` on a terminal; return its exit status and the lines that were seen."""
    command = [sys.executable, "-c", ON_A_TERMINAL, *machine.command_line(), *arguments]
    end = machine.run_command(command, **variables)
    assert end.stderr == ""
    return end.status, [line for line in end.stdout.splitlines() if not line.startswith(UNSIGNED)]


@pytest.mark.parametrize("command", ["run", "warm"])
def test_terminal_shows_how_far_a_long_prefetch_is(
    new_machine: NewMachine, loose: Bucket, command: str
) -> None:
    machine = new_machine(knows=loose)
    what = ["--", "sh", "-c", until_a_pack_is_here(machine)] if command == "run" else []
    with counting(machine.settings["AWS_ENDPOINT_URL_S3"], pack_seconds=1.5) as proxy:
        status, lines = on_a_terminal(
            machine, command, "--job", "job", *what, AWS_ENDPOINT_URL_S3=proxy.endpoint
        )
        machine.wait_until_idle()
    assert status == 0
    text = "\n".join(lines)
    assert text.index("s3cache: 300.") < text.index("  0%") < text.index("100%")
    # The bar's last line is over before the summary is written.
    assert [line for line in lines if "%" in line][-1] != lines[-1]
    assert lines[-1].startswith("s3cache: ")
    assert "%" not in lines[-1]


@pytest.mark.parametrize(
    "command", [["run", "--job", "job", "--", "sleep", "1.2"], ["warm", "--job", "job"]]
)
def test_terminal_shows_nothing_of_a_short_prefetch(
    new_machine: NewMachine, recorded: Bucket, command: list[str]
) -> None:
    machine = new_machine(knows=recorded)
    assert machine.s3cache("warm", "--job", "job").status == 0
    status, (line,) = on_a_terminal(machine, *command)
    assert status == 0
    assert line.startswith("s3cache: ")


def test_command_that_ends_first_ends_the_bar(new_machine: NewMachine, loose: Bucket) -> None:
    machine = new_machine(knows=loose)
    with counting(machine.settings["AWS_ENDPOINT_URL_S3"], pack_seconds=50.0) as proxy:
        began = time.monotonic()
        command = ["run", "--job", "job", "--", "sh", "-c", "sleep 4; exit 3"]
        status, lines = on_a_terminal(machine, *command, AWS_ENDPOINT_URL_S3=proxy.endpoint)
        assert time.monotonic() - began < 25.0
    assert status == 3
    assert "  0%" in "".join(lines[:-1])
    assert lines[-1].startswith("s3cache: 0 hits")


def test_signals_are_passed_on_beside_the_bar(new_machine: NewMachine, loose: Bucket) -> None:
    machine = new_machine(knows=loose)
    script = machine.folder / "trap.sh"
    script.write_text("trap 'exit 7' TERM\nsleep 4\nkill -TERM $PPID\nsleep 30 & wait\nexit 1\n")
    with counting(machine.settings["AWS_ENDPOINT_URL_S3"], pack_seconds=50.0) as proxy:
        command = ["run", "--job", "job", "--", "sh", str(script)]
        status, lines = on_a_terminal(machine, *command, AWS_ENDPOINT_URL_S3=proxy.endpoint)
    assert status == 7
    assert "  0%" in "".join(lines)


def test_terminal_shows_no_bar_without_an_agent(machine: Machine) -> None:
    command = ["run", "--", "sleep", "1"]
    assert on_a_terminal(machine, *command, S3CACHE_MODE="off") == (0, ["s3cache: off"])
    machine.cache.mkdir()
    (machine.cache / "agents").write_text("no folder")
    status, lines = on_a_terminal(machine, *command)
    assert status == 0
    assert lines[-1] == "s3cache: no word from the agent; its log may say why"
    assert all("the agent cannot be started" in line for line in lines[:-1])


def test_elsewhere_the_last_line_says_what_was_prefetched(new_machine: NewMachine, loose: Bucket) -> None:
    machine = new_machine(knows=loose)
    with counting(machine.settings["AWS_ENDPOINT_URL_S3"], pack_seconds=1.5) as proxy:
        command = ["run", "--job", "job", "--", "sh", "-c", until_a_pack_is_here(machine)]
        job = machine.s3cache(*command, AWS_ENDPOINT_URL_S3=proxy.endpoint)
        machine.wait_until_idle()
    said = re.fullmatch(r"s3cache: .*; prefetched 300\.\d kB in (\d+\.\d) s\n", job.stderr)
    assert said
    assert float(said[1]) >= 1.5


def bars(page: str) -> list[tuple[str, str]]:
    """Return the class and the title of each bar of a trace."""
    found = re.findall(r'<rect class="(.*?)".*?><title>(.*?)</title>', page, re.DOTALL)
    return [(drawn_as, " ".join(title.split())) for drawn_as, title in found]


def test_trace_shows_a_start(new_machine: NewMachine, recorded: Bucket) -> None:
    machine = new_machine(knows=recorded)
    script = machine.script(f"time.sleep(1.5)\n{READ}\ncache.get('fx-graph', 'absent')")
    command = [machine.python, str(script), "--token=of-the-user"]
    job = machine.s3cache("run", "--job", "job", "--trace", "start.html", "--", *command)
    assert job[:2] == (0, "")
    page = (machine.folder / "start.html").read_text()
    assert "of-the-user" not in page
    found = bars(page)
    requests = [bar for bar in found if bar[1].split()[0] in ("GET", "LIST")]
    # From the first one on: the agent was started for this run.
    assert sorted(title.split("/")[0] for _, title in requests[:2]) == ["GET preludes", "LIST profiles"]
    assert {drawn_as for drawn_as, title in requests if "absent" not in title} == {"prefetch"}
    assert [drawn_as for drawn_as, title in requests if "ObjectAbsent" in title] == ["look-up"]
    assert any("preludes/" in title and "bytes=0-" in title and "300." in title for _, title in requests)
    assert {title.split()[1] for drawn_as, title in found if drawn_as == "hit"} == {"fx-graph"}
    last_look_up = [title for _, title in found if title.startswith("look-up ")][-1]
    assert re.fullmatch(r"look-up fx-graph absent 0 \d+\.\d ms absent", last_look_up)
    assert [title.split()[1] for _, title in found if title.startswith("prefetch ")] == [
        "profile",
        "frames",
    ]
    # The launcher, and the script.
    assert len({title for _, title in found if title.startswith("process ")}) == 2


def test_trace_shows_what_was_stored(machine: Machine) -> None:
    script = machine.script(RECORD)
    job = machine.s3cache("run", "--trace", "start.html", "--", machine.python, str(script))
    assert job[:2] == (0, "")
    drawn_as = {
        title.split("/")[0]: name for name, title in bars((machine.folder / "start.html").read_text())
    }
    stored = {"PUT manifests": "upload", "PUT packs": "upload", "PUT profiles": "upload"}
    assert drawn_as.items() >= stored.items()


def test_trace_without_a_cache_is_empty(machine: Machine) -> None:
    assert machine.s3cache("run", "--trace", "start.html", "--", "true", S3CACHE_MODE="off").status == 0
    assert bars((machine.folder / "start.html").read_text()) == []


def test_trace_that_cannot_be_written_is_refused_before_the_command_starts(machine: Machine) -> None:
    command = ["touch", str(machine.folder / "started")]
    job = machine.s3cache("run", "--trace", "no-such-folder/start.html", "--", *command)
    assert job.status == 2
    assert "--trace" in job.stderr
    assert "name a file in a folder" in job.stderr
    assert not (machine.folder / "started").exists()


def test_trace_that_cannot_be_written_any_more_leaves_the_exit_status(machine: Machine) -> None:
    (machine.folder / "traces").mkdir()
    command = ["run", "--trace", "traces/start.html", "--", "sh", "-c", "rm -r traces; exit 7"]
    job = machine.s3cache(*command, S3CACHE_MODE="off")
    assert job.status == 7
    assert job.stderr.startswith("s3cache: traces/start.html cannot be written: No such file or directory")


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


def test_warm_says_that_there_is_no_such_profile(new_machine: NewMachine, recorded: Bucket) -> None:
    job = new_machine(knows=recorded).s3cache("warm", "--job", "jbo")
    assert job.status == 0
    assert "has no profile of jbo yet" in job.stdout


def test_warm_fetches_nothing_when_the_cache_is_off(new_machine: NewMachine, recorded: Bucket) -> None:
    machine = new_machine(knows=recorded)
    job = machine.s3cache("warm", "--job", "job", S3CACHE_MODE="off")
    assert job[:2] == (0, "s3cache: off, by S3CACHE_MODE\n")
    assert machine.frames() == []


def test_a_command_whose_name_is_no_utf8_runs(machine: Machine) -> None:
    script = machine.folder / os.fsdecode(b"caf\xe9.sh")
    script.write_text("#!/bin/sh\necho ran\n")
    script.chmod(0o700)
    for job in (
        machine.s3cache("run", "--", str(script)),
        machine.s3cache("run", "--", "echo", "ran", S3CACHE_JOB=os.fsdecode(b"caf\xe9")),
    ):
        assert job[:2] == (0, "ran\n")
        assert "Traceback" not in job.stderr
    machine.wait_until_idle()
