"""Fixtures that many tests use."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# A busy machine makes any test slow now and then.
settings.register_profile("busy", deadline=None)
settings.load_profile("busy")

# Processes that a shell starts in the background ignore Ctrl-C, and so would the commands that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

MEMORY, ROOM = Path("/dev/shm"), 8 << 30
"""Where the short tests' files go if it has that many bytes: thousands of small commits each wait for a disk."""

SHARED = Path(os.environ.get("MRRN_SHARED", Path(__file__).resolve().parents[2] / "shared"))


def pytest_configure(config: pytest.Config) -> None:
    """Put the files of the short tests into memory."""
    if config.option.markexpr == "not slow" and MEMORY.is_dir() and shutil.disk_usage(MEMORY).free >= ROOM:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


def pytest_collectstart() -> None:
    """Import torch before decord, which else puts libnvblas of the CUDA packages in the place of torch's own BLAS.

    Not at the top: the process that hands the tests out to others collects none.
    """
    import torch  # noqa: F401


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests that need a GPU where there is none."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where a GPU was promised (REQUIRE_GPU=1), a GPU test that is skipped has failed."""
    report = yield
    promised = os.environ.get("REQUIRE_GPU") == "1" and item.get_closest_marker("gpu")
    if promised and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, but REQUIRE_GPU=1 promises a GPU: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of the real videos, official splits and stand-in weights; the test is skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the real videos and splits in {SHARED} (MRRN_SHARED= names another folder)")
    return SHARED


@pytest.fixture
def memory_store(monkeypatch: pytest.MonkeyPatch) -> Any:
    """An object store in memory, for all that this process opens at `tests.helpers.objects.LOCATION`."""
    from tests.helpers.objects import stores_in_memory

    return stores_in_memory(monkeypatch)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A real S3 server on loopback; the test is skipped where it is not installed."""
    from tests.helpers.objects import S3Server

    server = S3Server(tmp_path_factory.mktemp("s3"))
    yield server
    server.close()


@pytest.fixture(scope="session")
def stand_in_weights(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ResNet-34 checkpoint in torchvision's key names with real ImageNet features, in half precision."""
    path = tmp_path_factory.mktemp("weights") / "stand-in.pth"
    script = shared / "weights" / "make_resnet34_weights.py"
    subprocess.run([sys.executable, script, path, "--fp16"], check=True, capture_output=True)
    return path
