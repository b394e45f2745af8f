import contextlib
import os
import subprocess
import sys
import tempfile
import textwrap

import pytest
import torch

from conceptcam.training.tensor_store import Budget, CacheFull, TensorStore

PLENTY = 10**9


def rows(count=20):
    return torch.randn(count, 4, 2, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def filled():
    """Makes stores with those rows."""
    with contextlib.ExitStack() as stack:

        def fill(where, **options):
            store = TensorStore(where, Budget(PLENTY), **options)
            stack.callback(store.close)
            store.add(range(20), rows())
            return store

        yield fill


@pytest.mark.parametrize("where", ["auto", "memory", "disk"])
def test_rows_are_read_as_they_were_added_in_any_order(filled, where):
    assert torch.equal(filled(where).read([5, 19, 2, 5]), rows()[[5, 19, 2, 5]])


def test_small_store_that_grows_moves_to_the_disk_and_reads_the_same(filled, monkeypatch):
    monkeypatch.setattr("conceptcam.training.tensor_store.SMALL", 100)
    store = filled("auto")
    assert store._file._rolled
    assert torch.equal(store.read(list(range(20))), rows())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_storage_type_rounds_once_and_takes_half_the_bytes(filled, dtype):
    store, whole = filled("disk", dtype=dtype), filled("disk")
    assert torch.equal(store.read([2, 5]), rows()[[2, 5]].to(dtype).float())
    assert store.size * 2 == whole.size > 0
    assert store.dtype == dtype and whole.dtype == torch.float32


def test_budget_is_kept_and_given_back():
    budget = Budget(200)
    store = TensorStore("memory", budget)
    with pytest.raises(CacheFull, match=r"GB are wanted and 2e-07 GB allowed"):
        for number, row in enumerate(rows()):
            store.add([number], row[None])
    assert 0 < budget.used <= 200
    store.close()
    assert budget.used == 0


def test_room_that_will_not_do_is_known_from_the_first_row():
    with contextlib.closing(TensorStore("memory", Budget(200))) as store:
        store.check_room(torch.zeros(1, 5), 10)
        with pytest.raises(CacheFull):
            store.check_room(torch.zeros(1, 5), 11)


def test_disk_that_is_too_small_is_known_from_the_first_row(tmp_path):
    store = TensorStore("disk", Budget(10**19), folder=tmp_path)
    with contextlib.closing(store), pytest.raises(CacheFull, match=r"GB free"):
        store.check_room(torch.zeros(10**6), 10**12)


def run(code, **options):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60, **options
    )


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts the memory of a process")
@pytest.mark.parametrize("where, fits", [("disk", True), ("memory", False)])
def test_store_larger_than_the_memory_there_is_works_on_disk_alone(where, fits, tmp_path):
    done = run(f"""
        import resource, torch
        from pathlib import Path
        from conceptcam.training.tensor_store import Budget, CacheFull, TensorStore
        torch.set_num_threads(1)
        store = TensorStore({where!r}, Budget(10**12), folder=Path({str(tmp_path)!r}))
        store.add([0], torch.zeros(1, 100_000))
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        most = used + 64_000_000
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        try:
            for number in range(1, 301):  # 120 MB
                store.add([number], torch.full((1, 100_000), float(number)))
        except CacheFull as error:
            raise SystemExit(f"refused: {{error}}")
        for number in (300, 1, 150):
            assert (store.read([number]) == number).all()
    """)
    assert (done.returncode == 0) == fits, done.stderr
    assert fits or "refused: there is no memory left for them; keep them on the disk" in done.stderr


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the size of files")
def test_disk_that_becomes_full_is_one_sentence_and_not_the_end():
    done = run("""
        import resource, signal, torch
        from conceptcam.training.tensor_store import Budget, CacheFull, TensorStore
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        store = TensorStore("disk", Budget(10**12))
        try:
            for number in range(100):
                store.add([number], torch.zeros(1, 1000))
        except CacheFull as error:
            print(f"after {number}: {error}")
        store.close()
    """)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"after 25: writing them to {tempfile.gettempdir()} failed: ")
    assert done.stdout.endswith("; free room there, or let TMPDIR name another folder\n")


def test_nothing_is_left_of_a_store_whose_process_is_killed(tmp_path):
    done = run(f"""
        import os, signal, torch
        from pathlib import Path
        from conceptcam.training.tensor_store import Budget, TensorStore
        store = TensorStore("disk", Budget(10**12), folder=Path({str(tmp_path)!r}))
        store.add([0], torch.zeros(1, 100_000))
        print(store.size, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """)
    assert done.stdout == "400000\n" and done.returncode < 0
    assert os.listdir(tmp_path) == []
