"""Where keys come from, the commands that make and trust them, and that no secret gets out."""

import os
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from s3cache.cli import main
from s3cache.errors import SettingsError
from s3cache.keyring import SigningKey
from s3cache.settings import Settings
from tests.signing import ALICE, BOB

SECRET = ALICE.secret_text.partition(":")[2]
URL = {"S3CACHE_URL": "s3://bucket/prefix"}


def settings(**variables: str) -> Settings:
    return Settings.from_environment(URL | variables, ["train.py"])


def keys(*arguments: str, **environ: str) -> Result:
    return CliRunner().invoke(main, ["keys", *arguments], env=environ)


def file_of(folder: Path, *lines: str) -> str:
    path = folder / "keys"
    path.write_text("\n".join(lines))
    return str(path)


# Trusted keys.


def test_keys_are_trusted_inline_or_by_a_file(tmp_path: Path) -> None:
    both = (ALICE.public, BOB.public)
    path = file_of(tmp_path, "# who may write", "", *map(str, both), str(ALICE.public))
    assert settings(S3CACHE_TRUSTED_KEYS=path).trusted_keys == both
    assert settings(S3CACHE_TRUSTED_KEYS=", ".join(map(str, both))).trusted_keys == both
    assert settings().trusted_keys == ()


@pytest.mark.parametrize("text", ["", "# nobody", "alice", "alice ed25519:AAAA", ALICE.secret_text, "\xff"])
def test_a_file_without_keys_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(SettingsError, match="S3CACHE_TRUSTED_KEYS") as error:
        settings(S3CACHE_TRUSTED_KEYS=str(path))
    assert SECRET not in str(error.value)


def test_a_file_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"S3CACHE_TRUSTED_KEYS.*No such file"):
        settings(S3CACHE_TRUSTED_KEYS=str(tmp_path / "gone"))
    with pytest.raises(SettingsError, match=r"S3CACHE_TRUSTED_KEYS.*home"):
        settings(S3CACHE_TRUSTED_KEYS="~nobody-of-that-name/trusted")


# The key that signs.


def test_a_key_signs_from_a_file_the_environment_or_a_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIGNING", ALICE.secret_text)
    path = file_of(tmp_path, "# ours", ALICE.secret_text)
    for source in (f"file:{path}", "env:SIGNING", f"command:cat {path}"):
        found = settings(
            S3CACHE_SIGNING_KEY=source, S3CACHE_TRUSTED_KEYS=str(ALICE.public), SIGNING=ALICE.secret_text
        )
        keyring = found.signing_keyring()
        assert (keyring.tenant, keyring.signer) == ("prefix", ALICE.public.id)
        assert found.keyring().signing is None
        assert SECRET not in repr(found)


@pytest.mark.parametrize("source", [ALICE.secret_text, "file:", "alice", "http://keys", ":", "command"])
def test_what_says_no_source_is_refused_unseen(source: str) -> None:
    with pytest.raises(SettingsError, match="S3CACHE_SIGNING_KEY") as error:
        settings(S3CACHE_SIGNING_KEY=source)
    assert SECRET not in str(error.value)


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("file:/gone", "No such file"),
        ("file:~nobody-of-that-name/key", "home"),
        ("env:GONE", "no variable GONE"),
        ("env:EMPTY", "0 lines"),
        ("env:TWO", "2 lines"),
        ("env:CUT", "is written"),
        ("env:PUBLIC", "is written"),
        ("command:false", "status 1"),
        ("command:/gone", "No such file"),
        ("command:sleep 10", "longer than"),
        ("command:head -c 40 /dev/urandom", ""),
        ("command:print 'it", "quotation"),
        ("command: ", "no command"),
    ],
)
def test_a_key_that_cannot_be_had_is_refused_by_name(
    source: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("s3cache.keys.COMMAND_SECONDS", 0.2 if "sleep" in source else 10.0)
    monkeypatch.setenv("TWO", f"{ALICE.secret_text}\n{BOB.secret_text}")
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.setenv("CUT", ALICE.secret_text[:-4])
    monkeypatch.setenv("PUBLIC", str(ALICE.public))
    found = settings(S3CACHE_SIGNING_KEY=source, S3CACHE_TRUSTED_KEYS=str(ALICE.public))
    with pytest.raises(SettingsError, match=f"S3CACHE_SIGNING_KEY.*{why}") as error:
        found.signing_keyring()
    assert SECRET[:8] not in str(error.value)
    assert error.value.__cause__ is None


def test_the_path_of_a_key_is_that_of_who_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file_of(tmp_path, ALICE.secret_text)
    monkeypatch.chdir(tmp_path)
    found = settings(S3CACHE_SIGNING_KEY="file:keys", S3CACHE_TRUSTED_KEYS=str(ALICE.public))
    monkeypatch.chdir("/")
    assert found.signing_keyring().signer == ALICE.public.id


def test_a_file_that_others_may_write_has_no_keys(tmp_path: Path) -> None:
    path = file_of(tmp_path, str(ALICE.public))
    Path(path).chmod(0o666)
    with pytest.raises(SettingsError, match=f"S3CACHE_TRUSTED_KEYS.*chmod go-w {path}"):
        settings(S3CACHE_TRUSTED_KEYS=path)


def test_who_signs_names_whom_it_trusts_and_its_key_is_not_looked_at() -> None:
    with pytest.raises(SettingsError, match="S3CACHE_TRUSTED_KEYS is not"):
        settings(S3CACHE_SIGNING_KEY="command:sleep 60")


def test_who_trusts_some_and_cannot_sign_stores_nothing() -> None:
    found = settings(S3CACHE_TRUSTED_KEYS=str(ALICE.public))
    assert found.refusal is not None
    assert "S3CACHE_SIGNING_KEY" in found.refusal


# The commands.


def test_a_new_key_is_for_its_owner_alone_and_replaces_none(tmp_path: Path) -> None:
    out = tmp_path / "key"
    old = os.umask(0)
    try:
        made = keys("new", "--name", "ci", "--out", str(out))
    finally:
        os.umask(old)
    assert made.exit_code == 0
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    held = SigningKey.parse(out.read_text())
    assert str(held.public) in made.output.splitlines()
    assert held.secret_text.partition(":")[2] not in made.output
    again = keys("new", "--name", "ci", "--out", str(out))
    assert again.exit_code == 1
    assert "already" in again.output
    assert SigningKey.parse(out.read_text()).public == held.public


def test_each_new_key_is_another_one(tmp_path: Path) -> None:
    made = {keys("new", "--name", "ci", "--out", str(tmp_path / f"{number}")).output for number in range(3)}
    assert len(made) == 3


@pytest.mark.parametrize("name", ["", "a b", "a\nb ed25519:x", "../x"])
def test_a_key_of_no_name_is_not_made(tmp_path: Path, name: str) -> None:
    if name:
        assert keys("new", "--name", name, "--out", str(tmp_path / "key")).exit_code == 2
        assert not (tmp_path / "key").exists()


def test_what_is_trusted_and_what_signs_is_shown_without_the_secret() -> None:
    shown = keys(
        "show",
        S3CACHE_TRUSTED_KEYS=f"{ALICE.public},{BOB.public}",
        S3CACHE_SIGNING_KEY="env:KEY",
        KEY=ALICE.secret_text,
    )
    assert shown.exit_code == 0
    assert f"{ALICE.public.id}  {ALICE.public}  (signs here)" in shown.output.splitlines()
    assert f"{BOB.public.id}  {BOB.public}" in shown.output.splitlines()
    assert SECRET not in shown.output


def test_a_key_that_signs_what_is_not_trusted_is_said() -> None:
    shown = keys(
        "show", S3CACHE_TRUSTED_KEYS=str(BOB.public), S3CACHE_SIGNING_KEY="env:KEY", KEY=ALICE.secret_text
    )
    assert shown.exit_code == 1
    assert "not trusted" in shown.output


def test_no_keys_are_said() -> None:
    assert "everybody is trusted" in keys("show").output


def test_keys_are_trusted_and_revoked_in_the_file(tmp_path: Path) -> None:
    path = file_of(tmp_path, "# ours", str(ALICE.public))
    environ = {"S3CACHE_TRUSTED_KEYS": path}
    assert keys("trust", str(BOB.public), **environ).exit_code == 0
    assert settings(**environ).trusted_keys == (ALICE.public, BOB.public)
    assert keys("trust", "--revoke", ALICE.public.id, **environ).exit_code == 0
    assert settings(**environ).trusted_keys == (BOB.public,)
    assert Path(path).read_text().startswith("# ours")
    assert [path.name for path in tmp_path.iterdir()] == ["keys"]


def test_a_file_of_trusted_keys_is_made(tmp_path: Path) -> None:
    path = tmp_path / "trusted"
    assert keys("trust", "--file", str(path), str(BOB.public)).exit_code == 0
    assert settings(S3CACHE_TRUSTED_KEYS=str(path)).trusted_keys == (BOB.public,)


@pytest.mark.parametrize(
    "arguments", [["--revoke", "0" * 16], ["bob"], [ALICE.secret_text], [str(BOB.public), "bob"]]
)
def test_what_cannot_be_trusted_or_revoked_changes_nothing(tmp_path: Path, arguments: list[str]) -> None:
    path = file_of(tmp_path, str(ALICE.public))
    refused = keys("trust", *arguments, S3CACHE_TRUSTED_KEYS=path)
    assert refused.exit_code == 1
    assert SECRET not in refused.output
    assert Path(path).read_text() == str(ALICE.public)


def test_a_link_to_a_file_of_keys_stays_one_and_the_file_keeps_its_mode(tmp_path: Path) -> None:
    path, link = file_of(tmp_path, str(ALICE.public)), tmp_path / "link"
    Path(path).chmod(0o640)
    link.symlink_to(path)
    assert keys("trust", "--file", str(link), str(BOB.public)).exit_code == 0
    assert link.is_symlink()
    assert settings(S3CACHE_TRUSTED_KEYS=path).trusted_keys == (ALICE.public, BOB.public)
    assert stat.S_IMODE(Path(path).stat().st_mode) == 0o640


def test_a_key_that_a_file_has_twice_is_revoked_altogether(tmp_path: Path) -> None:
    path = file_of(
        tmp_path,
        str(ALICE.public),
        "# again",
        f"{ALICE.public} ",
        f"other {str(ALICE.public).split()[1]}",
        str(BOB.public),
    )
    assert "has 1 key" in keys("trust", "--file", path, "--revoke", ALICE.public.id).output
    assert settings(S3CACHE_TRUSTED_KEYS=path).trusted_keys == (BOB.public,)


def test_who_revokes_the_last_key_is_not_open_to_everybody(tmp_path: Path) -> None:
    path = file_of(tmp_path, str(ALICE.public))
    assert keys("trust", "--revoke", ALICE.public.id, S3CACHE_TRUSTED_KEYS=path).exit_code == 0
    with pytest.raises(SettingsError, match="no key"):
        settings(S3CACHE_TRUSTED_KEYS=path)
