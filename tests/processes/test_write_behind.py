"""A put returns at once, and what was put arrives, however the process ends."""

import signal

from tests.processes.machines import Bucket, Machine, content, ended
from tests.processes.stubs import REFUSING, silent

# A put of 64 KiB takes less than a millisecond; the rest is for whatever else the machine does.
FAST_SECONDS = 0.02


def test_put_is_fast_though_the_bucket_never_answers(machine: Machine) -> None:
    with silent() as endpoint:
        job = machine.run(
            """
            took = []
            for number in range(50):
                result = content(number, 64 << 10)
                began = time.perf_counter()
                cache.put("fx-graph", f"key-{number}", {"graph": result})
                took.append(time.perf_counter() - began)
            say(sorted(took)[25])
            """,
            AWS_ENDPOINT_URL_S3=endpoint,
        )
        assert job.status == 0
        assert float(job.stdout) < FAST_SECONDS
        assert len(machine.spooled()) == 50


def test_put_arrives_though_the_process_is_killed_right_after(any_machine: Machine, bucket: Bucket) -> None:
    job = any_machine.run(
        """
        cache.put("fx-graph", "key", {"graph": content("key", 200_000)})
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    assert job.status == -signal.SIGKILL
    any_machine.wait_until_idle()
    assert bucket.members("fx-graph", "key") == {"graph": content("key", 200_000)}


def test_every_put_that_returned_arrives_though_the_process_is_killed_amid_puts(
    machine: Machine, bucket: Bucket
) -> None:
    job = machine.start(
        """
        for number in range(1_000_000):
            cache.put("fx-graph", f"key-{number:06}", {"graph": content(number, 20_000)})
            say("put")
        """
    )
    assert job.stdout
    for _ in range(40):
        job.stdout.readline()
    job.kill()
    returned = 40 + len(ended(job).stdout.splitlines())
    machine.wait_until_idle()
    assert bucket.keys("fx-graph")[:returned] == [f"key-{number:06}" for number in range(returned)]
    assert not machine.spooled()


def test_next_start_sends_what_a_killed_agent_left(any_machine: Machine, bucket: Bucket) -> None:
    with silent() as endpoint:
        job = any_machine.start(
            """
            cache.put("fx-graph", "key", {"graph": b"result"})
            say("put")
            time.sleep(60)
            """,
            AWS_ENDPOINT_URL_S3=endpoint,
        )
        assert job.stdout
        assert job.stdout.readline() == "put\n"
        any_machine.kill_agent()
        job.kill()
        ended(job)
    assert len(any_machine.spooled()) == 1
    assert bucket.names() == []

    assert any_machine.run("").status == 0
    any_machine.wait_until_idle()
    assert bucket.members("fx-graph", "key") == {"graph": b"result"}
    assert not any_machine.spooled()


def test_next_start_sends_what_the_bucket_was_not_there_for(machine: Machine, bucket: Bucket) -> None:
    put = 'cache.put("fx-graph", "key", {"graph": b"result"})\ntime.sleep(1)'
    assert machine.run(put, AWS_ENDPOINT_URL_S3=REFUSING).status == 0
    machine.wait_until_idle()
    assert len(machine.spooled()) == 1

    assert machine.run("").status == 0
    machine.wait_until_idle()
    assert bucket.keys("fx-graph") == ["key"]


def test_what_is_put_after_the_agent_was_killed_arrives(machine: Machine, bucket: Bucket) -> None:
    job = machine.start(
        """
        say(cache.get("fx-graph", "absent"))
        sys.stdin.readline()
        cache.put("fx-graph", "put", {"graph": b"result"})
        """
    )
    assert job.stdout
    assert job.stdout.readline() == "None\n"
    machine.kill_agent()
    assert ended(job, says="\n").status == 0
    machine.wait_until_idle()
    assert bucket.keys("fx-graph") == ["put"]


def test_put_of_a_process_that_never_asked_for_anything_arrives(machine: Machine, bucket: Bucket) -> None:
    script = machine.folder / "plain.py"
    script.write_text("from s3cache.client import current\ncurrent().put('fx-graph', 'key', {'a': b'b'})\n")
    assert machine.run_command([machine.python, str(script)]).status == 0
    machine.wait_until_idle()
    assert bucket.keys("fx-graph") == ["key"]


def test_put_in_atexit_arrives(any_machine: Machine, bucket: Bucket) -> None:
    job = any_machine.run(
        """
        import atexit
        atexit.register(lambda: cache.put("fx-graph", "key", {"graph": b"result"}))
        """
    )
    assert (job.status, job.stderr) == (0, "")
    any_machine.wait_until_idle()
    assert bucket.members("fx-graph", "key") == {"graph": b"result"}


def test_puts_of_a_daemon_thread_while_the_interpreter_exits_arrive(
    any_machine: Machine, bucket: Bucket
) -> None:
    job = any_machine.run(
        """
        import atexit
        leaving, done = threading.Event(), threading.Event()

        def work():
            leaving.wait()
            for number in range(10):
                cache.put("fx-graph", f"key-{number}", {"graph": b"result"})
            done.set()

        def leave():
            leaving.set()
            done.wait()

        threading.Thread(target=work, daemon=True).start()
        atexit.register(leave)
        """
    )
    assert (job.status, job.stderr) == (0, "")
    any_machine.wait_until_idle()
    assert bucket.keys("fx-graph") == [f"key-{number}" for number in range(10)]


def test_put_of_a_forked_child_arrives(any_machine: Machine, bucket: Bucket) -> None:
    job = any_machine.run(
        """
        child = os.fork()
        if not child:
            cache.put("fx-graph", "child", {"graph": b"result"})
            os._exit(0)
        say(os.waitpid(child, 0)[1])
        """
    )
    assert (job.status, job.stdout, job.stderr) == (0, "0\n", "")
    any_machine.wait_until_idle()
    assert bucket.keys("fx-graph") == ["child"]


def test_put_of_a_child_that_outlives_its_parent_arrives(machine: Machine, bucket: Bucket) -> None:
    job = machine.run(
        """
        if not os.fork():
            os.close(1), os.close(2)
            time.sleep(1.2)
            cache.put("fx-graph", "child", {"graph": b"result"})
            os._exit(0)
        """
    )
    assert job.status == 0
    machine.wait_until_idle()
    assert bucket.keys("fx-graph") == ["child"]


def test_memory_and_disk_stay_bounded_while_nothing_can_be_sent(machine: Machine) -> None:
    with silent() as endpoint:
        job = machine.run(
            """
            import resource
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            for number in range(100):
                cache.put("fx-graph", f"key-{number}", {"graph": content(number, 1 << 20)})
            say(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
            """,
            AWS_ENDPOINT_URL_S3=endpoint,
            S3CACHE_DISK_LIMIT="40MiB",
        )
    assert job.status == 0
    assert int(job.stdout) < 20 << 10
    assert sum(path.stat().st_size for path in machine.spooled()) <= 10 << 20
    assert len(job.stderr.splitlines()) == 1
    assert "S3CACHE_DISK_LIMIT" in job.stderr
