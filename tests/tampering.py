"""What somebody does who may write the bucket, or the disk, and has no key that is trusted."""

import os
import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import zstandard

from s3cache import catalog, envelope, manifest, names, prelude, profile
from s3cache.agent.jobs import Jobs
from s3cache.agent.segments import SegmentWriter
from s3cache.cache import Cache
from s3cache.catalog import Reference
from s3cache.counts import HighestCounts
from s3cache.digest import raw_digest_of
from s3cache.errors import S3CacheError
from s3cache.keyring import NO_KEYS, Keyring
from s3cache.local import LocalEntries
from s3cache.machine import Machine, platform_tag
from s3cache.manifest import Manifest, Member, Result
from s3cache.prefetch import Progress, bring, open_profile, worth_fetching
from s3cache.prelude import Prelude
from s3cache.profile import Segment
from s3cache.tier import DiskTier
from tests.memory import MemoryStore
from tests.signing import ALICE, BOB, MALLORY, signs, trusts

ROOM = 256 << 20
BOMB_BYTES = 1 << 30
_JOB = "job"
_PREFIX = names.profile_prefix(_JOB, platform_tag())
_OTHER_PREFIX = names.profile_prefix("other", platform_tag())
_EVIL = b"evil code"
_READER = trusts(ALICE)
_NOBODYS: list[Keyring] = [NO_KEYS, signs(MALLORY), signs(BOB), signs(ALICE, tenant="elsewhere")]
"""Who signs what is forged: nobody, a stranger, a revoked key, a trusted one for another prefix."""

Key = tuple[str, str]


class Recording:
    """A bucket that a trusted key has written, and what a machine that was warmed from it has on disk."""

    def __init__(self, folder: Path) -> None:
        self.truth: dict[Key, dict[str, bytes]] = {}
        self.objects: dict[str, bytes] = {}
        self.disk = folder / "warm"

    async def make(self) -> None:
        """Record two jobs, of results that lie in manifests and in packs."""
        noise = random.Random(1)
        store = MemoryStore()
        for job, first in ((_JOB, 0), ("other", 100)):
            tier = DiskTier(self.disk.with_name(f"writer-{job}"), ROOM)
            cache = Cache(store, tier, Machine(), signs(ALICE))
            jobs = Jobs(signs(ALICE))
            counts = HighestCounts(self.disk.with_name("counts"))
            writer = SegmentWriter(cache, store, tier, jobs, counts, {"python": "3.11"})
            for batch in range(2):
                results = [
                    Result(
                        namespace, f"{first + 10 * batch + number}", members, on_demand=frozenset({"ptx"})
                    )
                    for number in range(4)
                    for namespace, members in (
                        ("small", {"code": noise.randbytes(100)}),
                        ("large", {"code": noise.randbytes(5000), "ptx": noise.randbytes(3000)}),
                    )
                ]
                for result, slot in zip(results, await cache.put_all(results), strict=True):
                    assert slot == 0
                    self.truth[result.namespace, result.key] = result.members
                    jobs.profile(job).add(result.namespace, result.key, slot)
                jobs.profile(job).prelude_bytes = 0
                jobs.profile(job).is_known = True
                await writer.write()
        self.objects = dict(store.objects)
        await _warm(Cache(store, DiskTier(self.disk, ROOM), Machine(), _READER), store)

    def named(self, prefix: str) -> list[str]:
        """Return the names of what lies in the bucket under a prefix."""
        return sorted(name for name in self.objects if name.startswith(prefix))


async def _warm(cache: Cache, store: MemoryStore) -> dict[str, Segment]:
    segments, _, held = await open_profile(cache, store, _PREFIX)
    frames = worth_fetching(segments.values(), Machine(), (), ROOM)
    await bring(cache, frames, Progress(), held.frames if held else None)
    return segments


class Trial:
    """One tampering, and what a machine that trusts one key makes of it."""

    def __init__(self, recording: Recording, folder: Path, number: int) -> None:
        self.recording = recording
        self.objects = dict(recording.objects)
        self.chance = random.Random(number)
        self.folder = folder
        self.kind = list(_KINDS)[number % len(_KINDS)]
        self.spoiled: set[Key] = set()
        """Keys whose one manifest in the bucket was tampered with: they must be a miss."""

    async def run(self) -> str | None:
        """Return what went wrong: what was served, or what nobody caught."""
        try:
            tamper = _KINDS[self.kind]
            if tamper in _ON_DISK:
                shutil.copytree(self.recording.disk, self.folder / "tier")
                tamper(self)
                return self._served_from_disk(self.recording.truth)
            tamper(self)
            return await self._served()
        except S3CacheError as error:
            return f"{self.kind}: nobody caught {error!r}"
        except Exception as error:
            return f"{self.kind}: crashed by {error!r}"
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    async def _served(self) -> str | None:
        store = MemoryStore()
        store.objects = self.objects
        tier = DiskTier(self.folder / "tier", ROOM)
        cache = Cache(store, tier, Machine(), _READER)
        segments = await _warm(cache, store)
        for name, segment in segments.items():
            original = self.recording.objects.get(name)
            if original is None or segment != profile.decode(name, original, NO_KEYS):
                return f"{self.kind}: the segment {name} was used"
        if wrong := self._served_from_disk(self.recording.truth):
            return wrong
        # And without the profile, as a look-up does.
        store.objects = {name: data for name, data in self.objects.items() if "profiles/" not in name}
        fresh = Cache(store, DiskTier(self.folder / "fresh", ROOM), Machine(), _READER)
        keys = {*self.spoiled, self.chance.choice(list(self.recording.truth))}
        for namespace, key in keys:
            entry = await fresh.get(namespace, key)
            if entry and (namespace, key) in self.spoiled:
                return f"{self.kind}: a manifest of {namespace} {key} was used"
            if entry and not _is_of(entry.members, self.recording.truth[namespace, key]):
                return f"{self.kind}: {namespace} {key} was served"
        if not _is_inside(self.folder):
            return f"{self.kind}: something was written elsewhere"
        return None

    def _served_from_disk(self, truth: Mapping[Key, dict[str, bytes]]) -> str | None:
        tier = DiskTier(self.folder / "tier", ROOM)
        entries = LocalEntries(tier, names.catalog_prefixes(_JOB, platform_tag()), _READER)
        for (namespace, key), members in truth.items():
            entry = entries.find(namespace, key, 0)
            if entry and not _is_of(entry.members, members):
                return f"{self.kind}: {namespace} {key} was served from disk"
        return None

    # What is tampered with.

    def manifest_name(self) -> str:
        """Return the name of some manifest, whose key is spoiled with that."""
        name = self.chance.choice(self.recording.named("manifests/"))
        _, namespace, key, _ = name.split("/")
        self.spoiled.add((namespace, key))
        return name

    def put_segment(self, data: bytes) -> None:
        """Add a segment under a name that fits it, as the newest one."""
        self.objects[profile.segment_name(_PREFIX, 9_000_000_000_000, data)] = data

    def any_name(self) -> str:
        """Return the name of some object."""
        kind = self.chance.choice(["manifests/", "profiles/", "packs/", "preludes/"])
        return (
            self.manifest_name() if kind == "manifests/" else self.chance.choice(self.recording.named(kind))
        )

    def forger(self) -> Keyring:
        """Return who signs what is forged."""
        return self.chance.choice(_NOBODYS)

    def changed_manifest(self, name: str) -> Manifest:
        """Return the manifest of that name as the attacker reads it."""
        return manifest.decode(self.recording.objects[name], NO_KEYS)

    def with_a_stolen_signature(self, name: str, forged: Manifest) -> bytes:
        """Return a forged manifest that has the header, or the signature, of a true one."""
        header, signature, _ = msgspec.msgpack.decode(self.recording.objects[name])
        body = msgspec.msgpack.encode(forged)
        if self.chance.random() < 0.5:
            fields = msgspec.msgpack.decode(header)
            header = msgspec.msgpack.encode([*fields[:-1], raw_digest_of(body)])
        return msgspec.msgpack.encode([header, signature, body])

    def put_forged(self, name: str, forged: Manifest) -> None:
        """Put a forged manifest: signed by somebody, or with a stolen signature."""
        if self.chance.random() < 0.5:
            self.objects[name] = self.with_a_stolen_signature(name, forged)
        else:
            body = msgspec.msgpack.encode(msgspec.structs.replace(forged, signer=ALICE.public.id))
            self.objects[name] = envelope.seal("manifest", body, self.forger())


def _flip(trial: Trial) -> None:
    name = trial.any_name()
    data = bytearray(trial.objects.pop(name))
    for _ in range(trial.chance.choice([1, 1, 2, 8])):
        data[trial.chance.randrange(len(data))] ^= 1 << trial.chance.randrange(8)
    _put_renamed(trial, name, bytes(data))


def _cut(trial: Trial) -> None:
    name = trial.any_name()
    data = trial.objects.pop(name)
    place = trial.chance.randrange(len(data))
    more = trial.chance.randbytes(100) if trial.chance.random() < 0.3 else b""
    _put_renamed(trial, name, data[:place] + more if data[:place] + more != data else b"")


def _put_renamed(trial: Trial, name: str, data: bytes) -> None:
    """Put an object anew; a segment's name is made to match, as who writes the bucket can."""
    if name.startswith("profiles/"):
        stamp = int(name.rpartition("/")[2].partition("-")[0])
        name = profile.segment_name(name[: name.rfind("/") + 1], stamp, data)
    trial.objects[name] = data


def _swap(trial: Trial) -> None:
    kind = trial.chance.choice(["manifests/", "packs/", "profiles/", "preludes/"])
    match kind:
        case "manifests/":
            one, other = trial.manifest_name(), trial.manifest_name()
            while other == one:
                other = trial.manifest_name()
            trial.objects[one], trial.objects[other] = trial.objects[other], trial.objects[one]
        case "profiles/":
            for name in trial.recording.named(_OTHER_PREFIX):
                trial.objects[name.replace(_OTHER_PREFIX, _PREFIX)] = trial.objects[name]
        case "preludes/":
            one, other = trial.recording.named(kind)
            trial.objects[one], trial.objects[other] = trial.objects[other], trial.objects[one]
        case _:
            one, other = trial.chance.sample(trial.recording.named(kind), 2)
            trial.objects[one], trial.objects[other] = trial.objects[other], trial.objects[one]


def _replay(trial: Trial) -> None:
    """Put what was truly signed: for another key, for another prefix, by a key that was revoked since."""
    name = trial.manifest_name()
    _, namespace, key, _ = name.split("/")
    built = manifest.inline(Result(namespace, key, {"code": _EVIL}), {})
    assert built is not None
    writer = trial.chance.choice(
        [signs(BOB), signs(ALICE, tenant="elsewhere"), signs(ALICE, tenant=""), NO_KEYS]
    )
    if trial.chance.random() < 0.3:
        built, writer = msgspec.structs.replace(built, key=f"{key}0"), signs(ALICE)
    trial.objects[name] = manifest.encode(built, writer)


def _forge(trial: Trial) -> None:
    """Put a manifest, or a segment that brings one, with evil contents."""
    name = trial.manifest_name()
    _, namespace, key, _ = name.split("/")
    built = manifest.inline(Result(namespace, key, {"code": _EVIL}), {})
    assert built is not None
    if trial.chance.random() < 0.5:
        trial.put_forged(name, built)
        return
    trial.spoiled.clear()
    vouched = msgspec.structs.replace(built, signer=ALICE.public.id)
    catalogs = catalog.build([Reference(0, vouched)], trial.forger())
    trial.put_segment(profile.encode(Segment([], catalogs, profile=_PREFIX), trial.forger()))


def _forge_sizes(trial: Trial) -> None:
    name = trial.manifest_name()
    found = trial.changed_manifest(name)
    size = trial.chance.choice([-1, 0, 1, 1 << 20, (2 << 30) - 1, 1 << 31, 1 << 40, (1 << 63) - 1])
    change = msgspec.structs.replace
    members = [change(each, size=size, start=trial.chance.choice([0, size])) for each in found.members]
    frames = [change(each, length=size, size=size) for each in found.frames]
    if trial.chance.random() < 0.1:
        members *= 5000
    trial.put_forged(name, change(found, members=members, frames=frames))


def _escape(trial: Trial) -> None:
    name = trial.manifest_name()
    found = trial.changed_manifest(name)
    path = trial.chance.choice(
        ["../../evil", "/tmp/evil", "a/../../evil", "a\0b", "", "~/evil", "a//b", "."]
    )
    change = msgspec.structs.replace
    match trial.chance.randrange(4):
        case 0:
            forged = change(found, members=[change(each, name=path) for each in found.members])
        case 1:
            forged = change(found, namespace=path)
        case 2:
            forged = change(found, key=path)
        case _:
            trial.spoiled.clear()
            trial.objects[f"{_PREFIX}{path}"] = trial.objects[trial.recording.named(_PREFIX)[0]]
            trial.objects[f"manifests/{path}/0"] = _EVIL
            return
    trial.put_forged(name, forged)


def _bomb(trial: Trial) -> None:
    match trial.chance.randrange(4):
        case 0:
            trial.put_segment(envelope.seal("segment", _BOMB, trial.forger()))
        case 1:
            name = trial.chance.choice(trial.recording.named("packs/"))
            trial.objects[name] = _BOMB.ljust(len(trial.objects[name]), b"\0")
        case 2:
            name = trial.manifest_name()
            found = trial.changed_manifest(name)
            member = Member(
                "code", raw_digest_of(b""), trial.chance.choice([9, BOMB_BYTES]), inline=_BOMB[:900]
            )
            trial.put_forged(name, msgspec.structs.replace(found, members=[member]))
        case _:
            sealed = envelope.seal("segment", _BOMB, trial.forger())
            named = [profile.segment_name(_PREFIX, stamp, sealed) for stamp in range(16)]
            trial.objects |= dict.fromkeys(named, sealed)
            frames = {names.frame_name(bytes(32), number): _BOMB for number in range(100)}
            trial.objects[names.prelude_name(_PREFIX)] = prelude.encode(
                Prelude(dict.fromkeys(named, sealed), frames)
            )


def _on_disk(trial: Trial) -> list[Path]:
    return sorted(path for path in (trial.folder / "tier" / "objects").rglob("*") if path.is_file())


def _link(trial: Trial) -> None:
    """Put a link, or a pipe, where a file of the disk tier was."""
    path = trial.chance.choice(_on_disk(trial))
    path.unlink()
    match trial.chance.randrange(4):
        case 0:
            evil = trial.folder / "evil"
            evil.write_bytes(raw_digest_of(_EVIL) + _EVIL)
            path.symlink_to(evil)
        case 1:
            path.symlink_to("/dev/zero")
        case 2:
            os.mkfifo(path)
        case _:
            path.symlink_to(trial.chance.choice(_on_disk(trial)))


def _forge_on_disk(trial: Trial) -> None:
    """Change a file of the disk tier, and make the digest that it begins with match."""
    path = trial.chance.choice(_on_disk(trial))
    content = bytearray(path.read_bytes()[32:])
    if trial.chance.random() < 0.5 and b"catalogs" in bytes(path):
        built = manifest.inline(Result("small", "0", {"code": _EVIL}), {})
        assert built is not None
        built = msgspec.structs.replace(built, signer=ALICE.public.id)
        content = bytearray(catalog.build([Reference(0, built)], trial.forger()))
    else:
        content[trial.chance.randrange(len(content))] ^= 1 << trial.chance.randrange(8)
    path.write_bytes(raw_digest_of(bytes(content)) + content)


def _replace_on_disk(trial: Trial) -> None:
    """Put one file of the disk tier in the place of another."""
    one, other = trial.chance.sample(_on_disk(trial), 2)
    other.write_bytes(one.read_bytes())


_KINDS: dict[str, Callable[[Trial], None]] = {
    "bits": _flip,
    "truncation": _cut,
    "swapped names": _swap,
    "replayed manifests": _replay,
    "foreign signatures": _forge,
    "forged sizes": _forge_sizes,
    "path escapes": _escape,
    "zip bombs": _bomb,
    "links on disk": _link,
    "forged on disk": _forge_on_disk,
    "swapped on disk": _replace_on_disk,
}
_ON_DISK = (_link, _forge_on_disk, _replace_on_disk)
KINDS = list(_KINDS)


def _made_bomb() -> bytes:
    compressor = zstandard.ZstdCompressor(level=1).compressobj(size=BOMB_BYTES)
    chunks = [compressor.compress(bytes(1 << 20)) for _ in range(BOMB_BYTES >> 20)]
    return b"".join([*chunks, compressor.flush()])


_BOMB = _made_bomb()


def _is_of(found: Mapping[str, bytes], true: Mapping[str, bytes]) -> bool:
    return all(true.get(name) == content for name, content in found.items())


def _is_inside(folder: Path) -> bool:
    """Return whether nothing was written beside the folder of a trial, or elsewhere in it."""
    return {path.name for path in folder.iterdir()} <= {"tier", "fresh"} and not Path("/tmp/evil").exists()


async def run_all(folder: Path, numbers: range, says: Callable[[], object] = lambda: None) -> list[str]:
    """Return what went wrong in the trials of these numbers."""
    recording = Recording(folder)
    await recording.make()
    wrong: list[str] = []
    for number in numbers:
        if found := await Trial(recording, folder / "trial", number).run():
            wrong.append(f"{number}: {found}")
        says()
    return wrong
