from __future__ import annotations

import errno
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc  # type: ignore[import-untyped]  # ships no types
import likeness_client
import pytest
import typer
from likeness_client import Embeddings, InputError, Product, _bulk, cli

if TYPE_CHECKING:
    from tests.client.conftest import Endpoint


@pytest.fixture(autouse=True)
def _own_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call of `cli.main` adds the other packages' commands, which would make the next one slower."""
    monkeypatch.setattr(cli.app, "registered_groups", [*cli.app.registered_groups])


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["likeness", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "products.jsonl"
    lines = [json.dumps({"product_id": f"p{i}", "title": f"title {i}"}) for i in range(25)]
    lines[3], lines[7] = "{broken", json.dumps({"product_id": "p7"})
    path.write_text("\n".join(lines))
    return path


def test_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"likeness {likeness_client.__version__}\n"


def test_embed_goes_on_past_what_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], endpoint: Endpoint, file: Path, suffix: str
) -> None:
    out = file.with_suffix(suffix)
    arguments = ("embed", str(file), "--out", str(out), "--server", endpoint.address, "--batch-size", "10")
    assert run(monkeypatch, *arguments) == 0
    said = capsys.readouterr()
    assert "23 products embedded" in said.err
    assert "2 failed:" in said.err
    assert f"{file}:4: not JSON" in said.err
    assert "product 6 ('p7'): has none of" in said.err
    assert "more" not in said.err
    assert said.out == ""
    written = Embeddings.load(out)
    assert len(written) == 24
    assert list(written.errors) == [6]
    assert run(monkeypatch, *arguments, "--strict") == 1


def test_the_bar_of_an_embed_fits_the_terminal(
    monkeypatch: pytest.MonkeyPatch, endpoint: Endpoint, file: Path, tmp_path: Path
) -> None:
    drawn = []

    def progressbar(**options: Any) -> Any:
        drawn.append(bar_of(**options))
        return drawn[0]

    bar_of = typer.progressbar
    monkeypatch.setattr(typer, "progressbar", progressbar)
    assert run(monkeypatch, "embed", str(file), "--out", str(tmp_path / "a.npz"), "--server", endpoint.address) == 0
    assert drawn[0].autowidth


def test_embed_names_ten_failures_and_counts_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], endpoint: Endpoint, tmp_path: Path
) -> None:
    path, out = tmp_path / "bad.jsonl", tmp_path / "out.npz"
    path.write_text("{}\n" * 15)
    assert run(monkeypatch, "embed", str(path), "--out", str(out), "--server", endpoint.address) == 1
    said = capsys.readouterr().err
    assert said.count("has none of") == 10
    assert "and 5 more" in said
    assert "nothing was written" in said
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_without_products_says_so_and_asks_nobody(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path, out = tmp_path / "empty.jsonl", tmp_path / "out.npz"
    path.write_text("\n")
    assert run(monkeypatch, "embed", str(path), "--out", str(out), "--server", "127.0.0.1:1") == 1
    assert f"{path} holds no products: give a file with one JSON object per line" in capsys.readouterr().err
    assert not out.exists()


def test_embed_refuses_before_it_works(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], file: Path
) -> None:
    assert run(monkeypatch, "embed", str(file), "--out", "vectors.csv") == 1
    assert capsys.readouterr().err == "vectors.csv: embeddings are kept as .npz or .parquet, by suffix\n"
    assert run(monkeypatch, "embed", str(file.with_name("none.jsonl")), "--out", "a.npz") == 2


def test_embed_looks_at_the_named_modalities_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], endpoint: Endpoint, tmp_path: Path
) -> None:
    path, out = tmp_path / "products.jsonl", tmp_path / "out.npz"
    facts = {"attributes": {"colour": "red"}}
    lines = [{"product_id": "both", "title": "a", **facts}, {"product_id": "facts", **facts}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    arguments = ("embed", str(path), "--out", str(out), "--server", endpoint.address)
    assert run(monkeypatch, *arguments, "--modality", "text", "--modality", "image") == 0
    said = capsys.readouterr().err
    assert "product 1 ('facts'): has none of text, image" in said
    assert f"1 products embedded to {out}; read: text 1, image 0\n" in said
    assert Embeddings.load(out).signatures == ("text", "")
    assert run(monkeypatch, *arguments) == 0
    assert "; read: text 1, image 0, attributes 2\n" in capsys.readouterr().err  # a misspelt key is seen here
    assert Embeddings.load(out).signatures == ("text_attributes", "attributes")
    capsys.readouterr()
    assert run(monkeypatch, *arguments, "--modality", "txt") == 1
    assert "modalities must be a list of some of text, image, attributes, not ['txt']" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["embed", "compare"])
def test_a_server_may_be_given_more_time(
    command: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    endpoint: Endpoint,
    file: Path,
) -> None:
    endpoint.servicer.delay_s = 0.5
    arguments = {"embed": (str(file), "--out", str(file.with_suffix(".npz"))), "compare": ('{"title": "a"}',) * 2}
    asked = (command, *arguments[command], "--server", endpoint.address, "--timeout-s")
    assert run(monkeypatch, *asked, "0.2") == 1
    assert (
        "raise timeout_s (--timeout-s of a command), or send less at once (--batch-size of `likeness embed`)"
        in capsys.readouterr().err
    )
    assert run(monkeypatch, *asked, "20") == 0


def gone_after(
    answers: int, endpoint: Endpoint, failures: int, code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE
) -> None:
    """Let a server answer so many calls, and then fail so many."""
    calls = iter(range(10_000))
    endpoint.servicer.interfere = lambda _: code if answers <= next(calls) < answers + failures else None


@pytest.mark.parametrize(
    "code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.INTERNAL]
)
def test_embed_waits_for_a_server_that_has_answered(
    code: grpc.StatusCode,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    endpoint: Endpoint,
    file: Path,
) -> None:
    monkeypatch.setattr(_bulk, "_PAUSE_S", 0.01)
    out = file.with_suffix(".npz")
    gone_after(3, endpoint, 6, code)  # gRPC itself tries four times
    arguments = ("embed", str(file), "--out", str(out), "--server", endpoint.address, "--batch-size", "8")
    assert run(monkeypatch, *arguments) == 0
    assert "waiting, " in capsys.readouterr().err
    assert len(Embeddings.load(out)) == 24


def test_embed_waits_no_longer_than_it_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], endpoint: Endpoint, file: Path
) -> None:
    monkeypatch.setattr(_bulk, "_PAUSE_S", 0.01)
    gone_after(1, endpoint, 500, grpc.StatusCode.INTERNAL)  # for seconds
    arguments = ("--out", str(file.with_suffix(".npz")), "--server", endpoint.address, "--batch-size", "4")
    assert run(monkeypatch, "embed", str(file), *arguments, "--patience-s", "0.2") == 1
    assert "waiting, " in capsys.readouterr().err


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED])
def test_an_embed_does_not_wait_for_what_waiting_does_not_cure(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    endpoint: Endpoint,
    file: Path,
    code: grpc.StatusCode,
) -> None:
    gone_after(1, endpoint, 10_000, code)
    arguments = ("--out", str(file.with_suffix(".npz")), "--server", endpoint.address, "--batch-size", "4")
    assert run(monkeypatch, "embed", str(file), *arguments) == 1
    assert "waiting, " not in capsys.readouterr().err


def test_an_interrupted_embed_goes_on_where_it_stopped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], endpoint: Endpoint, file: Path
) -> None:
    out = file.with_suffix(".npz")
    arguments = ("embed", str(file), "--out", str(out), "--server", endpoint.address, "--batch-size", "4")
    gone_after(3, endpoint, 10_000, grpc.StatusCode.INTERNAL)  # which gRPC itself does not try again
    assert run(monkeypatch, *arguments, "--patience-s", "0") == 1
    assert f"what was embedded is kept in {out}.steps: the same command goes on from there" in capsys.readouterr().err
    assert not out.exists()
    (out.with_name(f"{out.name}.steps") / f".{'0' * 32}.npz.1.partial").touch()  # as a killed process leaves it

    changed = file.read_text().replace('"title 1"', '"title one"')
    file.write_text(changed)
    calls: list[str] = []
    endpoint.servicer.interfere = calls.append
    assert run(monkeypatch, *arguments) == 0
    assert len(calls) == 7 - 3 + 1  # of seven steps three were kept, of which one has changed
    said = capsys.readouterr().err
    assert "23 products embedded" in said
    assert "product 6 ('p7'): has none of" in said
    assert not out.with_name(f"{out.name}.steps").exists()
    resumed = Embeddings.load(out)
    assert run(monkeypatch, *arguments) == 0
    assert len(calls) == 5 + 7
    whole = Embeddings.load(out)
    assert (resumed.vectors[resumed.vectors == resumed.vectors] == whole.vectors[whole.vectors == whole.vectors]).all()
    assert (resumed.product_ids, resumed.signatures) == (whole.product_ids, whole.signatures)
    assert list(resumed.errors) == list(whole.errors) == [6]


def test_two_processes_do_not_write_the_same_embeddings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], endpoint: Endpoint, file: Path
) -> None:
    out = file.with_suffix(".npz")
    arguments = ("embed", str(file), "--out", str(out), "--server", endpoint.address)
    with _bulk.own_steps(out) as steps:
        assert run(monkeypatch, *arguments) == 1
        assert f"{out} is being written by another process: wait for it, or stop it" in capsys.readouterr().err
        assert steps.is_dir()
    assert not steps.exists()
    assert run(monkeypatch, *arguments) == 0


def test_an_embed_that_kept_nothing_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], endpoint: Endpoint, file: Path
) -> None:
    gone_after(0, endpoint, 10_000, grpc.StatusCode.PERMISSION_DENIED)
    before = sorted(file.parent.iterdir())
    arguments = ("--out", str(file.with_suffix(".npz")), "--server", endpoint.address)
    assert run(monkeypatch, "embed", str(file), *arguments) == 1
    assert "what was embedded is kept" not in capsys.readouterr().err
    assert sorted(file.parent.iterdir()) == before


def test_what_else_lies_where_steps_are_kept_stays(
    monkeypatch: pytest.MonkeyPatch, endpoint: Endpoint, file: Path, tmp_path: Path
) -> None:
    out, steps = tmp_path / "whole.npz", tmp_path / "whole.npz.steps"
    steps.mkdir()
    mine = {steps / "notes.txt": b"notes", steps / "mine.npz": b"vectors"}
    for path, content in mine.items():
        path.write_bytes(content)
    for source in (tmp_path / "nothing.jsonl", file):  # a run that fails, and one that ends well
        source.touch()
        run(monkeypatch, "embed", str(source), "--out", str(out), "--server", endpoint.address)
        assert {path: path.read_bytes() for path in steps.iterdir()} == mine
    assert out.is_file()


def test_a_lock_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "whole.npz.steps" / "lock").mkdir(parents=True)
    with (
        pytest.raises(InputError, match=r"cannot write .*lock \(Is a directory\)"),
        _bulk.own_steps(tmp_path / "whole.npz"),
    ):
        pass


@pytest.mark.parametrize("asked", [(), ("--modality", "text")], ids=["of a server that offered less", "of less"])
def test_steps_that_looked_at_less_are_embedded_again(
    monkeypatch: pytest.MonkeyPatch, endpoint: Endpoint, tmp_path: Path, asked: tuple[str, ...]
) -> None:
    file, out = tmp_path / "products.jsonl", tmp_path / "out.npz"
    file.write_text('{"title": "a vase", "attributes": {"colour": "red"}}\n{"title": "a mug"}\n', encoding="utf-8")
    arguments = ("embed", str(file), "--out", str(out), "--server", endpoint.address, "--batch-size", "1")
    every = endpoint.servicer.fake.signatures
    if not asked:
        endpoint.servicer.fake.signatures = ["text"]
    gone_after(1, endpoint, 10_000, grpc.StatusCode.INTERNAL)
    assert run(monkeypatch, *arguments, *asked, "--patience-s", "0") == 1
    endpoint.servicer.fake.signatures = every
    endpoint.servicer.interfere = lambda _: None
    assert run(monkeypatch, *arguments) == 0
    assert Embeddings.load(out).signatures == ("text_attributes", "text")


def test_steps_that_are_kept_lie_where_the_whole_will(
    monkeypatch: pytest.MonkeyPatch, endpoint: Endpoint, file: Path, tmp_path: Path
) -> None:
    roomy = tmp_path / "roomy"
    roomy.mkdir()
    out = tmp_path / "out.npz"
    out.symlink_to(roomy / "whole.npz")
    gone_after(1, endpoint, 10_000, grpc.StatusCode.INTERNAL)
    arguments = ("embed", str(file), "--out", str(out), "--server", endpoint.address, "--batch-size", "4")
    assert run(monkeypatch, *arguments, "--patience-s", "0") == 1
    assert [path.name for path in roomy.iterdir()] == ["whole.npz.steps"]


def test_a_server_that_is_replaced_under_an_embed_ends_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], endpoint: Endpoint, file: Path
) -> None:
    calls = itertools.count()

    def replace(_name: str) -> None:
        if next(calls) == 2:
            endpoint.servicer.fake.space = "space-2"

    endpoint.servicer.interfere = replace
    out = file.with_suffix(".npz")
    arguments = ("embed", str(file), "--out", str(out), "--server", endpoint.address, "--batch-size", "4")
    assert run(monkeypatch, *arguments) == 1
    said = capsys.readouterr().err
    assert "replaced by one of another space, space-2 for space-1: give the command again" in said
    assert "what was embedded is kept" not in said
    assert run(monkeypatch, *arguments) == 0
    assert Embeddings.load(out).space == "space-2"
    assert not out.with_name(f"{out.name}.steps").exists()


def test_kept_steps_of_another_space_or_another_photo_are_embedded_again(tmp_path: Path) -> None:
    photo = tmp_path / "a.jpg"
    photo.write_bytes(b"one")
    products = [Product(product_id="a", images=(photo,)), Product(title="b")]
    names = {_bulk._digest(products, None, "one space"), _bulk._digest(products, None, "another space")}
    names.add(_bulk._digest(products, ["text"], "one space"))
    names.add(_bulk._digest(products[::-1], None, "one space"))
    long = "long " * 1000
    names |= {_bulk._digest([Product(description=long + end + long)], None, "one space") for end in ("red", "blue")}
    before = photo.stat()
    photo.write_bytes(b"two")
    os.utime(photo, ns=(before.st_atime_ns, before.st_mtime_ns))  # as copying with its times does
    names.add(_bulk._digest(products, None, "one space"))
    photo.write_bytes(b"other")
    names.add(_bulk._digest(products, None, "one space"))
    photo.unlink()
    names.add(_bulk._digest(products, None, "one space"))
    assert len(names) == 9


def test_embed_does_not_wait_for_a_network_that_was_down_from_the_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], endpoint: Endpoint, tmp_path: Path
) -> None:
    endpoint.servicer.down = {"embed_attributes", "embed_text_attributes"}
    file, out = tmp_path / "products.jsonl", tmp_path / "out.npz"
    file.write_text('{"title": "a vase"}\n{"product_id": "p-7", "attributes": {"colour": "red"}}\n', encoding="utf-8")
    assert (
        run(monkeypatch, "embed", str(file), "--out", str(out), "--server", endpoint.address, "--batch-size", "1") == 1
    )
    said = capsys.readouterr().err
    assert "not ready: out of memory; product ('p-7') needs it" in said
    assert "waiting" not in said
    assert not out.exists()


def test_embed_does_not_wait_for_a_server_that_was_never_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], file: Path
) -> None:
    out = file.with_suffix(".npz")
    assert run(monkeypatch, "embed", str(file), "--out", str(out), "--server", "localhost:1") == 1
    assert "no server answers at localhost:1" in capsys.readouterr().err


def test_being_stopped_leaves_nothing_half_written(endpoint: Endpoint, file: Path) -> None:
    endpoint.servicer.delay_s = 2.0
    code = "from likeness_client.cli import main; main()"
    arguments = ("embed", str(file), "--out", str(file.with_suffix(".npz")), "--server", endpoint.address)
    process = subprocess.Popen([sys.executable, "-c", code, *arguments])
    # A partial file by itself may be of the check that the place can be written.
    while not (list(file.parent.glob("*.steps/lock")) and list(file.parent.glob(".*.partial"))):
        assert process.poll() is None
        time.sleep(0.02)
    process.terminate()
    assert process.wait(20) == 128 + signal.SIGTERM
    assert list(file.parent.iterdir()) == [file]


def test_the_shell_sends_what_a_gateway_asks_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], endpoint: Endpoint, tmp_path: Path
) -> None:
    asked = ("compare", '{"title": "a"}', '{"title": "b"}', "--server", endpoint.address)
    assert run(monkeypatch, "--authorization", "Bearer 1", *asked) == 0
    assert {headers.get("authorization") for headers in endpoint.servicer.headers} == {"Bearer 1"}
    assert "sent unencrypted: give --tls" in capsys.readouterr().err
    assert run(monkeypatch, "--tls", *asked, "--timeout-s", "1") == 1  # the endpoint speaks no TLS
    (tmp_path / "ca.pem").write_text("")
    capsys.readouterr()
    assert run(monkeypatch, "--certificate-chain", str(tmp_path / "ca.pem"), *asked) == 1
    assert "--certificate-chain encrypts nothing by itself: give --tls too" in capsys.readouterr().err
    assert run(monkeypatch, "--tls", "--private-key", str(tmp_path / "ca.pem"), *asked) == 1
    assert "needs both private_key and certificate_chain" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "way_out"),
    [
        (errno.ENOSPC, "make room there, or give another path"),
        (errno.EACCES, "let this user have access, or give another path"),
        (errno.EMFILE, "raise the limit (ulimit -n)"),
    ],
)
def test_what_the_system_refuses_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int, way_out: str
) -> None:
    def refused() -> None:
        raise OSError(number, "so it is", "runs/x")

    monkeypatch.setattr(cli, "app", refused)
    monkeypatch.setattr(cli, "_load_commands", list)
    assert run(monkeypatch) == 1
    assert capsys.readouterr().err == f"runs/x: so it is; {way_out}\n"


def test_that_no_temporary_file_can_be_written_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("tempfile._candidate_tempdir_list", lambda: ["/not/there"])
    monkeypatch.setattr(cli, "app", tempfile.gettempdir)
    monkeypatch.setattr(cli, "_load_commands", list)
    assert run(monkeypatch) == 1
    said = capsys.readouterr().err
    assert said.endswith("['/not/there']: make room in one of them, or name another folder by TMPDIR\n")


def test_a_folder_that_is_gone_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    tmp_path.rmdir()
    monkeypatch.setattr(cli, "app", Path.cwd)
    monkeypatch.setattr(cli, "_load_commands", list)
    assert run(monkeypatch) == 1
    assert capsys.readouterr().err == "the folder that this was started in is gone: change into another one\n"


def test_a_name_that_the_output_cannot_hold_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.BytesIO()

    def show() -> None:
        print("größe", flush=True)
        raise KeyboardInterrupt

    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(shown, encoding="ascii", errors="strict"))
    monkeypatch.setattr(cli, "app", show)
    monkeypatch.setattr(cli, "_load_commands", list)
    assert run(monkeypatch) == 130
    assert shown.getvalue() == b"gr\\xf6\\xdfe\n"


def test_compare_shows_scores_and_weights(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], endpoint: Endpoint, tmp_path: Path
) -> None:
    (tmp_path / "image.png").write_bytes(b"png")
    other = tmp_path / "product.json"
    other.write_text(json.dumps({"title": "b", "images": ["image.png"]}, indent=2))
    assert run(monkeypatch, "compare", '{"title": "a"}', str(other), "--server", endpoint.address) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines if line] == ["cosine", "euclidean", "learned", "weights", "left", "right"]
    assert lines[-3:] == [["weights", "text", "image"], ["left", "1.000", "-"], ["right", "0.333", "0.667"]]


def test_info_says_what_a_server_offers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], endpoint: Endpoint
) -> None:
    assert run(monkeypatch, "info", "--server", endpoint.address) == 0
    found = json.loads(capsys.readouterr().out)
    with likeness_client.Client(endpoint.address) as client:
        expected = client.info()
    assert (found["space"], found["version"]) == (expected.space, expected.version)
    assert found["signatures"] == [*expected.signatures]
    assert found["schema"]["text_fields"] == [*expected.schema.text_fields]
    assert found["schema"]["max_photos"] == 1
    assert found["unready"] == {}


@pytest.mark.parametrize(
    ("left", "message"),
    [
        ("none.json", "left: cannot read none.json: No such file or directory; give one JSON object, or the path"),
        ("a" * 100_000, f"left: cannot read {'a' * 200}: File name too long; give"),
        ("{broken", "column 2 (char 1); give one JSON object, or the path of a file that holds one"),
        ('{"title": 1}', "'title' must be a string"),
        ("{}", "left product: has none of text, image, attributes"),
    ],
)
def test_compare_says_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    endpoint: Endpoint,
    left: str,
    message: str,
) -> None:
    assert run(monkeypatch, "compare", left, '{"title": "b"}', "--server", endpoint.address) == 1
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


class FakeEntry:
    """An entry point that gives a command, or fails to load."""

    def __init__(self, error: Exception | None = None) -> None:
        self.module = "likeness_export.cli"
        self._error = error

    def __lt__(self, other: FakeEntry) -> bool:
        return False

    def load(self) -> typer.Typer:
        if self._error:
            raise self._error
        added = typer.Typer()

        @added.command()
        def fail(how: str) -> None:
            raise {"torch": ModuleNotFoundError("no torch", name="torch._C"), "stop": KeyboardInterrupt()}[how]

        return added


@pytest.fixture
def fresh_app(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli.app, "registered_groups", [])


@pytest.mark.usefixtures("fresh_app")
def test_commands_of_other_packages_are_merged(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "entry_points", lambda group: [FakeEntry()] if group == cli.COMMAND_GROUP else [])
    assert run(monkeypatch, "fail", "torch") == 1
    assert capsys.readouterr().err == "`torch` is missing: pip install 'likeness[export]'\n"
    assert run(monkeypatch, "fail", "stop") == 130
    assert capsys.readouterr().err.strip() == "interrupted"


@pytest.mark.usefixtures("fresh_app")
def test_every_paragraph_of_a_help_is_filled(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def told() -> None:
        """Say something.

        More of it, with a line
        break and [brackets].
        """

    other = typer.Typer()
    other.command()(told)
    cli.app.add_typer(other)
    assert run(monkeypatch, "told", "--help") == 0
    assert "More of it, with a line break and [brackets]." in capsys.readouterr().out


@pytest.mark.usefixtures("fresh_app")
def test_a_command_that_could_not_be_loaded_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = FakeEntry(ModuleNotFoundError("no torch", name="torch"))
    monkeypatch.setattr(cli, "entry_points", lambda group: [broken])  # noqa: ARG005
    assert run(monkeypatch, "train") == 2
    assert "likeness_export are not available: `torch` is missing: pip install" in capsys.readouterr().err
    assert run(monkeypatch, "compare") == 2
    assert "not available" not in capsys.readouterr().err
