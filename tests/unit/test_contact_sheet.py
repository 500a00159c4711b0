"""Sheets of queries and what was found for them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from likeness_client import Product
from likeness_export.cli import app
from likeness_export.evaluation.contact_sheet import card_of, draw_rows
from PIL import ExifTags, Image
from typer.testing import CliRunner

if TYPE_CHECKING:
    from tests.unit.conftest import Exported


def test_a_sheet_bears_titles_of_any_length_and_several_lines(tmp_path: Path) -> None:
    title = "a vase\nwith two\r\nlines " + 5_000 * "and more "
    card = card_of(Product(title=title, images=(tmp_path / "gone.jpg",)), "same\ngroup", right=True)
    draw_rows([[card, card]], tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size[0] < 600


def test_a_sheet_does_not_wait_for_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    draw_rows([[card_of(Product(title="a", images=(tmp_path / "pipe.jpg",)), "", right=None)]], tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").is_file()


def test_a_sheet_frames_what_is_right_green_and_what_is_wrong_red(tmp_path: Path) -> None:
    draw_rows([[card_of(Product(title="a"), "", right=right) for right in (None, True, False)]], tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        middles = np.asarray(sheet)[14, [left + 105 for left in (14, 252, 476)]]
        pixels = np.asarray(sheet)
    assert middles.argmax(1).tolist() == [2, 1, 0]  # blue, green, red
    captions = [pixels[14 + 195 : 14 + 215, left + 10 : left + 200] for left in (14, 252, 476)]
    assert [bool((caption < 255).any()) for caption in captions] == [False, True, False]  # a star tells it, too


def test_a_sheet_has_the_letters_of_other_languages(tmp_path: Path) -> None:
    """A font that lacks two letters draws the same box for both."""
    drawn = []
    for title in "éßжω":
        draw_rows([[card_of(Product(title=title), "", right=None)]], tmp_path / "sheet.png")
        drawn.append((tmp_path / "sheet.png").read_bytes())
    assert len(set(drawn)) == len(drawn)


def test_a_sheet_shows_photos_as_networks_see_them(tmp_path: Path) -> None:
    """Upright, and what is transparent on white."""
    sideways, clear = Image.new("RGB", (40, 80), "red"), Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    sideways.paste("blue", (0, 40, 40, 80))
    orientation = Image.Exif()
    orientation[ExifTags.Base.Orientation] = 6  # what is below stands on the left when upright
    sideways.save(tmp_path / "sideways.jpg", exif=orientation)
    clear.save(tmp_path / "clear.png")
    cards = [card_of(Product(images=(tmp_path / name,)), "", right=True) for name in ("sideways.jpg", "clear.png")]
    draw_rows([cards], tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB")).astype(int)
    (left, top), photo = (14 + (210 - 160) // 2, 14 + 10), 160
    assert (pixels[top + photo // 2, [left + 20, left + photo - 20]].argmax(1) == [2, 0]).all()
    assert pixels[top + photo // 2, left + photo // 2 + 210 + 28].min() == 255


def test_a_sheet_of_a_run(exported: Exported, tmp_path: Path) -> None:
    root = str(exported.run.folder.parent / "data")
    command = ["quality", "sheet", str(exported.run.folder), "--data-root", root, "--split", "train", "--rows", "1"]
    out = tmp_path / "sheet.png"
    answer = CliRunner().invoke(app, [*command, "--label", "group", "--out", str(out)])
    assert answer.exit_code == 0, answer.exception
    assert answer.output == f"drawn: {out}\n"
    with Image.open(out) as sheet:
        assert sheet.size[1] <= 2 * 260
    answer = CliRunner().invoke(app, [*command, "--signature", "text"])
    assert "has no signature text; there are: image, attributes, image_attributes" in str(answer.exception)
    out.unlink()
    for label, reason in (
        ("nolabel", "no product of split train has the label"),
        ("product_id", "products share with --label; they have: split, group, "),
    ):
        answer = CliRunner().invoke(app, [*command, "--label", label, "--out", str(out)])
        assert reason in str(answer.exception)
    assert not out.exists()
