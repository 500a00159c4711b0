"""Logs of who viewed or bought what, joined into product files."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from likeness_client import InputError, RecordError, read_products
from likeness_export.cli import app
from likeness_export.products.interaction_log import join_log
from typer.testing import CliRunner


@pytest.fixture
def products(tmp_path: Path) -> Path:
    path = tmp_path / "products.jsonl"
    records: list[dict[str, Any]] = [
        {"product_id": "a", "title": "Vasen für Ömer", "group": "g"},
        {"product_id": "b", "interactions": {"of old": 3}},
        {"title": "nameless"},
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def log_of(products: Path, text: str) -> Path:
    path = products.with_name("log.csv")
    path.write_bytes(text.encode("utf-8"))
    return path


def test_a_log_becomes_the_interactions_of_its_products(products: Path) -> None:
    log = log_of(products, '\ufeffwhen,item,count,user\n1,a,2,u1\n2,a,0.5,"u, 2"\n3,z,1,u1\n\n4,a,1,u1\n5,z,1,u2\n')
    out = products.with_name("with.jsonl")
    found = join_log(products, log, out)
    assert (found.products, found.known, found.strange) == (3, 1, {"z": 2})
    (a, record), (b, _), _ = read_products(out)
    assert a.interactions == {"u1": 3, "u, 2": 0.5}
    assert (a.title, record["group"]) == ("Vasen für Ömer", "g")
    assert b.interactions == {}, "what it had was of an earlier log"
    assert sorted(path.name for path in out.parent.iterdir()) == ["log.csv", "products.jsonl", "with.jsonl"]


def test_a_sum_of_counts_stays_a_number(products: Path) -> None:
    join_log(products, log_of(products, "user,item,count\nu1,a,1e308\nu1,a,1e308\n"), products)
    (a, _), *_ = read_products(products)
    assert a.interactions == {"u1": sys.float_info.max}


def test_without_counts_each_line_is_one_and_the_products_may_be_replaced(products: Path) -> None:
    with products.open("a") as file:
        file.write('{"product_id": "d", "title": "half of a pair: \\ud83d"}\n')
    join_log(products, log_of(products, "user,item\nu1,b\nu1,b\nu2,b\n"), products)
    assert [dict(product.interactions) for product, _ in read_products(products)] == [{}, {"u1": 2, "u2": 1}, {}, {}]


def test_the_log_is_not_written_over(products: Path) -> None:
    log = log_of(products, text := "user,item\nu1,b\n")
    with pytest.raises(InputError, match=r"log.csv is what is read"):
        join_log(products, log, log)
    assert log.read_text(encoding="utf-8") == text


def test_an_item_is_found_by_the_id_as_it_stands(products: Path) -> None:
    products.write_text('{"product_id": "e\u0301  1 "}\n', encoding="utf-8")
    join_log(products, log_of(products, "user,item\nu1,e\u0301  1 \n"), products)
    assert [dict(product.interactions) for product, _ in read_products(products)] == [{"u1": 1}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("user,item,count\nu1,a,1\nu1,a,many\n", r"log\.csv, line 3: count 'many', a number above 0 is needed"),
        ("user,item,count\nu1,a,0\n", "line 2: count '0', a number above 0"),
        ("user,item,count\nu1,a,nan\n", "line 2: count 'nan', a number above 0"),
        ("user,item,count\nu1,a,inf\n", "line 2: count 'inf', a number above 0"),
        ("user,item,count\n,a,1\n", "line 2: user empty"),
        ("user,item,count\nu1,a\n", r"line 2: not as many values as the first line has columns \(3\)"),
        ("user,item,count\nu1,a,1,2\n", "line 2: not as many values"),
        ("user;item;count\nu1;a;1\n", "lacks the columns user, item: .*with commas between, and is 'user;item;count'"),
        ("", "lacks the columns user, item"),
        ('user,item,count\nu1,"a\n', r"log\.csv cannot be read as a log \(user, item, count\): unexpected end"),
        ("user,item,count\nu1,z,1\n", r"no item of .*log\.csv is a product of .*: its items, such as 'z', must be"),
        ("user,item,count\n", r"no item of .*log\.csv is a product of .*: its items must be their product_id"),
    ],
)
def test_a_wrong_log_is_named_and_nothing_is_written(products: Path, text: str, message: str) -> None:
    before = products.read_bytes()
    with pytest.raises(InputError, match=message):
        join_log(products, log_of(products, text), products)
    assert products.read_bytes() == before
    assert sorted(path.name for path in products.parent.iterdir()) == ["log.csv", "products.jsonl"]


def test_a_wrong_product_and_a_folder_where_paths_would_break_are_refused(products: Path) -> None:
    log = log_of(products, "user,item\nu1,a\n")
    with pytest.raises(InputError, match=r"where its paths of images and videos start from: write to .*with\.jsonl"):
        join_log(products, log, products.parent / "elsewhere" / "with.jsonl")
    products.write_text('{"product_id": "a"}\n{broken\n')
    with pytest.raises(RecordError, match=r"products\.jsonl:2: not JSON"):
        join_log(products, log, products)


def test_the_command_counts_and_names_what_is_no_product(products: Path) -> None:
    log = log_of(products, "user,item\nu1,a\n" + "".join(f"u1,z{number}\n" for number in range(12)) + "u2,z0\n")
    done = CliRunner().invoke(app, ["interactions", str(products), str(log), "--out", str(products)])
    assert done.exit_code == 0
    assert f"1 of 3 products have interactions: {products}" in done.output
    assert "left out 13 lines of the log, whose items are no products: z0, z1, " in done.output
    assert "z9 and 2 more" in done.output
