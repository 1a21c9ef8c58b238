"""Caches that are published as folders, and used from web servers that do what they like."""

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cache.cli import main
from cache.common.errors import CacheError, DamageError
from cache.export import export
from cache.remote import https, web
from cache.remote.address import WebAddress
from cache.remote.https import FetchRetries
from cache.remote.index import index_bytes, index_of
from cache.remote.web import parse_location
from cache.repair import repair
from cache.shards import writer as writing
from cache.store import FeatureCache
from cache.verify import verify
from extract.cli import main as extract
from tests.cache.remote.test_objects import assert_complete
from tests.helpers.cache import fill, filled_cache, make_dataset, make_fingerprint
from tests.helpers.web import (
    Mischief,
    Web,
    answer,
    cut_with_ranges,
    dripping,
    endless,
    flipped,
    own_authority,
    redirected,
    stalled,
)
from tests.helpers.web import web_server as serving

CARD = ("--source", "made up for tests", "--license", "CC0-1.0")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def publish(cache: Path, target: Path, *options: str) -> str:
    done = run("publish", cache, target, *options)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives up soon, and writes shards in this process."""
    monkeypatch.setattr(https, "RETRIES", FetchRetries(seconds=0.2, pause_seconds=0.01))
    monkeypatch.setattr(https, "STALL_SECONDS", 5.0)
    monkeypatch.setattr(writing.ShardWriter, "write", lambda self, *what: writing.write_shard(*what))


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    filled_cache(folder / "toy", 10).close()
    publish(folder / "toy", folder / "site", *CARD)
    return folder


@pytest.fixture
def site(template: Path, tmp_path: Path) -> Path:
    """A published cache of three shards; the cache itself is beside it."""
    shutil.copytree(template, tmp_path / "published")
    return tmp_path / "published" / "site"


@pytest.fixture
def server(site: Path) -> Any:
    with serving(site) as web:
        yield web


def attach(server: Web, folder: Path) -> FeatureCache:
    return FeatureCache.attach(folder, WebAddress.parse(server.address))


def test_what_is_published_is_what_there_was(site: Path, server: Web, tmp_path: Path) -> None:
    with attach(server, tmp_path / "copy") as copy, FeatureCache.open(site.parent / "toy") as original:
        assert_complete(copy)
        assert list(copy.ledger.outcomes()) == list(original.ledger.outcomes())
        assert (copy.dataset, copy.fingerprint, copy.read_only) == (original.dataset, original.fingerprint, True)
        export(copy, tmp_path / "npz", "npz", "level")
    assert verify(tmp_path / "copy") == []
    assert {path.name for path in site.iterdir()} == {
        *("cache.json", "datasets", "records", "shards", "index.json", "card.json", "README.md")
    }
    assert sum(path.suffix == ".h5" for path in (site / "shards").iterdir()) == 3
    told = {name for _, headers in server.requests for name in headers}
    assert told <= {"Host", "User-Agent", "Accept-Encoding", "Connection"}


def test_the_card_says_what_it_is_and_tells_nothing_private(site: Path) -> None:
    card = json.loads((site / "card.json").read_bytes())
    assert (card["source"], card["licence"], card["videos"]["done"]) == ("made up for tests", "CC0-1.0", 10)
    text = (site / "README.md").read_text()
    assert all(str(part) in text for part in ("CC0-1.0", card["fingerprint"], card["index_sha256"], "DATASET=toy"))
    assert not any(str(site.parent).encode() in path.read_bytes() for path in site.rglob("*") if path.is_file())
    assert b"nowhere" not in (site / "cache.json").read_bytes()


def test_once_fetched_nothing_is_asked_again(server: Web, tmp_path: Path) -> None:
    with attach(server, tmp_path / "copy") as copy:
        assert_complete(copy)
    before = len(server.requests)
    with FeatureCache.open(tmp_path / "copy") as copy:
        assert_complete(copy)
    assert len(server.requests) == before


@pytest.mark.parametrize(("command", "options"), [(main, ["attach"]), (extract, ["--cache"])])
def test_each_file_is_asked_for_once_also_where_nobody_names_the_dataset(
    server: Web, tmp_path: Path, command: Any, options: list[str]
) -> None:
    done = CliRunner().invoke(command, [*options, server.address, "--work", str(tmp_path)])
    assert "from now on it is held to that" in done.output
    paths = [path for path, _ in server.requests]
    assert "/index.json" in paths
    assert len(set(paths)) == len(paths)


def test_publishing_again_adds_what_is_new(site: Path, server: Web, tmp_path: Path) -> None:
    attach(server, tmp_path / "copy").close()
    old = {path: path.read_bytes() for path in site.rglob("*") if path.is_file()}
    assert publish(site.parent / "toy", site).startswith(f"{site}: published")
    assert {path: path.read_bytes() for path in site.rglob("*") if path.is_file()} == old
    with FeatureCache.open_for_extraction(site.parent / "toy", make_fingerprint()) as cache:
        cache.requeue(videos=[cache.video_ids[0]])
        cache.replace_dataset(make_dataset(12))
        assert "not extracted yet" in run("publish", site.parent / "toy", site).output
        fill(cache)
    publish(site.parent / "toy", site)
    kept = [path for path in old if path.parent.name in ("records", "shards", "datasets") or path.name == "cache.json"]
    assert all(path.read_bytes() == old[path] for path in kept)
    with FeatureCache.open(tmp_path / "copy") as copy:
        assert_complete(copy)  # as it was
    done = run("attach", server.address, "--work", tmp_path / "work")
    assert done.exit_code == 0, done.output
    with attach(server, tmp_path / "copy") as copy:
        assert_complete(copy, 12)
    assert verify(tmp_path / "copy") == []


def test_another_folder_or_cache_is_left_alone(site: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    assert "no published cache" in run("publish", site.parent / "toy", tmp_path / "mine", *CARD).output
    assert "needs --source" in run("publish", site.parent / "toy", tmp_path / "new").output
    filled_cache(tmp_path / "other", 4).close()
    assert "another cache" in run("publish", tmp_path / "other", site, *CARD).output


def test_it_is_read_only(server: Web, tmp_path: Path) -> None:
    with attach(server, tmp_path / "copy") as copy:
        with pytest.raises(CacheError, match="read only"):
            FeatureCache.open_for_extraction(copy.path, copy.fingerprint)
        with pytest.raises(CacheError, match="read only"):
            copy.requeue(["done"])
        with pytest.raises(CacheError, match="read only"):
            copy.replace_dataset(make_dataset(3))


def test_over_tls_with_an_authority_of_ones_own(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tls").mkdir()
    authority, context = own_authority(tmp_path / "tls")
    with serving(site, context) as server:
        with pytest.raises(CacheError, match=r"CERTIFICATE_VERIFY_FAILED.*SSL_CERT_FILE="):
            attach(server, tmp_path / "copy")
        monkeypatch.setenv("SSL_CERT_FILE", str(authority))
        with attach(server, tmp_path / "copy") as copy:
            assert_complete(copy)


# -- servers that misbehave --------------------------------------------------------------------------------------------


def gzipped(asked: Any, content: bytes) -> None:
    answer(asked, gzip.compress(bytes(1 << 20)), Content_Encoding="gzip")


BAD: dict[str, tuple[Mischief, str]] = {
    "a flipped bit": (flipped, "not what was published"),
    "a shorter file": (lambda asked, content: answer(asked, content[:-1]), "were published"),
    "a longer file": (lambda asked, content: answer(asked, content + b"x"), "were published"),
    "an absurd length": (lambda asked, content: answer(asked, content, length=1 << 60), "were published"),
    "no end": (endless, "bytes or more"),
    "a gzip bomb": (gzipped, "were published"),
    "a file of this machine": (redirected("file:///etc/passwd"), "leads on to where nothing is read"),
    "another server of this machine": (redirected("http://127.0.0.1:1/x"), "leads on to where nothing is read"),
    "a server without https": (redirected("http://example.org/x"), "not https"),
    "no host": (redirected("https://a..b/x"), "label empty"),
    "a user": (redirected("https://me@127.0.0.1/x"), "leads on to where nothing is read"),
    "a circle": (lambda asked, _: redirected(asked.path)(asked, b""), "leads on and on"),
    "a stall": (stalled, "timed out|cannot be fetched"),
    "a refusal": (lambda asked, _: answer(asked, b"<secret>", 403), "status 403"),
    "an error": (lambda asked, _: answer(asked, b"<secret>", 500), "status 500"),
    "nothing": (lambda asked, _: answer(asked, b"", 404), "not there"),
    "no HTTP": (lambda asked, _: asked.wfile.write(b"hello\r\n\r\n"), "cannot be fetched"),
}


@pytest.mark.parametrize("kind", BAD)
def test_wrong_answers_are_named_and_never_used(
    server: Web, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mischief, complaint = BAD[kind]
    with attach(server, tmp_path / "copy") as copy:
        _ = copy.places
        server.mischief["/shards/"] = mischief
        if mischief is stalled:
            monkeypatch.setattr(https, "STALL_SECONDS", 0.2)
        with pytest.raises(CacheError, match=complaint) as raised:
            copy.features(copy.video_ids[0], "low")
        monkeypatch.setattr(https, "STALL_SECONDS", 5.0)
        assert "secret" not in str(raised.value)
        assert list((copy.path / "shards").iterdir()) == []
        server.mischief.clear()
        assert_complete(copy)


@pytest.mark.parametrize("mischief", [endless, stalled, redirected("file:///etc/passwd"), gzipped])
def test_a_bad_index_attaches_nothing(
    server: Web, tmp_path: Path, mischief: Mischief, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "MAX_BYTES", 1 << 18)
    monkeypatch.setattr(https, "STALL_SECONDS", 0.2 if mischief is stalled else 5.0)
    server.mischief["/index.json"] = mischief
    with pytest.raises(CacheError):
        attach(server, tmp_path / "copy")
    assert list(tmp_path.iterdir()) == [tmp_path / "published"]


def test_an_answer_that_drips_is_cut(server: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(https, "_FILE_SECONDS", 0.2)
    monkeypatch.setattr(https, "_SLOWEST", 1 << 40)
    server.mischief["/index.json"] = dripping
    with pytest.raises(CacheError, match="cannot be fetched"):
        attach(server, tmp_path / "copy")


def test_what_was_cut_goes_on_where_it_was(server: Web, tmp_path: Path) -> None:
    with attach(server, tmp_path / "copy") as copy:
        server.mischief["/shards/"] = cut_with_ranges
        assert_complete(copy)
    ranges = [headers["Range"] for path, headers in server.requests if "Range" in headers]
    assert len(ranges) == 6
    assert "bytes=0-" not in ranges


@pytest.mark.parametrize(
    "objects",
    [
        {"../../evil": {"num_bytes": 1, "sha256": "0" * 64}},
        {"shards/../../evil": {"num_bytes": 1, "sha256": "0" * 64}},
        {"/etc/passwd": {"num_bytes": 1, "sha256": "0" * 64}},
        {"cache.json": {"num_bytes": -1, "sha256": "0" * 64}},
        {"cache.json": {"num_bytes": 1 << 70, "sha256": "0" * 64}},
        {"cache.json": {"num_bytes": 1 << 50, "sha256": "0" * 64}},
        {"cache.json": {"num_bytes": 1, "sha256": "short"}},
        {"cache.json": []},
        [],
    ],
)
def test_a_hostile_index_is_refused(site: Path, server: Web, tmp_path: Path, objects: Any) -> None:
    (site / "index.json").write_text(json.dumps({"format": 1, "objects": objects}))
    with pytest.raises(CacheError):
        attach(server, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("text", [b"", b"[" * 100_000, b"{}", b'{"format": 2, "objects": {}}', b"\xff"])
def test_what_is_no_index_is_named(text: bytes) -> None:
    with pytest.raises(DamageError, match="not the index"):
        index_of(text, "x")


def test_a_later_change_is_named(site: Path, server: Web, tmp_path: Path) -> None:
    with attach(server, tmp_path / "copy") as copy:
        assert_complete(copy)
    entries = dict(index_of((site / "index.json").read_bytes(), "x").objects)
    entries["records/00000001.json"] = entries["records/00000000.json"]
    (site / "index.json").write_bytes(index_bytes(entries))
    with pytest.raises(DamageError, match=r"records/00000001\.json was changed"):
        attach(server, tmp_path / "copy")
    with FeatureCache.open(tmp_path / "copy") as copy:
        assert_complete(copy)
    (pinned,) = (tmp_path / "copy").glob("index-*.json")
    pinned.write_bytes((site / "index.json").read_bytes())
    with pytest.raises(DamageError, match="not as it was written"):
        FeatureCache.open(tmp_path / "copy")


def test_damage_is_found_and_what_is_here_is_mended(site: Path, server: Web, tmp_path: Path) -> None:
    with attach(server, tmp_path / "copy") as copy:
        assert_complete(copy)
        row = copy.ledger.shards()[0]
    path = tmp_path / "copy" / "shards" / row.name
    path.write_bytes(path.read_bytes()[:-1])
    (finding,) = verify(tmp_path / "copy")
    assert finding.copy_only
    assert repair(tmp_path / "copy") == [f"removed the damaged copy of {row.name}; it is fetched again when it is read"]
    server.mischief["/shards/"] = flipped
    assert len(verify(tmp_path / "copy")) == 3
    with pytest.raises(DamageError, match="Only whoever publishes"):
        repair(tmp_path / "copy")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("http://example.org/x", "not https"),
        ("https://user:hunter2@example.org/x", "No credentials"),
        ("https://example.org/x?token=hunter2", "No credentials"),
        ("https://example.org/a/../b", "not the address"),
        ("https://example.org/%2e%2e/b", "not the address"),
        ("https://exa mple.org/b", "not the address"),
        ("https://[::1/b", "cannot be read"),
        ("https://example.org:99999/b", "cannot be read"),
        ("https:///b", "not the address"),
        ("ftp://example.org/b", "expected s3"),
        ("file:///etc", "expected s3"),
    ],
)
def test_addresses_that_are_refused(text: str, complaint: str) -> None:
    with pytest.raises(CacheError, match=complaint) as raised:
        parse_location(text)
    assert "hunter2" not in str(raised.value)


def test_addresses_that_are_taken() -> None:
    for text in ("https://example.org", "https://example.org:8443/a/b_c/~d", "http://[::1]:8000", "http://localhost/x"):
        assert str(parse_location(f"{text}/")) == text
