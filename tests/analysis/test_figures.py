"""Pictures show each heat where it is, in one colour scale, and nothing is hidden or cut off."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image

from conceptcam.analysis import figures
from conceptcam.analysis.figures import (
    Legend,
    Tile,
    blend,
    concept_panel,
    contact_sheet,
    learning_figure,
    overlay,
    save_png,
)

RNG = np.random.default_rng(0)
COLORS = RNG.integers(0, 256, (30, 40, 3), dtype=np.uint8)
GREY = np.full((30, 40), 110, np.uint8)


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture).astype(int)


def find(part: Image.Image, page: Image.Image) -> tuple[int, int]:
    """Row and column at which a picture lies, exactly, in a page."""
    wanted, there = np.asarray(part), np.asarray(page)
    windows = np.lib.stride_tricks.sliding_window_view(there, wanted.shape)[:, :, 0]
    places = np.argwhere((windows == wanted).all(axis=(2, 3, 4)))
    assert len(places) == 1
    return int(places[0][0]), int(places[0][1])


@settings(max_examples=20, deadline=None)
@given(row=st.integers(0, 2), column=st.integers(0, 4))
def test_heat_appears_where_its_cell_is(row: int, column: int):
    heatmap = np.zeros((3, 5))
    heatmap[row, column] = 1
    picture = pixels(blend(GREY, heatmap, side=200))  # 200 x 150: cells of 40 x 50 pixels
    change = np.abs(picture - 110).sum(axis=-1)
    assert change[row * 50 + 24 : row * 50 + 26, column * 40 + 19 : column * 40 + 21].min() >= 0.9 * change.max()
    change[max(0, row * 50 - 26) : row * 50 + 76, max(0, column * 40 - 21) : column * 40 + 61] = 0
    assert change.max() == 0


def test_cells_are_joined_as_the_model_and_the_metrics_join_them():
    heatmap = torch.rand(4, 4, generator=torch.Generator().manual_seed(0))
    joined = torch.nn.functional.interpolate(heatmap[None, None], size=(64, 64), mode="bilinear")[0, 0]
    assert (
        np.abs(pixels(blend(GREY[:30, :30], heatmap, side=64)) - pixels(blend(GREY[:30, :30], joined, side=64))).max()
        <= 1
    )


def test_a_colour_means_the_same_number_whatever_else_the_map_holds():
    faint, strong = np.full((6, 8), 0.2), np.full((6, 8), 0.2)
    strong[0, 0] = 1
    assert np.array_equal(pixels(blend(COLORS, faint))[100:, 100:], pixels(blend(COLORS, strong))[100:, 100:])


def test_without_heat_there_is_the_grey_image():
    plain = pixels(blend(COLORS).convert("L"))
    assert np.array_equal(pixels(blend(COLORS, np.zeros((3, 4)))), np.stack([plain] * 3, axis=-1))
    assert np.array_equal(pixels(blend(COLORS, np.ones((3, 4)), alpha=0)), np.stack([plain] * 3, axis=-1))


def test_hotter_covers_more_of_the_image_and_lighter():
    cover, light = [], []
    for heat in np.linspace(0, 1, 11):
        dark, bright = (pixels(blend(np.full((20, 20), level, np.uint8), [[heat]]))[0, 0] for level in (0, 255))
        cover.append(255 - (bright - dark).mean())
        light.append(dark @ [0.299, 0.587, 0.114])
    assert (np.diff(cover) > 0).all()
    assert (np.diff(light) > 0).all()


@pytest.mark.parametrize(("heat", "rows_from_top"), [(1.0, 0), (0.5, 54.5), (0.0, 109)])
def test_the_bar_shows_the_colours_of_the_pictures(heat: float, rows_from_top: float):
    page = overlay(GREY, np.full((3, 4), heat), alpha=0.6)
    bar = pixels(page)[:, -14 - 32 - 7]  # the middle of the bar: margin, numbers, half a bar
    below = np.flatnonzero((bar != 255).any(axis=-1))[0] + rows_from_top
    mixed = (bar[int(np.floor(below))] + bar[int(np.ceil(below))]) / 2
    assert np.abs(mixed - pixels(blend(GREY, np.full((3, 4), heat), alpha=0.6))[0, 0]).max() <= 1


def test_a_box_is_outlined_from_outside():
    box = np.array([[0.25, 0.5, 0.75, 0.75]])
    plain, boxed = pixels(blend(GREY, side=200)), pixels(blend(GREY, boxes=box, side=200))  # 200 x 150
    changed = (plain != boxed).any(axis=-1)
    rows, columns = np.nonzero(changed)
    assert not changed[75:112, 50:150].any()
    assert changed[74, 50:150].all() and changed[75:112, 49].all()
    assert (rows.min(), columns.min(), rows.max(), columns.max()) == (75 - 2, 50 - 2, 111 + 2, 149 + 2)


def test_a_box_along_the_border_is_seen_on_all_sides():
    plain, boxed = pixels(blend(GREY, side=200)), pixels(blend(GREY, boxes=[[0, 0, 1, 1]], side=200))
    changed = (plain != boxed).any(axis=-1)
    assert changed[0].all() and changed[-1].all() and changed[:, 0].all() and changed[:, -1].all()
    assert not changed[3:-3, 3:-3].any()


@pytest.mark.parametrize(
    "image",
    [
        COLORS.transpose(2, 0, 1),
        torch.tensor(COLORS).permute(2, 0, 1),
        torch.tensor(COLORS / 255, dtype=torch.float32),
        COLORS / 255,
    ],
)
def test_every_form_of_an_image_gives_the_same_picture(image: Any):
    assert blend(image) == blend(COLORS)


def test_the_longer_side_has_the_size_asked_for():
    assert blend(COLORS, side=200).size == (200, 150)
    assert blend(COLORS.transpose(1, 0, 2), side=100).size == (75, 100)


NO_BOXES = [(), np.zeros((0, 4)), torch.zeros(0, 4)]


@pytest.mark.parametrize("drawn", NO_BOXES, ids=["nothing", "array", "tensor"])
def test_the_legend_explains_boxes_only_where_there_are_some(drawn: Any):
    heat, box = np.zeros((3, 4)), torch.tensor([[0.1, 0.1, 0.5, 0.5]])

    def pages(boxes: Any) -> list[Image.Image]:
        return [
            overlay(GREY, heat, boxes=boxes),
            concept_panel(GREY, ["A"], [heat], boxes=[boxes]),
            learning_figure(GREY, ["A"], [1], [heat[None]], boxes=[boxes]),
        ]

    def legend(page: Image.Image) -> np.ndarray:
        return pixels(page)[:, -14 - 46 - 4 :]  # the margin and the bar with its numbers

    for without, plain, boxed in zip(pages(drawn), pages(()), pages(box), strict=True):
        assert without == plain
        assert not np.array_equal(legend(without), legend(boxed))


def test_an_overlay_holds_its_picture_unchanged():
    heatmap, boxes = RNG.random((7, 9)), [[0.1, 0.2, 0.4, 0.9]]
    picture = blend(COLORS, heatmap, boxes=boxes, side=64)
    find(picture, overlay(COLORS, heatmap, boxes=boxes, title="Edema", side=64))


def test_a_panel_shows_the_image_and_then_each_map_in_order():
    maps, boxes = RNG.random((3, 5, 5)), [(), [[0.1, 0.1, 0.5, 0.5]], ()]
    page = concept_panel(COLORS, ["A", "B", "C"], maps, captions=["p = .1"] * 3, boxes=boxes, columns=2, side=40)
    expected = [blend(COLORS, side=40)]
    expected += [blend(COLORS, one, boxes=drawn, side=40) for one, drawn in zip(maps, boxes, strict=True)]
    places = [find(picture, page) for picture in expected]
    assert places == sorted(places)
    assert places[0][0] == places[1][0] < places[2][0] == places[3][0]
    assert places[0][1] == places[2][1] < places[1][1] == places[3][1]


def test_learning_runs_to_the_right_with_a_row_per_concept():
    maps, boxes = RNG.random((3, 2, 5, 5)), [[[0.1, 0.1, 0.5, 0.5]], [[0.3, 0.2, 0.9, 0.9]]]
    page = learning_figure(COLORS, ["Edema", "Nodule"], [1, 5, "best"], list(maps), boxes=boxes, side=40)
    above = -1
    for row in range(2):
        shown = [blend(COLORS, boxes=boxes[row], side=40)]
        shown += [blend(COLORS, maps[epoch, row], boxes=boxes[row], side=40) for epoch in range(3)]
        places = [find(picture, page) for picture in shown]
        assert len({top for top, _ in places}) == 1
        assert places == sorted(places)
        assert places[0][0] > above
        above = places[0][0]


def test_rows_are_filled_evenly():
    sizes = {count: contact_sheet([("x", blend(GREY, side=110))] * count).width for count in (1, 3, 5, 6, 7, 11)}
    assert sizes[6] == sizes[3] and sizes[7] == sizes[11] and sizes[1] < sizes[3] < sizes[7] < sizes[5]


@settings(max_examples=25, deadline=None)
@given(
    titles=st.lists(st.text("AbpqWi ./-", max_size=60), min_size=1, max_size=7),
    side=st.integers(16, 90),
    heading=st.text("Abg W", max_size=200),
    legend=st.sampled_from([None, Legend(0.7), Legend(0.5, boxes=True)]),
)
def test_no_text_reaches_the_margin(titles: list[str], side: int, heading: str, legend: Legend | None):
    tiles = [Tile(title, blend(COLORS[:, :7], side=side), note=title[::-1]) for title in titles]
    page = pixels(contact_sheet(tiles, heading=heading, legend=legend))
    edge = 8
    frame = np.ones(page.shape[:2], bool)
    frame[edge:-edge, edge:-edge] = False
    assert (page[frame] == 255).all()


def test_every_letter_of_a_long_title_is_drawn():
    """Ink of a wrapped title is that of its letters, none of which was lost at a line's end."""
    picture = blend(GREY, side=110)
    ink = [(255 - pixels(contact_sheet([(title, picture)], columns=1))).sum() for title in ("", "M" * 5, "M" * 40)]
    assert ink[2] - ink[0] == pytest.approx(8 * (ink[1] - ink[0]), rel=0.02)


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("atypical_dots_globules", ["atypical_dots_", "globules"]),
        ("left/lower-lobe.consolidation", ["left/lower-lobe.", "consolidation"]),
        ("Enlarged Cardiomediastinum", ["Enlarged", "Cardiomediastinum"]),
        ("Pneumonoultramicroscopic", ["Pneumonoultramic", "roscopic"]),
    ],
)
def test_a_long_name_breaks_between_its_parts(name: str, lines: list[str]):
    found = figures._wrapped(name, figures._TITLE_SIZE, figures._LABEL_WIDTH)
    assert "".join(found).replace(" ", "") == name.replace(" ", "")  # no letter is lost
    assert len(found) == len(lines) and (found == lines or not set(name) & set("_-/. "))


def test_a_picture_is_saved_exactly_in_a_new_folder(tmp_path: Path):
    picture = blend(COLORS)
    save_png(picture, tmp_path / "new" / "a.png")
    with Image.open(tmp_path / "new" / "a.png") as saved:
        assert np.array_equal(pixels(saved), pixels(picture))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.png"]


def test_a_failed_save_leaves_what_was_there(tmp_path: Path):
    save_png(blend(COLORS), tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    with pytest.raises(OSError, match="cannot write mode CMYK as PNG"):
        save_png(Image.new("CMYK", (4, 4)), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("image", "heatmap", "options", "message"),
    [
        (GREY, [[-3.0, 4.0]], {}, "heatmap spans -3 to 4, expected 0 to 1; apply a sigmoid to logits first"),
        (GREY, [[np.nan]], {}, "heatmap spans nan to nan, expected 0 to 1"),
        (GREY, np.zeros((1, 4, 4)), {}, r"expected one heatmap of shape \(h, w\), got \(1, 4, 4\)"),
        (COLORS.astype(float), [[0.0]], {}, "image spans 0 to 255, expected 0 to 1; divide by"),
        (COLORS[..., :2], [[0.0]], {}, r"expected an image of shape .* got \(30, 40, 2\)"),
        (COLORS[None], [[0.0]], {}, r"expected an image of shape .* got \(1, 30, 40, 3\)"),
        (GREY, [[0.0]], {"alpha": 2}, r"`alpha` must be in \[0, 1\] and `side` at least 16, got 2"),
        (GREY, [[0.0]], {"side": 4}, "`side` at least 16, got 0.7 and 4"),
    ],
)
def test_what_cannot_be_drawn_is_refused(image: Any, heatmap: Any, options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        overlay(image, heatmap, **options)


def test_lengths_that_differ_are_refused():
    with pytest.raises(ValueError, match="as many maps, captions and boxes as names: got 2 names, 1 maps, 2 capt"):
        concept_panel(GREY, ["A", "B"], [[[0.0]]])
    with pytest.raises(ValueError, match=r"need maps of 2 epochs for 1 concepts .* got maps of shapes \[\(1, 1, 1\)\]"):
        learning_figure(GREY, ["A"], [1, 2], [np.zeros((1, 1, 1))])
    with pytest.raises(ValueError, match="at least one picture"):
        contact_sheet([])
    with pytest.raises(ValueError, match="`columns` must be at least 1, got 0"):
        contact_sheet([("A", blend(GREY))], columns=0)
