"""Videos that are elsewhere: fetched where it is allowed, within limits, for as long as they are decoded."""

import contextlib
import datetime
import errno
import io
import ipaddress
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache.common.errors import DecodeError
from cache.dataset import ADDRESS
from cache.remote import client, https
from cache.remote.https import FetchRetries
from extract.datasets.changes import find_changes
from extract.datasets.remote import ask_servers, fetch_video
from extract.decode import Limits
from tests.helpers.extract import cache_of, extract, make_videos

obstore = pytest.importorskip("obstore", reason="needs the package obstore")

CONTENT = bytes(range(256)) * 1000


def certificate(folder: Path) -> Path:
    """A new key and a certificate for 127.0.0.1 that signs itself."""
    pytest.importorskip("cryptography", reason="makes the certificate of the test's server")
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
    signed = builder.add_extension(address, critical=False).sign(key, hashes.SHA256())
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "server.pem").write_bytes(private + signed.public_bytes(pem))
    (folder / "ca.pem").write_bytes(signed.public_bytes(pem))
    return folder / "server.pem"


class Web:
    """An HTTPS server on loopback; a path is answered by what stands under it in `answers`."""

    def __init__(self, folder: Path) -> None:
        web = self
        self.answers: dict[str, Callable[[BaseHTTPRequestHandler], object]] = {}
        self.asked: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                web.asked.append(self.path)
                web.answers.get(self.path, lambda asked: asked.send_error(404, "secret"))(self)

            do_HEAD = do_GET

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate(folder))
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self.address = f"https://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    web = Web(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    monkeypatch.setattr(https, "RETRIES", FetchRetries(attempts=3, pause_seconds=0.01))
    yield web
    web.close()


def send(content: bytes, *, length: int | None = -1, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    """Answer with `content`; `length` is what the header says, -1 the truth, None nothing."""

    def answer(asked: BaseHTTPRequestHandler) -> None:
        asked.send_response(200)
        if length is not None:
            asked.send_header("Content-Length", str(len(content) if length == -1 else length))
        for name, value in headers.items():
            asked.send_header(name.replace("_", "-"), value)
        asked.end_headers()
        if asked.command != "HEAD":
            asked.wfile.write(content)

    return answer


def redirect(to: str) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(asked: BaseHTTPRequestHandler) -> None:
        asked.send_response(302)
        asked.send_header("Location", to)
        asked.end_headers()

    return answer


def drip(asked: BaseHTTPRequestHandler) -> None:
    """A byte now and then."""
    asked.send_response(200)
    asked.end_headers()
    with contextlib.suppress(OSError):
        for _ in range(20):
            asked.wfile.write(b"x")
            time.sleep(0.05)


def test_a_video_comes_whole_also_when_a_connection_was_cut(web: Web, tmp_path: Path) -> None:
    answers = iter([send(CONTENT[:1000], length=len(CONTENT)), send(CONTENT)])
    web.answers["/a%20b.mp4"] = lambda asked: next(answers)(asked)
    assert fetch_video(f"{web.address}/a b.mp4", tmp_path / "x.mp4", Limits()).size == len(CONTENT)
    assert (tmp_path / "x.mp4").read_bytes() == CONTENT
    web.answers["/there.mp4"] = redirect("/h er\xe9.mp4")
    web.answers["/h%20er%E9.mp4"] = send(CONTENT, length=None)
    fetch_video(f"{web.address}/there.mp4", tmp_path / "y.mp4", Limits())
    assert (tmp_path / "y.mp4").read_bytes() == CONTENT


EARLIER, LATER = "Thu, 26 Nov 2026 10:00:00 GMT", "Thu, 26 Nov 2026 10:00:01 GMT"


@pytest.mark.parametrize(
    ("before", "now", "same"),
    [
        (send(CONTENT, ETag='"a"', Last_Modified=EARLIER), send(CONTENT, ETag='W/"a"', Last_Modified=LATER), True),
        (send(CONTENT, ETag='"a"', Last_Modified=EARLIER), send(CONTENT, ETag='"b"', Last_Modified=EARLIER), False),
        (send(CONTENT, ETag='"a"'), send(CONTENT[1:], ETag='"a"'), False),
        (send(CONTENT, ETag='"a"'), send(CONTENT, length=None, ETag='"a"'), True),
        (send(CONTENT, Last_Modified=EARLIER), send(CONTENT, Last_Modified=EARLIER), True),
        (send(CONTENT, Last_Modified=EARLIER), send(CONTENT, ETag='"a"', Last_Modified=LATER), False),
        (send(CONTENT, Last_Modified=EARLIER), send(CONTENT), True),
        (send(CONTENT), send(CONTENT[1:]), False),
        (send(CONTENT, ETag="\xff" * 9000, Last_Modified="never"), send(CONTENT, ETag="b", Last_Modified="31"), False),
        (send(CONTENT, Last_Modified="Sat, 01 Jan 9999 00:00:00 GMT"), send(CONTENT, Last_Modified=LATER), True),
    ],
)
def test_a_server_tells_by_tag_time_and_size_whether_a_video_has_changed(
    web: Web, tmp_path: Path, before: Any, now: Any, same: bool
) -> None:
    web.answers["/x.mp4"] = before
    earlier = fetch_video(f"{web.address}/x.mp4", tmp_path / "x.mp4", Limits())
    web.answers["/x.mp4"] = now
    states, problems = ask_servers({"x": f"{web.address}/x.mp4"})
    assert problems == {}
    found = find_changes({"x": earlier}, {"x": tmp_path / "not.mp4"}, states)
    assert list(found["changed"]) == ([] if same else ["x"])
    assert find_changes({"x": None}, {}, states)["unknown"] == states


def test_servers_that_do_not_answer_are_named_and_not_asked_for_long(web: Web, tmp_path: Path) -> None:
    web.answers["/moved.mp4"] = redirect("http://127.0.0.1/x.mp4")
    names = ["gone", "moved"]
    addresses = {name: f"{web.address}/{name}.mp4" for name in names}
    addresses |= {f"dead{number}": f"https://127.0.0.1:9/{number}.mp4" for number in range(500)}
    states, problems = ask_servers(addresses)
    assert states == {}
    assert problems.keys() == addresses.keys()
    assert problems["gone"] == "status 404"
    assert "leads on to where nothing is read: http://127.0.0.1 is not https" in problems["moved"]
    assert "refused" in problems["dead499"]


@pytest.mark.parametrize(
    ("answer", "limits", "complaint", "requests"),
    [
        (send(b"", length=10**15), Limits(), "1,000,000,000,000,000 bytes; .* are allowed and have room", 1),
        (send(CONTENT, length=None), Limits(file_bytes=1000), "bytes or more", 1),
        (send(CONTENT[:10], length=1000), Limits(), "cut at 10 of 1,000 bytes, 3 attempts", 3),
        (lambda asked: asked.send_error(403, "token=secret"), Limits(), "status 403$", 1),
        (lambda asked: asked.send_error(503, "token=secret"), Limits(), "status 503, 3 attempts", 3),
        (drip, Limits(fetch_seconds=0.3), "did not come in time, [0-9]+ bytes came", 1),
        (redirect("http://127.0.0.1/x.mp4"), Limits(), "leads on to where nothing is read", 1),
        (redirect("file:///etc/passwd"), Limits(), "leads on to where nothing is read", 1),
        (redirect("https://me@127.0.0.1/x.mp4"), Limits(), "leads on to where nothing is read", 1),
        (redirect("https://[::1/x.mp4"), Limits(), "leads on to where nothing is read", 1),
        (redirect("https://a..b/x.mp4"), Limits(), "label empty", 1),
        (redirect("https://127.0.0.1:port/x.mp4"), Limits(), "nonnumeric port", 1),
    ],
    ids=[
        *("too large", "endless", "cut", "forbidden", "unavailable", "slow", "to http", "to a file"),
        *("to a user", "to no address", "to no host", "to no port"),
    ],
)
def test_what_does_not_come_says_why(
    web: Web, tmp_path: Path, answer: Any, limits: Limits, complaint: str, requests: int
) -> None:
    web.answers["/x.mp4"] = answer
    with pytest.raises(DecodeError, match=complaint) as caught:
        fetch_video(f"{web.address}/x.mp4", tmp_path / "x.mp4", limits)
    assert "secret" not in str(caught.value)
    assert len(web.asked) == requests
    assert ask_servers({"x": f"{web.address}/x.mp4"})[0].keys() <= {"x"}
    assert not (tmp_path / "x.mp4").exists()


def test_a_full_disk_is_no_fault_of_the_network(web: Web) -> None:
    class Full(io.BytesIO):
        def write(self, _: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    web.answers["/x.mp4"] = send(CONTENT)
    with pytest.raises(https.FetchError, match="cannot be written: No space left"):
        https.fetch(f"{web.address}/x.mp4", Full(), len(CONTENT))
    assert len(web.asked) == 1


@pytest.mark.parametrize("host", ["a..b", "a" * 70])
def test_an_address_that_cannot_be_one_costs_its_video(tmp_path: Path, host: str) -> None:
    address = f"https://{host}/x.mp4"
    assert ADDRESS.fullmatch(address)
    with pytest.raises(DecodeError, match=r"label (empty|too long)"):
        fetch_video(address, tmp_path / "x.mp4", Limits())
    assert "label " in ask_servers({"x": address})[1]["x"]


def test_a_server_that_nobody_vouches_for_is_not_believed(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    web.answers["/x.mp4"] = send(CONTENT)
    with pytest.raises(DecodeError, match="CERTIFICATE_VERIFY_FAILED"):
        fetch_video(f"{web.address}/x.mp4", tmp_path / "x.mp4", Limits())


@pytest.mark.parametrize(
    "address",
    [
        "http://h/a.mp4",
        "https://name:password@h/a.mp4",
        "https://h/a.mp4?token=x",
        "https://h/../a.mp4",
        "https://h/a//b.mp4",
        "file:///a.mp4",
        "s3://bucket",
        "ftp://h/a.mp4",
    ],
)
def test_other_addresses_are_refused_where_addresses_are_allowed(tmp_path: Path, address: str) -> None:
    (tmp_path / "list.csv").write_text(f"video,label,split1\n{address},a,train\n")
    result = extract(tmp_path, "--data", str(tmp_path / "list.csv"), "--allow-remote")
    assert result.exit_code == 1
    assert "list.csv, line 2" in result.output
    assert ADDRESS.fullmatch(address) is None


def manifest(tmp_path: Path, addresses: list[str]) -> Path:
    rows = [f"{address},class{i % 2},{('train', 'test')[i % 3 > 1]}\n" for i, address in enumerate(addresses)]
    (tmp_path / "list.csv").write_text("video,label,split1\n" + "".join(rows))
    return tmp_path / "list.csv"


def test_addresses_are_refused_unless_they_are_allowed(web: Web, tmp_path: Path) -> None:
    result = extract(tmp_path, "--data", str(manifest(tmp_path, [f"{web.address}/a.mp4"])))
    assert (result.exit_code, web.asked) == (1, [])
    assert "looks like a URL" in result.output
    assert "--allow-remote" in result.output


@pytest.mark.slow
def test_a_manifest_may_mix_files_addresses_and_stores(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = obstore.store.MemoryStore()
    monkeypatch.setattr(client, "open_store", lambda location, seconds: store)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    files = sorted(make_videos(tmp_path / "data", count=1).rglob("*.avi"))
    web.answers["/videos/one.avi"] = send(files[0].read_bytes())
    obstore.put(store, "videos/two.avi", files[0])
    obstore.put(store, "videos/broken.avi", b"this is not a video")
    here = str(files[0].relative_to(tmp_path))
    there = [f"{web.address}/videos/one.avi", "s3://bucket/videos/two.avi"]
    lost = [f"{web.address}/gone.avi", "s3://bucket/videos/gone.avi", "s3://bucket/videos/broken.avi"]
    data = manifest(tmp_path, [here, *there, *lost])
    result = extract(tmp_path, "--data", str(data), "--allow-remote")
    assert result.exit_code == 3, result.output
    cache = cache_of(tmp_path)
    ids = [here.removesuffix(".avi"), f"{web.address.removeprefix('https://')}/videos/one", "bucket/videos/two"]
    assert cache.video_ids == tuple(sorted(ids))
    reasons = {outcome.video_id: outcome.reason for outcome in cache.ledger.outcomes("failed")}
    assert "status 404" in reasons[f"{web.address.removeprefix('https://')}/gone"]
    assert "is not there" in reasons["bucket/videos/gone"]
    assert "bucket/videos/broken" in reasons
    assert list((tmp_path / "temporary").glob("mrrn-videos-*")) == []
    assert set(cache.ledger.files()) >= set(ids)
    assert all(cache.ledger.files()[each].size == files[0].stat().st_size for each in ids)
    for level in cache.levels:
        features = [cache.features(video_id, level) for video_id in ids]
        assert all(np.array_equal(features[0], other) for other in features[1:])


@pytest.mark.slow
def test_a_remote_video_whose_bytes_changed_is_extracted_again(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = obstore.store.MemoryStore()
    monkeypatch.setattr(client, "open_store", lambda location, seconds: store)
    one, two = (path.read_bytes() for path in sorted(make_videos(tmp_path / "data").rglob("*.avi"))[:2])
    web.answers |= {"/a.avi": send(one, ETag='"1"'), "/b.avi": send(two)}
    obstore.put(store, "c.avi", one)
    data = manifest(tmp_path, [f"{web.address}/a.avi", f"{web.address}/b.avi", "s3://bucket/c.avi"])
    again = ("--data", str(data), "--allow-remote")
    assert extract(tmp_path, *again).exit_code == 0
    a, b, c = f"{web.address.removeprefix('https://')}/a", f"{web.address.removeprefix('https://')}/b", "bucket/c"
    result = extract(tmp_path, *again)
    assert "nothing to do" in result.output
    assert (
        f"1 remote videos are compared by size alone, since their servers send neither ETag nor Last-Modified: {b}"
        in (result.output)
    )
    web.answers["/a.avi"] = send(two, ETag='"2"')
    obstore.put(store, "c.avi", two)
    result = extract(tmp_path, *again)
    assert f"2 videos are extracted again, because their files have changed: {a}, {c}" in result.output
    assert result.exit_code == 0, result.output
    with cache_of(tmp_path) as cache:
        for level in cache.levels:
            assert np.array_equal(cache.features(a, level), cache.features(b, level))
            assert np.array_equal(cache.features(c, level), cache.features(b, level))
        assert cache.ledger.replaced_files().keys() == {a, c}
    web.close()
    result = extract(tmp_path, *again)
    assert (result.exit_code, "nothing to do" in result.output) == (0, True), result.output
    assert "2 remote videos could not be compared with what their servers have now" in result.output
