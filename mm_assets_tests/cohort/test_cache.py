"""Local copies of slides from a real, slow S3-speaking server: bounded, atomic, fetched once."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import boto3
import pytest

from mm_assets.cohort.cache import cache_limit, local_copy
from mm_assets_tests.cohort.conftest import BUCKET
from mm_assets_tests.slow_s3 import SlowS3, slow_s3

SIZE = 100_000
USE = """
import sys
from pathlib import Path
from mm_assets.cohort.cache import local_copy
with local_copy(sys.argv[1], Path(sys.argv[2])) as copy:
    print(copy.stat().st_size, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def slow(s3: "boto3.client", s3_address: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowS3]:
    """A proxy before the server, which the environment points at."""
    with slow_s3(s3_address) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.address)
        yield proxy


@pytest.fixture
def upload(s3: "boto3.client") -> Callable[..., bytes]:
    """Uploads random bytes under a name."""

    def put(name: str, size: int = SIZE, **options: str) -> bytes:
        body = os.urandom(size)
        s3.put_object(Bucket=BUCKET, Key=f"c/{name}", Body=body, **options)
        return body

    return put


def _use(name: str, cache: Path) -> bytes:
    with local_copy(f"s3://{BUCKET}/c/{name}", cache) as copy:
        assert copy.name == name
        return copy.read_bytes()


def _kept(cache: Path) -> set[str]:
    """Names of the whole slides in the cache; everything else in it is folders."""
    files = [path for path in cache.rglob("*") if path.is_file()]
    assert all(path.parts[-2] == "whole" and path.parts[-3] != "fetch" for path in files)
    return {path.name for path in files}


def _start(name: str, cache: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", USE, f"s3://{BUCKET}/c/{name}", str(cache)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_local_path_stays(tmp_path: Path) -> None:
    slide = tmp_path / "a.svs"
    with local_copy(str(slide), tmp_path / "cache") as copy:
        assert copy == slide
    assert not (tmp_path / "cache").exists()


def test_fetched_once_for_each_content(
    slow: SlowS3, upload: Callable[..., bytes], tmp_path: Path
) -> None:
    body = upload("a.svs")
    assert _use("a.svs", tmp_path) == _use("a.svs", tmp_path) == body
    assert slow.names() == ["a.svs"]
    other = upload("a.svs")
    assert _use("a.svs", tmp_path) == other
    assert slow.names() == ["a.svs", "a.svs"]
    with pytest.raises(FileNotFoundError, match=r"gone\.svs: no such object"):
        _use("gone.svs", tmp_path)


def test_a_mirax_slide_brings_its_folder(
    slow: SlowS3, upload: Callable[..., bytes], tmp_path: Path
) -> None:
    index = upload("m.mrxs")
    upload("m2.mrxs")
    for _ in range(2):
        body = upload("m/data/0.dat")
        with local_copy(f"s3://{BUCKET}/c/m.mrxs", tmp_path) as copy:
            assert copy.read_bytes() == index
            assert (copy.parent / "m" / "data" / "0.dat").read_bytes() == body
            assert not (copy.parent / "m2.mrxs").exists()


def test_those_used_longest_ago_go_first(
    slow: SlowS3, upload: Callable[..., bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MM_SLIDE_CACHE_GB", str(2.5 * SIZE / 1e9))
    names = ["a.svs", "b.svs", "c.svs"]
    for name in names:
        upload(name)
    for name in ("a.svs", "b.svs", "a.svs", "c.svs"):
        _use(name, tmp_path)
    assert _kept(tmp_path) == {"a.svs", "c.svs"}
    assert slow.names() == names


def test_slides_in_use_stay_whatever_the_limit(
    slow: SlowS3, upload: Callable[..., bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MM_SLIDE_CACHE_GB", "0")
    bodies = {name: upload(name) for name in ("a.svs", "b.svs", "c.svs")}
    elsewhere = _start("a.svs", tmp_path)
    assert elsewhere.stdout
    assert elsewhere.stdout.readline() == f"{SIZE}\n"
    with ExitStack() as stack:
        path = f"s3://{BUCKET}/c/b.svs"
        copy = stack.enter_context(local_copy(path, tmp_path))
        again = stack.enter_context(local_copy(path, tmp_path))
        assert _use("c.svs", tmp_path) == bodies["c.svs"]
        assert _kept(tmp_path) == {"a.svs", "b.svs"}
        assert copy == again
        assert copy.read_bytes() == bodies["b.svs"]
    assert _kept(tmp_path) == {"a.svs"}
    elsewhere.send_signal(signal.SIGKILL)
    elsewhere.wait()
    _use("b.svs", tmp_path)
    assert _kept(tmp_path) == set()
    assert slow.names() == ["a.svs", "b.svs", "b.svs", "c.svs"]


def test_threads_and_processes_fetch_a_slide_once(
    slow: SlowS3, upload: Callable[..., bytes], tmp_path: Path
) -> None:
    body = upload("a.svs")
    slow.seconds = 2.0
    processes = [_start("a.svs", tmp_path) for _ in range(2)]
    with ThreadPoolExecutor(3) as pool:
        assert set(pool.map(lambda _: _use("a.svs", tmp_path), range(3))) == {body}
    for process in processes:
        output, _ = process.communicate()
        assert output == f"{SIZE}\n"
    assert slow.names() == ["a.svs"]


def test_a_kill_while_fetching_leaves_no_slide(
    slow: SlowS3, upload: Callable[..., bytes], tmp_path: Path
) -> None:
    body = upload("a.svs")
    slow.seconds = 60.0
    process = _start("a.svs", tmp_path)
    deadline = time.monotonic() + 30
    while not list(tmp_path.rglob("a.svs")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list(tmp_path.glob("*/whole"))
    assert list(tmp_path.glob("*/fetch/whole/a.svs"))
    slow.seconds = 0.0
    assert _use("a.svs", tmp_path) == body
    assert _kept(tmp_path) == {"a.svs"}
    assert not list(tmp_path.glob("*/fetch/*"))


def test_a_kill_while_removing_leaves_no_half_slide(
    slow: SlowS3, upload: Callable[..., bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = upload("a.svs")
    _use("a.svs", tmp_path)

    def killed(folder: Path) -> None:
        next(folder.rglob("a.svs")).unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setenv("MM_SLIDE_CACHE_GB", "0")
        patch.setattr("mm_assets.cohort.cache.shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            _use("a.svs", tmp_path)
    assert not _kept(tmp_path)
    assert _use("a.svs", tmp_path) == body


def test_an_object_that_changes_meanwhile_is_refused(
    slow: SlowS3, upload: Callable[..., bytes], tmp_path: Path
) -> None:
    upload("a.svs")
    slow.seconds = 1.5
    with ThreadPoolExecutor(1) as pool:
        use = pool.submit(_use, "a.svs", tmp_path)
        while not list(tmp_path.rglob("a.svs")):
            time.sleep(0.02)
        later = upload("a.svs")
        with pytest.raises(OSError, match=r"a\.svs: it changed while it was copied: try again"):
            use.result()
    assert not list(tmp_path.iterdir())
    slow.seconds = 0.0
    assert _use("a.svs", tmp_path) == later


@pytest.mark.parametrize("algorithm", ["SHA256", "CRC32", "CRC32C", "CRC64NVME"])
def test_a_spoiled_copy_is_refused(
    slow: SlowS3, upload: Callable[..., bytes], tmp_path: Path, algorithm: str
) -> None:
    # Larger than one range: of single ranges S3 gives no checksum.
    body = upload("a.svs", 9_000_000, ChecksumAlgorithm=algorithm)
    slow.spoil = lambda content: content[:-1] + bytes([content[-1] ^ 1])
    with pytest.raises(OSError, match=r"a\.svs: the copy does not match the checksum"):
        _use("a.svs", tmp_path)
    assert not list(tmp_path.iterdir())
    slow.spoil = bytes
    assert _use("a.svs", tmp_path) == body


def test_disk_full(slow: SlowS3, upload: Callable[..., bytes], tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=350k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting needs more rights than this user has")
    try:
        upload("large.svs", 1_000_000)
        for name in ("a.svs", "b.svs", "c.svs", "d.svs"):
            upload(name)
        with pytest.raises(OSError, match=r"large\.svs: no space .* Free some space"):
            _use("large.svs", tmp_path)
        assert not list(tmp_path.iterdir())
        for name in ("a.svs", "b.svs", "c.svs", "d.svs"):
            _use(name, tmp_path)  # those used longest ago make room on a small disk too
        assert "d.svs" in _kept(tmp_path)
        assert len(_kept(tmp_path)) == 3
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_the_limit_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MM_SLIDE_CACHE_GB", raising=False)
    assert cache_limit() == 50_000_000_000
    for text in ("much", "-1", "nan"):
        monkeypatch.setenv("MM_SLIDE_CACHE_GB", text)
        with pytest.raises(ValueError, match="give a number of gigabytes"):
            cache_limit()
