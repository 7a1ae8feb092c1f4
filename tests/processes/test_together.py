"""Many processes, one download of each blob, one report; forks and interruptions mix up nothing."""

import json
from collections import Counter

import pytest

from tests.processes.conftest import RecordedBy
from tests.processes.machines import Bucket, Machine, content, ended
from tests.processes.stubs import Counted, counting

PROCESSES = 8
SIZES = {f"key-{number:02}": 1_000 if number % 5 else 1_000_000 for number in range(20)}
BIG = [key for key, size in SIZES.items() if size > 100_000]

RECORD = f"""
for key, size in {SIZES}.items():
    cache.put("fx-graph", key, {{"graph": content(key, size)}})
"""
READ = f"""
for key, size in {SIZES}.items():
    entry = cache.get("fx-graph", key)
    assert entry and entry.members == {{"graph": content(key, size)}}, key
say("right")
"""


@pytest.fixture(scope="module")
def bucket(recorded_by: RecordedBy) -> Bucket:
    """A place that one machine has recorded into."""
    return recorded_by(RECORD)


def test_processes_that_start_at_once_download_each_blob_once(machine: Machine, bucket: Bucket) -> None:
    for name in bucket.names("preludes/"):
        bucket.delete(name)
    with counting(machine.settings["AWS_ENDPOINT_URL_S3"]) as proxy:
        jobs = [machine.start(READ, AWS_ENDPOINT_URL_S3=proxy.endpoint) for _ in range(PROCESSES)]
        assert [ended(job)[:3] for job in jobs] == [(0, "right\n", "")] * PROCESSES
        machine.wait_until_idle()
        _check_downloads(proxy)


def test_processes_of_a_job_without_profile_download_each_blob_once(machine: Machine) -> None:
    with counting(machine.settings["AWS_ENDPOINT_URL_S3"]) as proxy:
        new_job = {"AWS_ENDPOINT_URL_S3": proxy.endpoint, "S3CACHE_JOB": "never-seen"}
        jobs = [machine.start(READ, **new_job) for _ in range(PROCESSES)]
        assert [ended(job)[:3] for job in jobs] == [(0, "right\n", "")] * PROCESSES
        machine.wait_until_idle()
        _check_downloads(proxy)


def test_processes_of_one_run_write_one_report(machine: Machine) -> None:
    script = machine.script(READ)
    spawn = machine.folder / "ranks.py"
    spawn.write_text(
        "import subprocess, sys\n"
        f"ranks = [subprocess.Popen([sys.executable, {str(script)!r}]) for _ in range({PROCESSES})]\n"
        "sys.exit(max(rank.wait() for rank in ranks))\n"
    )
    report = machine.folder / "report.json"
    job = machine.s3cache("run", "--job", "job", "--report", str(report), "--", machine.python, str(spawn))
    assert (job.status, job.stdout) == (0, "right\n" * PROCESSES), job.stderr + machine.log()
    machine.wait_until_idle()
    said = json.loads(report.read_text())
    counts = said["namespaces"]["fx-graph"]
    assert counts["bucket_hits"] + counts["disk_hits"] == PROCESSES * len(SIZES)
    assert counts["misses"] == 0
    # The prelude, and at most each result that is too large for it by a range of its own.
    assert 1 <= said["requests"].pop("GET") <= 1 + len(BIG)
    assert said["requests"] == {"PUT": 0, "LIST": 1, "DELETE": 0}
    assert said["warnings"] == []


def test_parent_and_forked_children_all_go_on(machine: Machine, bucket: Bucket) -> None:
    job = machine.run(
        f"""
        sizes = {SIZES}
        first = next(iter(sizes))
        assert cache.get("fx-graph", first).members == {{"graph": content(first, sizes[first])}}

        def work(seed):
            keys = [*sizes, *(f"absent-{{number}}" for number in range(50))]
            random.Random(seed).shuffle(keys)
            for key in keys:
                entry = cache.get("fx-graph", key)
                if key in sizes:
                    assert entry.key == key
                    assert entry.members == {{"graph": content(key, sizes[key])}}
                else:
                    assert entry is None
            cache.put("fx-graph", f"of-{{seed}}", {{"graph": content(seed, 100)}})

        children = []
        for seed in range(4):
            child = os.fork()
            if not child:
                try:
                    work(seed)
                    os._exit(0)
                finally:
                    os._exit(1)
            children.append(child)
        work("parent")
        say([os.waitpid(child, 0)[1] for child in children])
        """,
        S3CACHE_JOB="forking",
    )
    assert job[:3] == (0, "[0, 0, 0, 0]\n", "")
    machine.wait_until_idle()
    assert bucket.keys("fx-graph") == sorted([*SIZES, *(f"of-{seed}" for seed in range(4)), "of-parent"])
    assert bucket.members("fx-graph", "of-parent") == {"graph": content("parent", 100)}


def test_threads_get_their_own_answers(machine: Machine) -> None:
    job = machine.run(
        f"""
        from concurrent.futures import ThreadPoolExecutor
        sizes = {SIZES}

        def work(key):
            entry = cache.get("fx-graph", key)
            expected = {{"graph": content(key, sizes[key])}} if key in sizes else None
            assert (entry and entry.members) == expected

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(work, [*sizes, *(f"absent-{{number}}" for number in range(100))]))
        say("right")
        """,
        S3CACHE_JOB="never-seen",
    )
    assert job[:3] == (0, "right\n", "")


def test_answer_to_an_interrupted_question_is_not_taken_for_another(machine: Machine) -> None:
    job = machine.run(
        """
        class Alarm(Exception):
            pass

        def ring(number, frame):
            if is_asking:
                raise Alarm

        signal.signal(signal.SIGALRM, ring)
        cache.get("fx-graph", "first")
        interrupted = 0
        for number in range(300):
            try:
                is_asking = True
                signal.setitimer(signal.ITIMER_REAL, random.uniform(0.0001, 0.003))
                cache.get("fx-graph", f"absent-{number}")
                is_asking = False
            except Alarm:
                is_asking = False
                interrupted += 1
            assert cache.profile("fx-graph") == [], number
        say(interrupted > 0)
        """,
        S3CACHE_JOB="interrupted",
    )
    assert job[:3] == (0, "True\n", "")


def _check_downloads(proxy: Counted) -> None:
    parts = Counter(proxy.paths("GET", "/packs/"))
    assert parts
    assert set(parts.values()) == {1}
    manifests = Counter(proxy.paths("GET", "/manifests/"))
    assert set(manifests.values()) <= {1}
    assert not proxy.paths("HEAD")
