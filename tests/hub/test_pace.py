"""An answer that dribbles ends after a total time; others are left alone."""

from types import SimpleNamespace

import pytest
from huggingface_hub import get_session, hf_hub_download

from conceptcam.hub import pace
from conceptcam.hub.pace import LEAST_RATE, least_pace


def timed(monkeypatch, seconds, sizes, pause=30.0):
    """How many bytes come of parts that arrive at some seconds, and whether all of them do."""
    clock = iter([0.0, *seconds])
    monkeypatch.setattr(pace, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    came = 0
    try:
        for part in pace._timed((bytes(size) for size in sizes), "https://hub/file", pause):
            came += len(part)
    except TimeoutError as error:
        assert "https://hub/file came too slowly" in str(error) and "\n" not in str(error)
        return came, False
    return came, True


def test_a_byte_a_second_ends_right_after_the_pause(monkeypatch):
    assert timed(monkeypatch, range(1, 10_000), [1] * 9_999) == (30, False)


def test_a_file_may_take_the_pause_and_a_second_for_each_1000_bytes(monkeypatch):
    sizes = [LEAST_RATE] * 500
    assert timed(monkeypatch, [30 + second for second in range(1, 501)], sizes) == (500 * LEAST_RATE, True)
    assert timed(monkeypatch, [30 + 1.01 * second for second in range(1, 501)], sizes) == (0, False)


def test_what_came_fast_makes_up_for_what_comes_slowly(monkeypatch):
    assert timed(monkeypatch, [1, 70, 81], [50_000, 1, 1]) == (50_001, False)  # 50 seconds' worth, and the pause


@pytest.mark.parametrize(("user", "ends"), [("conceptcam", True), ("other", False)])
def test_only_downloads_of_the_named_user_are_timed(hub, tmp_path, monkeypatch, waits, user, ends):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.1)
    hub.repo("org/name", {"config.json": b'{"a": [1, 2, 3]}'})
    hub.fail("GET .*config.json", "dribble")
    before = list(get_session().event_hooks["response"])
    with least_pace("conceptcam/"):
        if ends:
            with pytest.raises(TimeoutError, match="came too slowly, . bytes in 0 seconds"):
                hf_hub_download("org/name", "config.json", cache_dir=tmp_path, library_name=user, library_version="1")
        else:
            hf_hub_download("org/name", "config.json", cache_dir=tmp_path, library_name=user, library_version="1")
    assert get_session().event_hooks["response"] == before
