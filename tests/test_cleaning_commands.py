"""`s3cache gc` and `s3cache verify`: what they say, and with which status they end."""

import pytest
from click.testing import CliRunner, Result

import s3cache
from benchmarks.faults import cleaning
from s3cache import manifest, names, profile
from s3cache.bucket import LAYOUT
from s3cache.cli import main
from s3cache.collection import Collected, UnusedProfile
from s3cache.commands.gc import describe
from s3cache.inventory import Total
from s3cache.keyring import NO_KEYS
from s3cache.ledger import Ledger
from s3cache.manifest import MANIFEST_BYTES
from s3cache.prelude import PRELUDE_BYTES
from s3cache.profile import SEGMENT_BYTES
from tests.servers import Server
from tests.writers import content_of

PREFIX = names.profile_prefix("job", "linux-x86_64")


@pytest.fixture
def url(on_moto: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bucket with one result in it."""
    monkeypatch.setenv("S3CACHE_URL", on_moto)
    with s3cache.open_sync(on_moto) as cache:
        cache.put("ns", "key", {"a": content_of("a", 5000)})
    return on_moto


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def put(server: Server, url: str, name: str, data: bytes) -> None:
    client = server.client()
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    client.put_object(Bucket=bucket, Key=f"{prefix}/{LAYOUT}/{name}", Body=data)
    client.close()


def objects(server: Server, url: str) -> list[str]:
    client = server.client()
    try:
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        return [
            item["Key"] for item in client.list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", ())
        ]
    finally:
        client.close()


def test_gc_says_what_it_would_do_and_what_it_cost(url: str, moto_server: Server) -> None:
    before = objects(moto_server, url)
    said = run("gc")
    assert said.exit_code == 0, said.output
    assert said.output.splitlines() == [
        "would be condemned: nothing",
        "would be deleted: nothing",
        "s3cache: 3 LIST, 1 GET, 0 PUT, 0 DELETE; nothing was changed, --delete does it",
    ]
    assert objects(moto_server, url) == before


def test_gc_leaves_what_is_young(url: str, moto_server: Server) -> None:
    before = objects(moto_server, url)
    said = run("gc", "--days", "1", "--grace", "1", "--delete")
    assert said.exit_code == 0, said.output
    assert said.output.splitlines() == [
        "condemned: nothing",
        "deleted: nothing",
        "s3cache: 4 LIST, 1 GET, 1 PUT, 1 DELETE",
    ]
    assert objects(moto_server, url) == before


def test_gc_says_that_a_job_that_is_to_be_kept_has_no_profile(url: str) -> None:
    said = run("gc", "--keep", "jbo")
    assert said.exit_code == 0
    assert said.stderr == "s3cache: --keep jbo: no job of that name has a profile\n"


def test_gc_lists_the_profiles_that_nobody_used() -> None:
    unused = [UnusedProfile("train", "linux-x86_64", 1_700_000_000, 5000, 12_000_000)]
    waiting = [Total("manifests", 7, 9_000)]
    collected = Collected(unused, [Total("packs", 3, 2_000_000)], waiting, [], [])
    assert list(describe(collected, 30, Ledger(), delete=True)) == [
        "profiles of which no use was seen for 30 days:",
        "  train on linux-x86_64: 5000 entries, 12.0 MB, last used 2023-11-14",
        "A machine that may not write leaves no trace of use: --keep JOB keeps the profile of a job.",
        "condemned: 3 packs (2.0 MB)",
        "condemned earlier, and not long enough ago: 7 manifests (9.0 kB)",
        "deleted: nothing",
        "s3cache: 0 LIST, 0 GET, 0 PUT, 0 DELETE",
    ]


def test_verify_says_that_nothing_is_wrong(url: str) -> None:
    said = run("verify")
    assert (said.exit_code, said.stdout) == (
        0,
        "s3cache: 0 wrong, 0 unsigned or untrusted, 0 missing, 0 unreferenced; "
        "1 LIST, 2 GET, 0 PUT, 0 DELETE\n",
    )
    assert said.stderr == "s3cache: no signature was checked, since S3CACHE_TRUSTED_KEYS is not set\n"


def test_verify_says_that_there_is_nothing(url: str) -> None:
    said = run("verify", "--url", f"{url}/mistyped")
    assert said.exit_code == 0
    assert f"there is nothing of s3cache's at {url}/mistyped" in said.stderr


def test_verify_fails_while_something_is_wrong_and_repairs_it(url: str, moto_server: Server) -> None:
    (pack,) = (name for name in objects(moto_server, url) if "/packs/" in name)
    client = moto_server.client()
    client.put_object(Bucket=url.split("/")[2], Key=pack, Body=b"damaged")
    client.close()
    said = run("verify")
    assert said.exit_code == 1
    assert said.output.splitlines()[0].startswith("wrong packs/")
    assert run("verify", "--repair").exit_code == 0
    assert objects(moto_server, url) == []
    assert run("verify").exit_code == 0


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("manifests/ns/key/1", MANIFEST_BYTES),
        (names.prelude_name(PREFIX), PRELUDE_BYTES),
        (profile.segment_name(PREFIX, 1, b""), SEGMENT_BYTES),
    ],
)
def test_verify_repairs_what_is_larger_than_it_may_be(
    url: str, moto_server: Server, name: str, size: int
) -> None:
    before = objects(moto_server, url)
    put(moto_server, url, name, bytes(size + 1))
    said = run("verify", "--repair")
    assert said.exit_code == 0, said.output
    assert f"wrong {name}: {name} has more bytes than it may" in said.output
    assert objects(moto_server, url) == before


def test_what_makes_gc_refuse_is_repaired_by_verify(url: str, moto_server: Server) -> None:
    put(moto_server, url, profile.segment_name(PREFIX, 1, b""), b"junk")
    put(moto_server, url, "manifests/ns/key/1", bytes(MANIFEST_BYTES + 1))
    refused = run("gc", "--delete")
    assert refused.exit_code == 1
    assert "`s3cache verify --repair` removes it" in refused.output
    assert run("verify", "--repair").exit_code == 0
    assert run("gc", "--delete").exit_code == 0


def test_what_verify_prints_steers_no_terminal(url: str, moto_server: Server) -> None:
    put(moto_server, url, "evil\x1b]0;owned\x07", b"x")
    result = manifest.inline(manifest.Result("ns", "\x1b]0;owned\x07", {"a": b"x"}), {})
    assert result
    put(moto_server, url, "manifests/ns/other/0", manifest.encode(result, NO_KEYS))
    said = run("verify")
    assert [line.partition(" ")[0] for line in said.stdout.splitlines()] == [
        "wrong",
        "unreferenced",
        "s3cache:",
    ]
    assert all(line.isprintable() for line in said.output.splitlines())


@pytest.mark.parametrize("mode", ["read-only", "off"])
@pytest.mark.parametrize("arguments", [["gc", "--delete"], ["verify", "--repair"]])
def test_nothing_is_deleted_where_nothing_may_be_written(
    url: str, moto_server: Server, monkeypatch: pytest.MonkeyPatch, arguments: list[str], mode: str
) -> None:
    put(moto_server, url, "manifests/ns/key/1", b"junk")
    before = objects(moto_server, url)
    monkeypatch.setenv("S3CACHE_MODE", mode)
    said = run(*arguments)
    assert said.exit_code == 2
    assert f"{arguments[1]} writes, and S3CACHE_MODE is {mode}" in said.output
    assert objects(moto_server, url) == before
    assert run("gc").exit_code == 0


@pytest.mark.parametrize(
    "arguments", [["--sample", "0"], ["--sample", "some"], ["--sample", "3", "--repair"]]
)
def test_verify_refuses_a_sample_that_is_none(url: str, arguments: list[str]) -> None:
    assert run("verify", *arguments).exit_code == 2


def test_verify_takes_a_sample(url: str) -> None:
    assert run("verify", "--sample", "10").exit_code == 0


@pytest.mark.parametrize("command", ["gc", "verify"])
def test_a_bucket_that_is_not_there_is_an_error_that_says_so(url: str, command: str) -> None:
    said = run(command, "--url", "s3://no-such-bucket/prefix")
    assert said.exit_code == 1
    assert "no such bucket" in said.output


@pytest.mark.parametrize("command", ["gc", "verify"])
def test_a_url_is_needed(command: str) -> None:
    for url in [], ["--url", "http://bucket"]:
        said = run(command, *url)
        assert said.exit_code == 2
        assert "S3CACHE_URL" in said.stderr


def test_so_many_objects_take_so_many_requests() -> None:
    """The small version of what is measured with a million."""
    said = CliRunner().invoke(cleaning.main, ["--objects", "3000"])
    assert said.exit_code == 0, said.output
