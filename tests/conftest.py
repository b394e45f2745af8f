"""What holds for every test: one thread, which is faster for tiny tensors, the same random numbers, and no network.

The client of the Hugging Face Hub reads its settings when it is imported. So before anything can import it, each
process starts a hub server of its own on loopback and points the client to it: no test can reach the real one.
"""

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.hub_server import HubServer

torch.set_num_threads(1)

_SERVER = pytest.StashKey[HubServer]()
_HOME = pytest.StashKey[str]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fuzz", type=int, default=1, metavar="N", help="N times as many attempts in tests/fuzz")
    parser.addoption("--fuzz-table", metavar="FILE", help="write how the attempts of tests/fuzz ended, as a table")


def pytest_configure(config: pytest.Config) -> None:
    if "huggingface_hub" in sys.modules:
        raise pytest.UsageError("huggingface_hub was imported before the tests could point it to their own server")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what runs in its background
        signal.signal(signal.SIGINT, signal.default_int_handler)
    server, home = HubServer(), tempfile.mkdtemp(prefix="hub-home-")
    config.stash[_SERVER], config.stash[_HOME] = server, home
    for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING"))]:
        del os.environ[name]
    os.environ |= {
        "HF_ENDPOINT": server.url,
        "HF_HOME": home,
        "HF_HUB_DISABLE_TELEMETRY": "1",  # else the client asks for more than it is told to, even offline
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DOWNLOAD_TIMEOUT": "2",
        "HF_HUB_ETAG_TIMEOUT": "2",
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
    }


def pytest_unconfigure(config: pytest.Config) -> None:
    config.stash[_SERVER].close()
    shutil.rmtree(config.stash[_HOME], ignore_errors=True)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """A test that draws from torch's global generator draws the same numbers alone and among others."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def hub(pytestconfig: pytest.Config) -> Iterator[HubServer]:
    """The hub server with no repositories, faults or requests in its log, and a client with nothing in its cache."""
    server = pytestconfig.stash[_SERVER]
    server.clear()
    shutil.rmtree(Path(os.environ["HF_HOME"], "hub"), ignore_errors=True)
    yield server
    errors = list(server.errors)
    server.clear()
    assert not errors, f"the hub server itself failed: {errors}"


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses the client makes between tries, in seconds: noted here, and not waited for."""
    from types import SimpleNamespace

    noted: list[float] = []
    for module in ("huggingface_hub.utils._http", "huggingface_hub.file_download"):
        monkeypatch.setattr(f"{module}.time", SimpleNamespace(sleep=noted.append))
    return noted
