"""`likeness serve` as its users meet it: it says when it is ready, and leaves nothing behind however it ends."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from likeness_client import Client, Product
from likeness_client.contract import embed_model, encoder_model, preprocess_model
from likeness_export.repository.servable import NETWORK_FILES
from likeness_export.server import watch as server_watch
from likeness_export.server.serve import ServeConfig, ServeError, find_tritonserver, serving
from tritonclient.grpc import InferenceServerClient

pytestmark = pytest.mark.server

LIKENESS = Path(sys.executable).with_name("likeness")
_TIMEOUT_S = 90.0


@pytest.fixture(scope="module")
def small(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The part of the repository that embeds attributes, which starts in seconds."""
    folder = tmp_path_factory.mktemp("small") / "repository"
    name = "attributes"
    for model in (preprocess_model(name), encoder_model(name), embed_model(name)):
        shutil.copytree(repository / model, folder / model)
    return folder


@dataclass(frozen=True)
class Process:
    """One line of /proc. ``start`` tells it from a later process of the same number."""

    pid: int
    parent: int
    session: int
    start: int


def processes() -> list[Process]:
    """Return all processes that are not merely waiting to be reaped."""
    found = []
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent, _, session, *rest = place.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended meanwhile
        if state not in "ZX":
            found.append(Process(int(place.parent.name), int(parent), int(session), int(rest[15])))
    return found


def family(pid: int) -> set[Process]:
    """Return all descendants of a process, and whatever shares a session with one of them."""
    everything = processes()
    found = {process for process in everything if process.parent == pid}
    while more := {p for p in everything if any(p.parent == q.pid or p.session == q.pid for q in found)} - found:
        found |= more
    return found


def shared_memory(members: set[Process]) -> set[Path]:
    lines = [line for member in members for line in Path(f"/proc/{member.pid}/maps").read_text().splitlines()]
    return {Path(line.split()[-1]) for line in lines if "/dev/shm/" in line and not line.endswith("(deleted)")}


def still_there(members: set[Process]) -> set[int]:
    known = {(member.pid, member.start) for member in members}
    return {process.pid for process in processes() if (process.pid, process.start) in known}


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait until it is true."""
    deadline = time.monotonic() + _TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


@dataclass(frozen=True)
class Serving:
    """A `likeness serve` that was started."""

    process: subprocess.Popen[str]
    ports: list[int]
    temporary: Path

    def wait_until_ready(self) -> str:
        """Return the line that says so."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "it ended before it was ready"
        return line

    def end(self, number: signal.Signals) -> tuple[int, str]:
        """Send a signal; return the exit code and what was said last."""
        self.process.send_signal(number)
        said, _ = self.process.communicate(timeout=_TIMEOUT_S)
        return self.process.returncode, said


@contextmanager
def serve(repository: Path, ports: list[int], tmp_path: Path) -> Iterator[Serving]:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    with (tmp_path / "stderr").open("w") as stderr:
        process = subprocess.Popen(
            [LIKENESS, "serve", repository, *options(ports)],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env={**os.environ, "TMPDIR": str(temporary)},
        )
    try:
        yield Serving(process, ports, temporary)
    finally:
        process.kill()  # what it leaves behind then is what a test below is about
        process.communicate()


def options(ports: list[int]) -> list[str]:
    names = ("--grpc-port", "--http-port", "--metrics-port")
    return [word for name, port in zip(names, ports, strict=True) for word in (name, str(port))]


def refused(*arguments: str | Path) -> str:
    """Run `likeness serve`, which must fail with one line; return it."""
    done = subprocess.run(
        [LIKENESS, "serve", *arguments], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr.strip()


@pytest.fixture
def _as_in_a_terminal() -> Iterator[None]:
    """A hang-up means what it does there: who runs the tests with nohup ignores it, and servers would inherit that."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("_as_in_a_terminal")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_it_says_when_all_endpoints_answer_and_stops_cleanly(
    small: Path, ports: list[int], tmp_path: Path, number: signal.Signals
) -> None:
    grpc_port, http_port, metrics_port = ports
    with serve(small, ports, tmp_path) as serving:
        expected = (
            f"ready: gRPC 127.0.0.1:{grpc_port}  HTTP 127.0.0.1:{http_port}  metrics 127.0.0.1:{metrics_port}/metrics\n"
        )
        assert serving.wait_until_ready() == expected
        with urllib.request.urlopen(f"http://127.0.0.1:{http_port}/v2/health/ready") as answer:
            assert answer.status == 200
        with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics") as answer:
            assert b"nv_inference_request_success" in answer.read()
        with Client(f"127.0.0.1:{grpc_port}") as client:
            assert client.info().signatures == ("attributes",)
            assert client.embed([Product(attributes={"kind": "cushion"})]).vectors.shape == (1, client.info().dimension)
        members = family(serving.process.pid)
        assert len(members) == 3, "the server and its two models that compute"
        memory = shared_memory(members)
        assert memory
        assert serving.end(number) == (0, "stopped\n")
        until(lambda: not still_there(members), "all of its processes are gone")
        assert not [place for place in memory if place.exists()]
        assert not list(serving.temporary.iterdir())


def test_ready_means_that_every_step_has_computed_whatever_host_and_path_are_called(
    small: Path, tmp_path: Path
) -> None:
    """The host may be a name, and the path one that a shell would read otherwise."""
    repository = shutil.copytree(small, tmp_path / "my 'shop' & more")
    config = ServeConfig.on_unused_ports(repository, tmp_path / "log", host="localhost")
    with serving(config):
        with InferenceServerClient(config.address) as stub:
            steps = stub.get_inference_statistics().model_stats
        with urllib.request.urlopen(f"http://{config.at(config.metrics_port)}/metrics") as answer:
            metrics = answer.read().decode()
        with Client(config.address) as client:
            assert client.info().signatures == ("attributes",)
    computed = {step.name: step.execution_count for step in steps}
    assert computed == {preprocess_model("attributes"): 2, encoder_model("attributes"): 2, embed_model("attributes"): 0}
    unusable = [line.split()[-1] for line in metrics.splitlines() if line.startswith("likeness_unusable_items_total")]
    assert unusable == ["0"]


def test_impatience_leaves_nothing_behind_either(small: Path, ports: list[int], tmp_path: Path) -> None:
    with serve(small, ports, tmp_path) as serving:
        serving.wait_until_ready()
        members = family(serving.process.pid)
        serving.process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert serving.end(signal.SIGINT)[0] == 0
        until(lambda: not still_there(members), "all of its processes are gone")


def test_it_can_be_stopped_while_it_loads(small: Path, ports: list[int], tmp_path: Path) -> None:
    with serve(small, ports, tmp_path) as serving:
        until(lambda: len(family(serving.process.pid)) > 1, "no model was ever loaded")
        sessions = {member.session for member in family(serving.process.pid)}
        assert serving.end(signal.SIGTERM) == (0, "stopped\n")
        # Also none that was started after they were counted.
        assert not [process for process in processes() if process.session in sessions]


def test_a_killed_command_leaves_no_server_behind(small: Path, ports: list[int], tmp_path: Path) -> None:
    with serve(small, ports, tmp_path) as serving:
        serving.wait_until_ready()
        members = family(serving.process.pid)
        memory = shared_memory(members)
        assert len(members) == 3
        assert serving.end(signal.SIGKILL)[0] == -signal.SIGKILL
        try:
            until(lambda: not still_there(members), "the server outlived the command")
        finally:
            for pid in still_there(members):
                os.kill(pid, signal.SIGKILL)
        assert not [place for place in memory if place.exists()]


def test_a_server_that_dies_is_reported(small: Path, ports: list[int], tmp_path: Path) -> None:
    with serve(small, ports, tmp_path) as serving:
        serving.wait_until_ready()
        members = family(serving.process.pid)
        memory = shared_memory(members)
        assert memory
        (server,) = (member for member in members if member.parent == serving.process.pid)
        os.kill(server.pid, signal.SIGKILL)
        serving.process.communicate(timeout=_TIMEOUT_S)
        assert serving.process.returncode == 1
        assert "tritonserver ended by itself with code -9" in (tmp_path / "stderr").read_text().splitlines()[-1]
        until(lambda: not still_there(members), "all of its processes are gone")
        assert not [place for place in memory if place.exists()], "each restart would leave less of /dev/shm"


def test_a_model_whose_process_dies_ends_the_server(small: Path, ports: list[int], tmp_path: Path) -> None:
    """Triton would stay, call itself ready, and fail every request that needs the model."""
    with serve(small, ports, tmp_path) as serving:
        serving.wait_until_ready()
        time.sleep(2)  # the command has begun to watch
        members = family(serving.process.pid)
        memory = shared_memory(members)
        stub = next(m for m in members if encoder_model("attributes") in Path(f"/proc/{m.pid}/cmdline").read_text())
        os.kill(stub.pid, signal.SIGKILL)
        serving.process.communicate(timeout=_TIMEOUT_S)
        assert serving.process.returncode == 1
        said = (tmp_path / "stderr").read_text().splitlines()[-1]
        assert f"the process of model '{encoder_model('attributes')}' ended by itself" in said
        until(lambda: not still_there(members), "all of its processes are gone")
        assert not [place for place in memory if place.exists()]


@pytest.mark.usefixtures("_asked_often")
def test_a_model_that_is_unloaded_by_hand_ends_nothing(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_watch, "_ENDS_TOO_S", 0.1)
    options = ("--model-control-mode=explicit", "--load-model=*")
    config = ServeConfig.on_unused_ports(small, tmp_path / "log", options=options)
    with serving(config) as process, InferenceServerClient(config.address) as client:

        def unload() -> None:
            time.sleep(1)  # it has begun to watch
            members = len(family(process.pid))
            client.unload_model(encoder_model("attributes"))
            until(lambda: len(family(process.pid)) < members, "the model is gone")
            time.sleep(1)  # which is seen
            process.kill()

        ending = threading.Thread(target=unload)
        ending.start()
        with pytest.raises(ServeError, match="ended by itself with code -9"):
            server_watch.watch(process, config.address)
        ending.join()


@pytest.fixture
def _asked_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two questions a second to a server that hangs, which takes five of them; more to one that answers."""
    monkeypatch.setattr(server_watch, "_WATCH_S", 0.1)
    monkeypatch.setattr(server_watch, "_ANSWERS_S", 0.4)
    monkeypatch.setattr(server_watch, "_UNANSWERED", 5)


@pytest.mark.usefixtures("_asked_often")
def test_a_server_that_hangs_is_reported(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("likeness_export.server.serve._STOP_S", 1.0)
    config = ServeConfig.on_unused_ports(small, tmp_path / "log")
    with serving(config) as process:
        members = family(process.pid)
        threading.Timer(1.0, process.send_signal, [signal.SIGSTOP]).start()  # it has answered before
        with pytest.raises(ServeError, match="tritonserver hangs: it answered none of 5 questions"):
            server_watch.watch(process, config.address)
    until(lambda: not still_there(members), "all of its processes are gone")


@pytest.mark.usefixtures("_asked_often")
def test_a_server_that_answers_again_does_not_hang(small: Path, tmp_path: Path) -> None:
    config = ServeConfig.on_unused_ports(small, tmp_path / "log")
    with serving(config) as process:
        for at, number in enumerate([signal.SIGSTOP, signal.SIGCONT, signal.SIGSTOP, signal.SIGCONT, signal.SIGKILL]):
            threading.Timer(1.0 + 1.5 * at, process.send_signal, [number]).start()  # it has answered before
        with pytest.raises(ServeError, match="ended by itself with code -9"):
            server_watch.watch(process, config.address)


def test_a_model_that_cannot_be_loaded_is_reported(small: Path, ports: list[int], tmp_path: Path) -> None:
    broken = shutil.copytree(small, tmp_path / "broken")
    (broken / encoder_model("attributes") / "1" / "model.onnx").write_bytes(b"no network")
    with serve(broken, ports, tmp_path) as serving:
        said, _ = serving.process.communicate(timeout=_TIMEOUT_S)
        assert (serving.process.returncode, said) == (1, "")
    log = (tmp_path / "stderr").read_text()
    assert "tritonserver ended with code 1 while it loaded the models: see the log above" in log.splitlines()[-1]
    assert "Traceback" not in log.splitlines()[-2]
    assert not list(serving.temporary.iterdir())


@pytest.mark.parametrize("place", range(3))
def test_a_busy_port(small: Path, ports: list[int], place: int) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", ports[place]))
        other.listen()
        line = refused(small, *options(ports))
    option = options(ports)[2 * place]
    assert line.startswith(f"port {ports[place]} on 127.0.0.1 cannot be used (")
    assert line.endswith(f": choose another with {option}")


@pytest.mark.parametrize("name", NETWORK_FILES["cpu"])
def test_a_missing_model_file(small: Path, tmp_path: Path, name: str) -> None:
    incomplete = shutil.copytree(small, tmp_path / "incomplete")
    model = incomplete / encoder_model("attributes")
    (model / "1" / name).unlink()
    assert refused(incomplete).startswith(
        f"{model} has no {name}, which profile cpu needs: export into it with `likeness"
    )


def test_what_is_not_a_repository(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "nowhere", tmp_path / "file"):
        assert refused(place).startswith(f"{place} is not a folder; make a repository with `likeness export")
    assert refused(tmp_path / "empty").startswith(f"{tmp_path / 'empty'} holds no models; make a repository with")


def test_a_profile_that_cannot_be_had(small: Path) -> None:
    assert refused(small, "--profile", "gpu") == "there is no profile 'gpu', only cpu, onnx, tensorrt"
    if not find_tritonserver().package:
        assert "has no model.plan, which profile tensorrt needs" in refused(small, "--profile", "tensorrt")
        return
    for profile in ("onnx", "tensorrt"):
        expected = f"the tritonserver from pip has no backend for profile {profile}: use profile cpu or a container"
        assert refused(small, "--profile", profile) == expected
