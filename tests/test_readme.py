"""The guides' blocks do what they show: Python is executed, commands are run on the real server; all are parsed."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import typer
from comparisons.__main__ import app as comparisons_app
from likeness_bench.cli import app as bench_app
from likeness_client import Client, Product, read_products
from likeness_client.cli import app as client_app
from likeness_export.cli import app as export_app
from likeness_export.run import Run
from typer.main import get_group
from typer.testing import CliRunner

if TYPE_CHECKING:
    from tests.conftest import Server

ROOT = Path(__file__).parent.parent
GUIDES = [ROOT / "README.md", *(ROOT / part / "README.md" for part in ("client", "export", "benchmarks"))]
GUIDES += [ROOT / "export" / "choices.md", ROOT / "export" / "uses.md"]
ALL_GUIDES = [
    ROOT / "README.md",
    *sorted(path for part in ("client", "export", "benchmarks", "deploy") for path in (ROOT / part).rglob("*.md")),
]
ELSEWHERE = (
    "likeness serve",
    "likeness train",
    "likeness export",
    "likeness evaluate runs/mine",
    "likeness evaluate runs/shoppers",
    "likeness embed runs/shop",
    "likeness related runs/shop",
    "likeness quality",
    "likeness tune",
)
"""Commands that tests of their own cover."""
NOT_HERE = " DATA"
"""What stands for catalogues that are not part of this repository."""
FEED = """id\ttitle\tdescription\timage_link\tprice\tbrand\tgtin\tgoogle_product_category\tcolor\tsize\titem_group_id
s1\tSoft shirt, 3 < 4\t<p>Soft &amp; <br/>warm</p>\t1.jpg\t12.50 EUR\tLuma\t0012345678905\tTops > Shirts\tred\tS\ti1
s2\tSoft shirt\t\t2.jpg\t\tLuma\t\tTops > Shirts\tred\tM\ti1
m1\tMug\t\t\t7.00 EUR\t\t\tMugs\t\t\t
v1\tVase
"""
"""What the guide makes products of."""
LIKENESS = (client_app, export_app, bench_app)
"""Whose commands together are those of `likeness`."""
ON_FILES = {"related", "cluster", "mine", "render", "interactions"}
"""Commands that ask no server."""


def blocks(guide: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", guide.read_text(encoding="utf-8"), flags=re.DOTALL)


def shell_lines(guide: Path) -> list[str]:
    return [line.strip() for block in blocks(guide, "sh") for line in block.splitlines()]


@pytest.fixture
def here(server: Server, demo_catalogue: Path, trained_run: Run, repository: Path, tmp_path: Path) -> dict[str, str]:
    """What stands in the README, and what stands for it in this test."""
    photo = next((demo_catalogue.parent / "images").glob("*.jpg"))
    write_feed(tmp_path / "my_data")
    return {
        "localhost:8001": server.address,
        "localhost:8000": f"127.0.0.1:{server.config.http_port}",
        "p0106-s5.jpg": photo.name,  # a smaller catalogue has other listings
        # Finding a ceiling takes half a minute, and a second test of the same.
        "--repository runs/demo/repository --target-ms": "--target-ms",
        "--signature text --signature text_image --label": "--signature attributes --label",
        "runs/demo/catalogue": str(demo_catalogue.parent),
        "runs/demo/run": str(trained_run.folder),
        "runs/demo/repository": str(repository),
        "runs/demo": str(tmp_path),
        "my_data": str(tmp_path / "my_data"),
        "render runs/shop": f"render {tmp_path}/shop --designs 12",
        "runs/shop": f"{tmp_path}/shop",
        "(2, 128)": "(2, 64)",
        "--concurrency 16 --duration-s 30": "--concurrency 16 --duration-s 1 --products 20",
        "--duration-s 30": "--duration-s 1 --warm-up-s 0.1 --budget-s 2 --timeout-s 60",
        "--rounds 5": "--rounds 1 --turn-s 0.5 --warm-up-s 0.1 --trial-s 0.05 --timeout-s 60",
        "--target-ms 100 --budget-s 300": (
            "--target-ms 60000 --rate 120 --budget-s 4 --duration-s 0.5 --warm-up-s 0 --timeout-s 60"
        ),
    }


def write_feed(folder: Path, feed: str = FEED) -> None:
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "s1.jpg").write_bytes(b"a photo")
    (folder / "feed.tsv").write_text(feed, encoding="utf-8")


def localised(text: str, here: dict[str, str]) -> str:
    for stands, means in here.items():
        text = text.replace(stands, means)
    return text


@pytest.mark.server
@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.relative_to(ROOT).as_posix())
def test_python_runs(guide: Path, here: dict[str, str]) -> None:
    for block in blocks(guide, "python"):
        exec(compile(localised(block, here), str(guide), "exec"), {"__name__": "readme"})


def products_of_feed(folder: Path, feed: str) -> list[tuple[Product, dict[str, Any]]]:
    write_feed(folder / "my_data", feed)
    [block] = (block for block in blocks(ROOT / "export" / "README.md", "python") if "feed.tsv" in block)
    exec(compile(block.replace("my_data", f"{folder}/my_data"), "feed", "exec"), {"__name__": "readme"})
    return list(read_products(folder / "my_data" / "products.jsonl"))


def test_a_feed_becomes_products(tmp_path: Path) -> None:
    shirt, other, mug, vase = products_of_feed(tmp_path, FEED)
    assert shirt[0] == Product(
        product_id="s1",
        title="Soft shirt, 3 < 4",
        description="Soft &  warm",
        attributes={"brand": "Luma", "color": "red", "size": "S", "gtin": "0012345678905", "price": 12.5},
        images=(tmp_path / "my_data" / "images" / "s1.jpg",),
    )
    assert other[0].images == ()
    assert shirt[1]["split"] in {"train", "val"}
    assert (shirt[1]["item"], other[1]["item"], other[1]["split"]) == ("i1", "i1", "variant")
    assert mug[0] == Product(product_id="m1", title="Mug", attributes={"price": 7.0})
    assert (mug[1]["item"], mug[1]["category"]) == ("m1", "Mugs")
    assert vase[0] == Product(product_id="v1", title="Vase")  # a row that is cut short


def test_a_feed_may_lack_columns(tmp_path: Path) -> None:
    [mug] = products_of_feed(tmp_path, "id\ttitle\tdescription\tprice\nm1\tMug\t\t7.00 EUR\n")
    assert mug[0] == Product(product_id="m1", title="Mug", attributes={"price": 7.0})
    assert (mug[1]["item"], mug[1]["category"]) == ("m1", None)


@pytest.mark.server
@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node")
def test_javascript_is_answered_as_python_is(here: dict[str, str], client: Client) -> None:
    [code] = (localised(block, here) for guide in GUIDES for block in blocks(guide, "js"))
    run = ["node", "--input-type=module", "--eval", code]
    done = subprocess.run(run, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["text_error"] == answer["image_error"] == [""]
    photo = Path(here["runs/demo/catalogue"]) / "images" / here["p0106-s5.jpg"]
    expected = client.embed([Product(title="blue mug", images=(photo,))])
    np.testing.assert_allclose([answer["embedding"]], expected.vectors, atol=1e-5)
    weights = dict(zip(("text", "image"), answer["modality_weights"], strict=True))
    assert weights == pytest.approx(expected.modality_weights[0], abs=1e-5)


@pytest.mark.server
@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.relative_to(ROOT).as_posix())
def test_commands_run(guide: Path, here: dict[str, str]) -> None:
    earlier = {line for other in GUIDES[: GUIDES.index(guide)] for line in shell_lines(other)}
    for line in (line for line in shell_lines(guide) if line not in earlier):
        if line.startswith("likeness ") and not line.startswith(ELSEWHERE) and NOT_HERE not in line:
            words = shlex.split(localised(line, here), comments=True)[1:]
            asks_nobody = words[0] in ON_FILES or words[:2] == ["bench", "compare"]
            address = [] if "--server" in words or asks_nobody else ["--server", here["localhost:8001"]]
            app = next(app for app in LIKENESS if words[0] in get_group(app).commands)
            done = CliRunner().invoke(app, [*words, *address])  # not as processes, which would import everything anew
            assert done.exit_code == 0, f"{line}\n{done.output}{done.exception}"


def test_every_command_is_documented() -> None:
    text = "".join(guide.read_text(encoding="utf-8") for guide in GUIDES)
    program = Path(sys.executable).parent / "likeness"
    shown = subprocess.run([program, "--help"], capture_output=True, text=True, check=True).stdout
    commands = re.findall(r"^[│|] (\w+) +\S", shown[shown.index("Commands") :], flags=re.MULTILINE)
    assert len(commands) >= 7
    assert [
        command for command in commands if f"likeness {command}" not in text and f"make {command}" not in text
    ] == []


# --- parsed, not run


def commands(*apps: typer.Typer) -> dict[str, Any]:
    return {name: command for app in apps for name, command in get_group(app).commands.items()}


PROGRAMS = {
    "likeness": commands(*LIKENESS),
    "python -m comparisons": commands(comparisons_app),
}
"""Each program's commands."""


def in_blocks(guide: Path) -> list[str]:
    """Return the command lines of a guide's shell blocks; those over several lines as one."""
    text = "\n".join(blocks(guide, "sh")).replace("\\\n", " ")
    return [line.strip().removesuffix("&") for line in text.splitlines() if line.strip().startswith(tuple(PROGRAMS))]


def prose(guide: Path) -> str:
    """Return a guide without its blocks."""
    return re.sub(r"```.*?```", "", guide.read_text(encoding="utf-8"), flags=re.DOTALL)


def in_sentences(guide: Path) -> list[str]:
    """Return the commands that a guide's sentences name, in back quotes; most lack their arguments."""
    quoted = [" ".join(part.split()) for part in re.findall(r"`([^`]+)`", prose(guide))]
    return [part for part in quoted if part.startswith(tuple(f"{program} " for program in PROGRAMS))]


def command_of(line: str) -> tuple[Any, list[str]]:
    """Return the command that a line calls, and its arguments.

    Raises:
        KeyError: there is no such command.
    """
    program = next(name for name in PROGRAMS if line.startswith(name))
    name, *words = shlex.split(line.removeprefix(program), comments=True)
    while name.startswith("-"):  # options of the program itself
        option = next(known for known in get_group(client_app).params if name in known.opts)
        name, *words = words if getattr(option, "is_flag", False) else words[1:]
    command = PROGRAMS[program][name]
    while words and hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    return command, words


@pytest.mark.parametrize("guide", ALL_GUIDES, ids=lambda guide: guide.relative_to(ROOT).as_posix())
def test_command_lines_are_what_the_command_takes(guide: Path) -> None:
    for line in in_blocks(guide):
        command, words = command_of(line)
        context = command.make_context(command.name, [], resilient_parsing=True)
        context.resilient_parsing = False
        given, too_many, _ = command.make_parser(context).parse_args(words)  # raises at an unknown option
        assert not too_many, line
        assert [
            parameter.name for parameter in command.params if parameter.required and not given.get(parameter.name)
        ] == [], line


@pytest.mark.parametrize("guide", ALL_GUIDES, ids=lambda guide: guide.relative_to(ROOT).as_posix())
def test_sentences_name_commands_and_options_that_there_are(guide: Path) -> None:
    for line in in_sentences(guide):
        command, words = command_of(line)
        known = {option for parameter in command.params for option in parameter.opts}
        ours = takewhile(lambda word: word != "--", words)
        assert {word for word in ours if word.startswith("-")} <= known, line


def anchors(guide: Path) -> set[str]:
    """Return the names that the headings of a guide have in links."""
    headings = re.findall(r"^#+ (.*)$", prose(guide), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("guide", ALL_GUIDES, ids=lambda guide: guide.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(guide: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(guide)):
        if not link.startswith("https://"):
            path, _, anchor = link.partition("#")
            target = guide.parent / path if path else guide
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link
