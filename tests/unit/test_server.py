"""What `likeness serve` refuses before it starts anything, and how it waits for what it has started."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from threading import Timer
from typing import TYPE_CHECKING, Any

import grpc  # type: ignore[import-untyped]  # ships no types
import pytest
from likeness_client.errors import InputError
from likeness_export.cli import app
from likeness_export.repository.servable import MANIFEST, check_repository, space_of
from likeness_export.server.serve import (
    ServeConfig,
    ServeError,
    Tritonserver,
    _address_of,
    _check_ports,
    _command,
    _runtime,
    _wait_until_ready,
    serving,
    unused_ports,
)
from likeness_export.server.shared_memory import _clear_abandoned, shared_memory
from tritonclient.grpc import service_pb2, service_pb2_grpc
from typer.testing import CliRunner

if TYPE_CHECKING:
    from tests.unit.conftest import Exported


def test_a_missing_plan_is_built_by_another_export(rendered_repository: Path) -> None:
    for model in rendered_repository.glob("*/configs"):
        (next(model.parent.glob("[0-9]*")) / "model.onnx").touch()
    check_repository(rendered_repository, "onnx")
    with pytest.raises(
        InputError, match=r"has no model\.plan.*--repository .* --tensorrt`, on the GPU that will serve$"
    ):
        check_repository(rendered_repository, "tensorrt")


def test_what_is_no_repository_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place, profile, said in (
        (tmp_path / "file", "cpu", "file is not a folder; make a repository with `likeness export"),
        (tmp_path, "cpu", "holds no models; make a repository with `likeness export"),
        (tmp_path, "gpu", "there is no profile 'gpu', only cpu, onnx, tensorrt"),
    ):
        with pytest.raises(InputError, match=said):
            check_repository(place, profile)


def test_without_networks_it_says_how_to_export_them(rendered_repository: Path) -> None:
    with pytest.raises(InputError, match=r"has no model\.onnx, .* with `likeness export RUN --repository [^ ]*`$"):
        check_repository(rendered_repository, "onnx")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (
            lambda folder: (folder / "image_encoder/1/model.onnx").write_bytes(b"half"),
            "is not the file that was exported",
        ),
        (lambda folder: (folder / "embed_image/config.pbtxt").unlink(), "is missing"),
        (lambda folder: (folder / "image_preprocess/1/assets/image.json").unlink(), "is missing"),
        (lambda folder: make_folder(folder / "image_encoder/1/model.onnx"), "is missing"),
        (
            lambda folder: change(folder / "image_encoder/configs/cpu.pbtxt", '"[0-9a-f]{16}"', '"0"'),
            "of the space 0, ",
        ),
        (lambda folder: change(folder / "image_encoder/config.pbtxt", "name", "nime"), "is no configuration"),
        (lambda folder: change(folder / MANIFEST, "^{", "["), "cannot be read"),
        (lambda folder: (folder / MANIFEST).write_text("[]", encoding="utf-8"), "cannot be read"),
        (lambda folder: (folder / MANIFEST).write_text("{}", encoding="utf-8"), "cannot be read"),
        (lambda folder: change(folder / MANIFEST, '"sha256": {[^}]*}', '"sha256": 1'), "cannot be read"),
    ],
)
def test_a_copy_that_is_not_whole_is_not_served(
    exported: Exported, tmp_path: Path, damage: Callable[[Path], object], said: str
) -> None:
    folder = tmp_path / "repository"
    shutil.copytree(exported.repository, folder)
    change(folder / "image_encoder/config.pbtxt", "count: 1", "count: 2")  # which anybody may
    next(folder.rglob(".gitkeep")).unlink()  # as some copies do
    check_repository(folder, "cpu")
    damage(folder)
    with pytest.raises(InputError, match=rf"{said}.*: copy the repository again, all of it, or export it again; if"):
        check_repository(folder, "cpu")


def test_a_repository_without_a_manifest_is_served_with_a_warning(
    exported: Exported, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "repository"
    shutil.copytree(exported.repository, folder, ignore=shutil.ignore_patterns(MANIFEST, "similarity"))
    check_repository(folder, "cpu")
    assert f"{folder} has no {MANIFEST}" in caplog.text
    (folder / "image_encoder/1/model.py").unlink()
    check_repository(folder, "onnx")
    with pytest.raises(InputError, match=r"image_encoder has no model\.py, which profile cpu needs"):
        check_repository(folder, "cpu")


@pytest.mark.parametrize("held", ["", "[]", "{}"])
def test_a_damaged_manifest_names_no_space(tmp_path: Path, held: str) -> None:
    (tmp_path / MANIFEST).write_text(held, encoding="utf-8")
    assert space_of(tmp_path) is None


def test_a_numpy_that_the_server_from_pip_cannot_work_with_is_refused(
    rendered_repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be ready, and the first text that it is sent would end a model's process."""
    found = Tritonserver(Path("bin/tritonserver"), package=Path("pytriton"))
    monkeypatch.setattr("likeness_export.server.serve.find_tritonserver", lambda: found)
    monkeypatch.setattr("likeness_export.server.serve.version", {"numpy": "2.4.6"}.__getitem__)
    grpc, http, metrics = unused_ports(3)
    config = ServeConfig(repository=rendered_repository, grpc_port=grpc, http_port=http, metrics_port=metrics)
    with pytest.raises(InputError, match=r"with numpy 2\.4\.6 .*: pip install 'numpy<2'"), serving(config):
        pass


def change(file: Path, old: str, new: str) -> None:
    changed, count = re.subn(old, new, file.read_text(encoding="utf-8"))
    assert count
    file.write_text(changed, encoding="utf-8")


def make_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def test_models_that_a_killed_server_left_are_ended_and_those_of_others_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("likeness_export.server.shared_memory._SHARED_MEMORY", tmp_path)
    start = "triton_python_backend_shm_region_"
    claim = tmp_path / f"{start}likeness-serve-killed_by_a_test.claim"
    claim.touch()
    kill, ended = os.kill, list[int]()

    def kill_late(process: int, signum: int) -> None:
        ended.append(process)
        kill(process, signum)
        raise ProcessLookupError  # as if it had ended just before

    with ExitStack() as running:

        def model(program: str, server: str) -> subprocess.Popen[bytes]:
            names = ["triton_python_backend_stub", f"{start}{server}-memory"]  # whoever looks at one may name it, too
            command = [program, "-c", "import time; time.sleep(600)", *names]
            process = running.enter_context(subprocess.Popen(command, executable=sys.executable))
            running.callback(process.kill)
            while not Path(f"/proc/{process.pid}/cmdline").read_bytes():  # for a moment it has none
                time.sleep(0.001)
            return process

        left = model("triton_python_backend_stub", "likeness-serve-killed_by_a_test")
        others = [
            model("triton_python_backend_stub", "likeness-serve-another_of_a_test"),
            model("tail", "likeness-serve-killed_by_a_test"),
        ]
        with monkeypatch.context() as patch:
            patch.setattr("os.kill", kill_late)
            _clear_abandoned()
        assert left.wait(20) == -signal.SIGKILL
        assert ended == [left.pid]
        assert [other.poll() for other in others] == [None, None]
        assert not claim.exists()


def test_memory_that_a_killed_server_left_is_freed_and_that_of_others_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("likeness_export.server.shared_memory._SHARED_MEMORY", tmp_path)
    # Triton's own beginning: whoever asks to register memory of such a name is refused.
    start = "triton_python_backend_shm_region_"
    killed = [tmp_path / f"{start}likeness-serve-killed{suffix}" for suffix in (".claim", "1", "2")]
    folders = [tmp_path / "temporary" / f"likeness-serve-{name}" for name in ("killed", "nobodys")]
    for folder in folders:
        (folder / "backends").mkdir(parents=True)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    others = [tmp_path / f"{start}{name}" for name in ("1", "likeness-serve-nobodys", "likeness-serve-*.claim")]
    for path in (*killed, *others):
        path.touch()
    with shared_memory("likeness-serve-first") as first:
        assert first == f"{start}likeness-serve-first"
        own = tmp_path / f"{first}1"
        own.touch()
        with shared_memory("likeness-serve-second"):
            assert own.exists()
        assert own.exists()
    assert [*(tmp_path / "temporary").iterdir()] == folders[1:]
    with pytest.raises(KeyboardInterrupt), shared_memory("likeness-serve-third"):
        raise KeyboardInterrupt
    assert sorted(path for path in tmp_path.iterdir() if path.is_file()) == sorted(others)


def test_memory_of_another_user_is_not_freed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even by root, whom nothing else would stop."""
    monkeypatch.setattr("likeness_export.server.shared_memory._SHARED_MEMORY", tmp_path)
    theirs = tmp_path / "triton_python_backend_shm_region_likeness-serve-theirs.claim"
    theirs.touch()
    monkeypatch.setattr("os.getuid", lambda: theirs.stat().st_uid + 1)
    _clear_abandoned()
    assert theirs.exists()


def test_a_server_that_starts_at_the_same_time_is_not_taken_for_a_killed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder would go, too."""
    monkeypatch.setattr("likeness_export.server.shared_memory._SHARED_MEMORY", tmp_path)
    lock = fcntl.flock

    def lock_late(file: Any, how: int) -> None:
        if how == fcntl.LOCK_EX:
            _clear_abandoned()  # as the other one does
        lock(file, how)

    monkeypatch.setattr("fcntl.flock", lock_late)
    with _runtime() as runtime, shared_memory(runtime.name):
        assert runtime.is_dir()
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("other", "other: one repository is served"),
        ("--grpc-port=9", "--grpc-port=9: likeness serve says that itself"),
        ("--model-repository", "--model-repository: likeness serve says that itself"),
        ("--id=x", "--id=x: likeness serve says that itself"),
    ],
)
def test_options_that_are_not_for_tritonserver_are_refused(tmp_path: Path, option: str, said: str) -> None:
    with pytest.raises(InputError, match=said), serving(ServeConfig(repository=tmp_path, options=(option,))):
        pass


def test_options_of_tritonserver_come_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[ServeConfig] = []

    def refuse(config: ServeConfig) -> None:
        asked.append(config)
        raise InputError("enough")

    monkeypatch.setattr("likeness_export.server.serve.serving", refuse)
    CliRunner().invoke(app, ["serve", str(tmp_path), "--http-port", "9", "--", "--grpc-max-connection-age=1", "--x"])
    (config,) = asked
    assert (config.http_port, config.options) == (9, ("--grpc-max-connection-age=1", "--x"))
    command, _ = _command(Tritonserver(Path("tritonserver")), config, "cpu", tmp_path, "memory")
    assert command[-2:] == ["--grpc-max-connection-age=1", "--x"]


def test_a_host_that_is_none_is_no_fault_of_the_port() -> None:
    with pytest.raises(
        InputError, match=r"^no such host cannot be resolved: give an address of this machine with --host"
    ):
        _address_of("no such host")


def test_names_become_addresses_and_ipv6_is_written_as_each_endpoint_reads_it(tmp_path: Path) -> None:
    assert [_address_of(host) for host in ("127.0.0.1", "localhost", "::1")] == ["127.0.0.1", "127.0.0.1", "::1"]
    config = ServeConfig(repository=tmp_path, host="::1")
    assert config.address == "[::1]:8001"
    command, _ = _command(Tritonserver(Path("tritonserver")), config, "cpu", tmp_path, "memory")
    assert {"--grpc-address=[::1]", "--http-address=ipv6:::1", "--metrics-address=ipv6:::1"} <= {*command}


def test_a_container_s_server_keeps_its_own_libraries_and_computes_fp32_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LD_LIBRARY_PATH", "NVIDIA_TF32_OVERRIDE"):
        monkeypatch.delenv(name, raising=False)
    config = ServeConfig(repository=tmp_path)
    _, environment = _command(Tritonserver(Path("tritonserver")), config, "onnx", tmp_path, "memory")
    assert "LD_LIBRARY_PATH" not in environment
    assert environment["NVIDIA_TF32_OVERRIDE"] == "0"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("my files", "^TMPDIR is .*my files, which a shell"),
        ("not there", "^no temporary folder can be made .* TMPDIR$"),
    ],
)
def test_a_temporary_folder_that_is_of_no_use_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, said: str
) -> None:
    (tmp_path / "my files").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / name))
    with pytest.raises(InputError, match=said), _runtime():
        pass
    assert not list((tmp_path / "my files").iterdir())


def test_the_python_backend_needs_a_folder_that_no_variable_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("likeness_export.server.serve._BACKEND_TEMPORARY", tmp_path / "read-only")
    with pytest.raises(InputError, match=r"read-only cannot be written to, .* whatever TMPDIR says"), _runtime():
        pass


def test_a_port_may_be_used_once_only() -> None:
    with pytest.raises(InputError, match="--grpc-port 8001, --http-port 8000, --metrics-port 8000: the three must"):
        _check_ports(ServeConfig(repository=Path(), metrics_port=8000))


def test_a_busy_port_of_ipv6() -> None:
    config = ServeConfig.on_unused_ports(Path(), Path("unused.log"), host="::1")
    with socket.socket(socket.AF_INET6) as other:
        try:
            other.bind(("::1", config.http_port))
        except OSError:
            pytest.skip("no IPv6 here")
        other.listen()
        with pytest.raises(InputError, match=rf"^port {config.http_port} on ::1 cannot be used .* with --http-port$"):
            _check_ports(config)


@pytest.mark.parametrize("option", ["--grpc-port", "--http-port", "--metrics-port"])
@pytest.mark.parametrize("port", ["0", "99999"])
def test_a_port_that_cannot_be_is_refused_by_name(tmp_path: Path, option: str, port: str) -> None:
    found = CliRunner().invoke(app, ["serve", str(tmp_path), option, port])
    assert found.exit_code == 2
    assert option in found.output


def test_the_help_keeps_its_words() -> None:
    found = CliRunner().invoke(app, ["export", "--help"], env={"COLUMNS": "300"})
    assert "whose section `serving` takes the place of the run's" in found.output


class Ready(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]  # generated, untyped
    """A server that is ready as soon as it answers."""

    def ServerMetadata(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802
        return service_pb2.ServerMetadataResponse(name="mine")

    def ServerReady(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802
        return service_pb2.ServerReadyResponse(ready=True)


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """Start something that does not end by itself."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as started:
        yield started
        started.kill()


def test_readiness_is_noticed_soon_and_without_a_proxy(
    process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    (port,) = unused_ports(1)
    server = grpc.server(ThreadPoolExecutor(2))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Ready(), server)
    started_s: list[float] = []

    def start() -> None:
        server.add_insecure_port(f"127.0.0.1:{port}")
        server.start()
        started_s.append(time.monotonic())

    Timer(1.2, start).start()  # gRPC's own pauses end after 1 s and after 2.6 s
    config = ServeConfig(repository=Path(), grpc_port=port, metrics_port=port, ready_timeout_s=10)
    _wait_until_ready(process, config, "mine")
    assert time.monotonic() - started_s[0] < 1
    server.stop(grace=None)


def test_another_server_on_the_same_ports_is_not_taken_for_the_one_that_was_started(
    process: subprocess.Popen[bytes],
) -> None:
    """Of two that load at the same time, neither finds the ports taken."""
    server = grpc.server(ThreadPoolExecutor(2))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Ready(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    config = ServeConfig(repository=Path(), grpc_port=port, metrics_port=port, ready_timeout_s=1)
    with pytest.raises(ServeError, match=r"not ready after 1 s"):
        _wait_until_ready(process, config, "another")
    _wait_until_ready(process, config, "mine")
    server.stop(grace=None)


def test_a_server_that_takes_longer_can_be_given_longer(process: subprocess.Popen[bytes]) -> None:
    grpc_port, metrics_port = unused_ports(2)
    config = ServeConfig(repository=Path(), grpc_port=grpc_port, metrics_port=metrics_port, ready_timeout_s=0.2)
    with pytest.raises(ServeError, match=r"not ready after 0\.2 s \(--ready-timeout-s allows more\): see the log"):
        _wait_until_ready(process, config, "mine")
