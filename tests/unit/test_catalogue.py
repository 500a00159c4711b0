from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from likeness_client.contract import InputSchema
from likeness_client.errors import InputError
from likeness_client.records import Product
from likeness_export.products.catalogue import Catalogue, read_catalogue, read_recipe_catalogue, recipe_catalogue
from likeness_export.products.masking import Mask, _stem
from likeness_export.products.named_pairs import (
    NamedPair,
    fold_count,
    groups_of_pairs,
    hold_out,
    read_named_pairs,
    warn_of_contradictions,
)
from likeness_export.recipe import DataSection

HEADER = "left_id,right_id,label,split\n"


def write(folder: Path, *lines: dict[str, Any] | str) -> Path:
    place = folder / "products.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    place.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return place


def catalogue(folder: Path) -> Catalogue:
    return read_catalogue(
        write(
            folder,
            {"product_id": "a", "title": "red shoe", "split": "train", "group": "1", "attributes": {"colour": "red"}},
            {"product_id": "b", "title": "blue shoe", "split": "val", "attributes": {"colour": "blue"}},
            {"product_id": "c", "split": "train", "group": "1", "title": "boot", "images": ["missing.png"]},
            {"product_id": "d", "group": "2", "title": "hat"},
        )
    )


def write_pairs(folder: Path, content: str | bytes) -> Path:
    place = folder / "pairs.csv"
    place.write_bytes(content.encode() if isinstance(content, str) else content)
    return place


def test_bad_lines_are_logged_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = read_catalogue(
        write(tmp_path, {"product_id": "a"}, "{broken", "[1]", {"product_id": 5}, {"product_id": "b"})
    )
    assert [product.product_id for product in found.products] == ["a", "b"]
    assert len(found) == len(found.records) == 2
    assert repr(found) == "Catalogue(2 products)"  # and not all that they hold
    assert [record.getMessage().startswith("left out:") for record in caplog.records] == [True] * 3


def test_of_many_bad_lines_the_first_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    read_catalogue(write(tmp_path, *["product_id,title"] * 50, {"product_id": "a"}))
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 11
    assert messages[-1] == f"left out: 40 more lines of {tmp_path / 'products.jsonl'}"


def test_of_many_products_that_lack_all_that_is_read_the_first_are_named(caplog: pytest.LogCaptureFixture) -> None:
    products = tuple(Product(product_id=f"p{place}", title="a vase") for place in range(50))
    found = Catalogue(products=products, records=({},) * 50).parts(InputSchema(), ["image"])
    assert found == [{}] * 50
    messages = [record.getMessage() for record in caplog.records]
    assert messages[0] == "left out: product ('p0'): has none of image; give it at least one"
    assert messages[10:] == ["left out, in whole or in part: 40 more products"]


def test_a_file_without_products_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"products\.jsonl holds no products"):
        read_catalogue(write(tmp_path, "nonsense"))
    with pytest.raises(InputError, match="cannot read"):
        read_catalogue(tmp_path / "other.jsonl")


def test_labels_are_fields_or_several_fields(tmp_path: Path) -> None:
    products = catalogue(tmp_path)
    assert products.labels("group").tolist() == ["1", "", "1", "2"]
    assert products.labels("attributes.colour").tolist() == ["red", "blue", "", ""]
    assert products.labels("group+attributes.colour").tolist() == ["1+red", "", "", ""]


def test_a_label_that_nobody_has_is_refused_with_those_that_there_are(tmp_path: Path) -> None:
    products = catalogue(tmp_path)
    assert products.needed_labels("group", ["train"]).tolist() == ["1", "", "1", "2"]
    with pytest.raises(InputError, match=r"no product has the label 'nolabel'; products have: .*attributes\.colour"):
        products.needed_labels("nolabel")
    with pytest.raises(InputError, match="no product of split val has the label 'group'"):
        products.needed_labels("group", ["val"])
    with pytest.raises(InputError, match="no product has split test"):
        products.needed_labels("group", ["test"])
    assert "title" not in products.label_keys()


def test_a_label_of_a_whole_description_takes_no_room_in_all_the_others(tmp_path: Path) -> None:
    words = " ".join(f"w{place}" for place in range(20_000))
    lines = [{"product_id": f"p{place}", "group": words if place % 300 == 0 else f"{place}"} for place in range(600)]
    products = read_catalogue(write(tmp_path, *lines))
    labels = products.labels("group")
    assert labels.nbytes < 1_000_000
    assert labels[0] == labels[300] != labels[1]
    assert len(set(labels.tolist())) == 599
    assert products.only({"group": [words]}).ids == ["p0", "p300"]


def test_pairs_that_contradict_each_other_are_told(caplog: pytest.LogCaptureFixture) -> None:
    said = [("a", "b", 1), ("b", "a", 0), ("a", "c", 1), ("a", "c", 1), ("c", "d", 0)]
    warn_of_contradictions([NamedPair(left=i, right=j, label=label) for i, j, label in said], "pairs.csv")
    assert caplog.messages == [
        "pairs.csv: 1 pairs are labelled both 1 and 0, the first is a and b: remove the wrong lines"
    ]
    caplog.clear()
    warn_of_contradictions([NamedPair(left="a", right="b", label=1)] * 2, "pairs.csv")
    assert not caplog.messages


def test_labels_and_splits_are_compared_in_their_canonical_form(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"split": "train "},
        {"split": 1.0, "brand": "Cafe\u0301"},
        {"split": "1", "brand": "Caf\u00e9 "},
    ]
    products = read_catalogue(write(tmp_path, *lines))
    assert len(products.of_splits(["train"])) == 1
    assert len(products.of_splits(["1"])) == 2
    for brand in ("Caf\u00e9", "Cafe\u0301"):
        assert len(products.only({"brand": [brand]})) == 2


def test_of_many_splits_the_first_are_named(tmp_path: Path) -> None:
    products = read_catalogue(write(tmp_path, *({"split": f"{place}"} for place in range(100, 200))))
    with pytest.raises(InputError, match=r"there are: 100, 101, .*, and 88 more$"):
        products.of_splits(["train"])


def test_splits_are_selected_and_named_when_there_are_none(tmp_path: Path) -> None:
    products = catalogue(tmp_path)
    assert [product.product_id for product in products.of_splits(["train"]).products] == ["a", "c"]
    assert [record["product_id"] for record in products.of_splits(["val", "train"]).records] == ["a", "b", "c"]
    with pytest.raises(InputError, match="no product has split test or dev; there are: train, val"):
        products.of_splits(["test", "dev", "test", "train"])
    with pytest.raises(InputError, match="no product has split train; none has any: give each train or val"):
        products.select([3]).of_splits(["train"])


@pytest.mark.parametrize(
    ("title", "left"),
    [
        ("Fjord Men's Navy Blue T-shirt, XL", "Fjord , XL"),
        ("FJORD WOMEN blue-tooth shirts", "FJORD tooth"),
        ("A woman's t shirt - blues, for man", "A , for"),
        ("Nike - run", "Nike - run"),
        ("Menswear in redwood", "Menswear in redwood"),
        ("Tshirt \u00c9t\u00e9 6", "\u00c9t\u00e9 6"),
        ("", ""),
    ],
)
def test_masking_cuts_the_words_of_all_labels(tmp_path: Path, title: str, left: str) -> None:
    labelled = [
        {"product_id": "a", "fine_label": "Tshirts", "attributes": {"colour": "Navy Blue", "gender": "Men"}},
        {"product_id": "b", "fine_label": "Shirts", "attributes": {"gender": "Women"}},
    ]
    whole = read_catalogue(write(tmp_path, *labelled, {"product_id": "c", "title": title, "description": title}))
    masked = whole.masked(["fine_label", "attributes.colour", "attributes.gender"])
    assert (masked.products[2].title, masked.products[2].description) == (left, left)
    assert masked.labels("fine_label").tolist() == ["Tshirts", "Shirts", ""]
    assert whole.masked([]) is whole
    with pytest.raises(InputError, match=r"data\.masked: no product has a value in fine_labl"):
        whole.masked(["fine_labl"])


@pytest.mark.parametrize(
    ("label", "text"),
    [
        ("Watches", "watch"),
        ("Dresses", "dress"),
        ("Scarves", "scarf scarves"),
        ("Clutches", "clutch"),
        ("Accessories", "accessory"),
        ("Ties", "tie"),
        ("Women", "woman women woman's womens"),
        ("Tshirts", "T-shirt t shirts tshirt"),
        ("T-shirts", "Tshirt"),
        ("X100", "x 100 X-100"),
        ("42", "42"),
    ],
)
def test_a_mask_knows_a_label_in_other_forms(label: str, text: str) -> None:
    mask = Mask([label])
    assert mask(text) == ""
    assert mask(f"red {text} case") == "red case"
    assert Mask([text])(label) == ""


@pytest.mark.parametrize(
    ("labels", "text", "left"),
    [
        (["手机"], "新款手机壳 red case", "新款 壳 red case"),
        (["手机", "手机壳"], "新款手机壳", "新款"),
        (["กระเป๋า"], "กระเป๋าหนังแท้", "หนังแท้"),
        (["Nike 手机"], "nike 新手机 nikon", "新 nikon"),
        (["Tシャツ"], "tシャツ 新作", "新作"),
        (["Tshirts"], "in size t; shirt", "in size t; shirt"),
        (["café"], "Cafe\u0301 blue", "blue"),
        (["cafe\u0301"], "café blue", "blue"),
        (["लाल"], "लाल कमीज, लेख कला", "कमीज, लेख कला"),  # a vowel sign is no end of a word
        (["red"], "red की-बोर्ड", "की-बोर्ड"),
        (["ﾐﾙｸ"], "ﾐﾙｸﾁｮｺ", "ﾁｮｺ"),
        (["red"], "red\u200bwood", "wood"),
        (["T-shirt"], "tshirt T\u2011shirt", ""),
        (["Fahrrad"], "Fahr\u00adrad Fahr\u200brad Fahrradhelm", "Fahrradhelm"),
        (["نیم\u200cبوت"], "نیمبوت نو", "نو"),
        (["Straße"], "STRASSE STRAẞE strasse", ""),
        (["İpek"], "ipek İPEK IPEK", ""),
        (["k\u0131rm\u0131z\u0131"], "KIRMIZI K\u0131rm\u0131z\u0131", ""),
        (["κόκκινος"], "ΚΟΚΚΙΝΟΣ Κόκκινος κόκκινο", "κόκκινο"),
        (["чёрный"], "черный ЧЁРНЫЙ чёрно", "чёрно"),
        (["أحمر"], "أَحْمَر", ""),
        (["bò"], "BÒ bộ bo", "bộ bo"),
        (["빨강"], "빨강 노랑", "노랑"),
    ],
)
def test_a_mask_cuts_labels_of_any_script_however_they_are_encoded(labels: list[str], text: str, left: str) -> None:
    assert Mask(labels)(text) == left


def test_a_product_that_cannot_be_read_has_no_payload(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    schema, modalities = InputSchema(attribute_keys=("colour",)), ("text", "image", "attributes")
    parts, in_part = (catalogue(tmp_path).parts(schema, modalities, in_part=in_part) for in_part in (False, True))
    found = [{name: part.read() for name, part in having.items()} for having in parts]
    assert in_part[2]["text"].read() == b"boot"  # enough to learn from
    assert found == [
        {"text": b"red shoe", "attributes": b'{"colour":"red"}'},
        {"text": b"blue shoe", "attributes": b'{"colour":"blue"}'},
        {},
        {"text": b"hat"},
    ]
    assert "missing.png" in caplog.text


def test_of_products_with_one_id_the_first_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    records = [{"product_id": name, "title": title} for name, title in [("a", "1"), ("", "2"), ("a", "3"), ("", "4")]]
    (tmp_path / "products.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    kept = read_recipe_catalogue("products.jsonl", tmp_path)
    assert [product.title for product in kept.products] == ["1", "2", "4"]
    assert "left out: 1 products whose product_id an earlier one has, the first is 'a'" in caplog.text
    assert len(read_catalogue(tmp_path / "products.jsonl")) == 4  # beside embeddings, one row each


def test_pairs_are_read_by_split(tmp_path: Path) -> None:
    place = write_pairs(tmp_path, HEADER + "a,b,1,train\nc,a,0,train\nb,c,1,val\n")
    ab, ca, bc = (NamedPair(left=left, right=right, label=int(left != "c")) for left, right in ("ab", "ca", "bc"))
    assert read_named_pairs(place, ["train"]) == [ab, ca]
    assert read_named_pairs(place, ["train", "val"]) == [ab, ca, bc]
    assert read_named_pairs(place, ["test"]) == []


@pytest.mark.parametrize(("share", "count"), [(0.5, 2), (0.2, 5), (0.3333, 3), (0.3334, 3), (0.3, 3), (0.9, 1)])
def test_a_share_rounded_up_loses_no_fold(share: float, count: int) -> None:
    assert fold_count(share) == count


def test_held_out_pairs_do_not_depend_on_order_and_take_their_mirror_images_along() -> None:
    pairs = [NamedPair(left=f"l{place % 40}", right=f"r{place}", label=0) for place in range(400)]
    mirrored = [NamedPair(left=pair.right, right=pair.left, label=1) for pair in pairs]
    kept, held = hold_out(pairs, 0.2)
    assert 50 < len(held) < 110
    assert sorted(kept + held, key=pairs.index) == pairs
    assert [pair.right for pair in hold_out(mirrored[::-1], 0.2)[1]] == [pair.left for pair in held[::-1]]
    assert hold_out(pairs, 0.0) == (pairs, [])
    assert hold_out(half := [NamedPair(left="\ud800", right="p1", label=1)], 1.0) == ([], half)  # half a character
    assert set(map(id, hold_out(pairs, 0.3)[1])) > set(map(id, held))  # a larger share holds the smaller one
    folds = [hold_out(pairs, 0.2, fold)[1] for fold in range(5)]
    assert folds[0] == held
    assert (
        sorted((pair for fold in folds for pair in fold), key=pairs.index) == pairs
    )  # every pair is held out by one of them


def test_only_products_with_the_given_values_stay() -> None:
    names = ("a/red", "b/red", "c/blue", "d/")
    catalogue = Catalogue(
        products=tuple(Product(product_id=name) for name in names),
        records=tuple({"product_id": name, "coarse_label": name.partition("/")[2]} for name in names),
    )
    assert catalogue.only({}) is catalogue
    kept = catalogue.only({"coarse_label": ["red", "green"]})
    assert [product.product_id for product in kept.products] == ["a/red", "b/red"]
    assert len(catalogue.only({"coarse_label": ["red"], "product_id": ["b/red", "c/blue"]})) == 1
    with pytest.raises(InputError, match="none of 4 products: no product has coarse_label = green or pink"):
        catalogue.only({"coarse_label": ["green", "pink"]})


def test_a_recipe_sees_what_it_keeps_without_the_labels_of_that(tmp_path: Path) -> None:
    write(
        tmp_path,
        {"product_id": "a", "shop": "x", "kind": "mug", "title": "mug for a vase"},
        {"product_id": "b", "shop": "y", "kind": "vase", "title": "vase"},
    )
    data = DataSection(products="products.jsonl", only={"shop": ("x",)}, masked=("kind",))
    (product,) = recipe_catalogue(data, tmp_path).products
    assert (product.product_id, product.title) == ("a", "for a vase")


def test_pairs_as_a_spreadsheet_saves_them(tmp_path: Path) -> None:
    place = write_pairs(tmp_path, b"\xef\xbb\xbf" + (HEADER + 'a,"b",1,train\n').replace("\n", "\r\n").encode())
    assert read_named_pairs(place, ["train"]) == [NamedPair(left="a", right="b", label=1)]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (HEADER + "a,b,1,train\na,b,yes,train\n", "line 3: label 'yes', 0 or 1 is needed"),
        (HEADER + "a,b,,train\n", "line 2: label '', 0 or 1 is needed"),
        ("left_id,right_id,split\na,b,train\n", "columns label: its first line has to name left_id, right_id, label"),
        ("left_id;right_id\na;b\n", "with commas between, and is 'left_id;right_id'"),
        (HEADER + "a,b,1,train\na,b,1\n", r"line 3: not as many values as the first line has columns \(4\)"),
        (HEADER + "a,b,c,1,train\n", "line 2: not as many values"),
        (HEADER + 'a,b,1,"train\nc,d,1,train\n', "unexpected end of data"),  # the quote would swallow all that follows
        ("a,b\n", "lacks the columns left_id, right_id, label, split"),
        ("", "lacks the columns"),
        (b"left_id,right_id,label,split\n\xff,b,1,train\n", "not UTF-8 .*: save the file as UTF-8, e.g. with `iconv"),
    ],
)
def test_a_file_that_holds_no_pairs_says_why(tmp_path: Path, content: str | bytes, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        read_named_pairs(write_pairs(tmp_path, content), ["train"])
    assert "pairs.csv" in str(caught.value)


def test_a_missing_file_of_pairs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"pairs\.csv cannot be read"):
        read_named_pairs(tmp_path / "pairs.csv", ["train"])


def test_pairs_connect_what_is_one_product() -> None:
    sides = [("a", "b", 1), ("b", "c", 1), ("d", "e", 0), ("f", "g", 1), ("g", "gone", 1), ("h", "h", 1)]
    pairs = [NamedPair(left=left, right=right, label=label) for left, right, label in sides]
    a, b, c, d, e, f, g, h = groups_of_pairs([*"abcdefgh"], pairs).tolist()
    assert a == b == c
    assert f == g
    assert len({a, f, ""}) == 3
    assert (d, e, h) == ("", "", "")
    assert groups_of_pairs(["a"], []).tolist() == [""]


def test_a_word_that_comes_again_is_not_reduced_again() -> None:
    mask = Mask(["red"])
    _stem.cache_clear()
    for _ in range(3):
        assert mask("scarves") == "scarves"
    assert _stem.cache_info().misses == 1
