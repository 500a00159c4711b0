"""Starting a real tritonserver on a model repository, and stopping it without leaving anything behind."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from likeness_client.errors import InputError, LikenessError, MissingExtraError

from likeness_export.repository.servable import NETWORK_FILES, check_repository
from likeness_export.server.shared_memory import OWN, STUB, shared_memory

CONTAINER_SERVER = Path("/opt/tritonserver/bin/tritonserver")
_LOADED_AT_ONCE = 16  # models that load side by side; the default, two for each core, leaves the cores idle
_OWN_OPTIONS = {f"--{what}-{of}" for what in ("grpc", "http", "metrics") for of in ("address", "port")}
_OWN_OPTIONS |= {"--model-repository", "--model-config-name", "--id"}
PROBE_CHANNEL = [
    # gRPC's own pauses grow to seconds, in which a server that is ready goes unnoticed.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 250),
    ("grpc.min_reconnect_backoff_ms", 1_000),  # no pause, but how long a connection may take
    ("grpc.enable_http_proxy", 0),  # the server is on this machine
]
"""How the channel to a server of one's own is set up that is only to find out how it is."""
_BACKEND_TEMPORARY = Path("/tmp")  # the python backend makes a folder of its own there, whatever TMPDIR says
_STOP_S = 20.0  # how long a process may take to end, a server to unload its models, before its group is killed
# The kernel sends SIGTERM (15) to a server whose starter is gone, be it by SIGKILL: PR_SET_PDEATHSIG (1). A program
# that then becomes the server sets it, because `preexec_fn` may deadlock in a process with threads.
_TIE = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 15); "
    "os.getppid() == int(sys.argv[1]) or sys.exit(1); os.execv(sys.argv[2], sys.argv[2:])"
)


class ServeError(LikenessError):
    """The server cannot be started, or ended by itself; the message says why."""


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """How to serve.

    Attributes:
        repository: the model repository.
        profile: ``cpu``, ``onnx`` or ``tensorrt``; empty: ``cpu`` with the server from pip, ``onnx`` with any other.
        host: address to listen on; loopback unless told otherwise.
        grpc_port: where clients connect.
        http_port: HTTP endpoint, also for health checks.
        metrics_port: Prometheus metrics.
        ready_timeout_s: how long loading may take.
        log_file: where the server's log goes; None: to standard error.
        options: given to tritonserver after those above.
    """

    repository: Path
    profile: str = ""
    host: str = "127.0.0.1"
    grpc_port: int = 8001
    http_port: int = 8000
    metrics_port: int = 8002
    ready_timeout_s: float = 120.0
    log_file: Path | None = None
    options: tuple[str, ...] = ()

    @classmethod
    def on_unused_ports(cls, repository: Path, log_file: Path, **settings: Any) -> ServeConfig:
        """Describe a server of one's own, beside any others on this machine; `settings` as above."""
        settings |= zip(("grpc_port", "http_port", "metrics_port"), unused_ports(3), strict=True)
        return cls(repository=repository, log_file=log_file, **settings)

    @property
    def address(self) -> str:
        """Where clients connect."""
        return self.at(self.grpc_port)

    def at(self, port: int) -> str:
        """Return the address of one of the ports."""
        return f"[{self.host}]:{port}" if ":" in self.host else f"{self.host}:{port}"


@dataclass(frozen=True)
class Tritonserver:
    """A server binary. ``package`` is the folder of the pip package that carries it, if one does."""

    binary: Path
    package: Path | None = None

    @property
    def profile(self) -> str:
        """The profile that fits it: the server from pip has no backend but Python's."""
        return "cpu" if self.package else "onnx"


def find_tritonserver() -> Tritonserver:
    """Find a server: the one on PATH, the container's, or the one inside the nvidia-pytriton package.

    Raises:
        MissingExtraError: there is none.
    """
    if on_path := shutil.which("tritonserver"):
        return Tritonserver(Path(on_path))
    if CONTAINER_SERVER.is_file():
        return Tritonserver(CONTAINER_SERVER)
    spec = importlib.util.find_spec("pytriton")  # not imported: that would load all of it
    for place in (spec.submodule_search_locations or []) if spec else []:
        package = Path(place) / "tritonserver"
        if (package / "bin" / "tritonserver").is_file():
            return Tritonserver(package / "bin" / "tritonserver", package)
    raise MissingExtraError("serve", "a tritonserver")


@contextmanager
def serving(config: ServeConfig) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server for the length of a block; it is ready when the block starts and gone when it ends.

    The server also ends with the thread that entered the block, however that one ends.

    Raises:
        InputError: no such profile, the repository is incomplete, no such host, a port is taken, an option is one that
            is set here, or there is a NumPy that the server cannot work with.
        ServeError: the server did not become ready.
        MissingExtraError: there is no server.
    """
    server = find_tritonserver()
    profile = config.profile or server.profile
    _check_options(config.options)
    config = replace(config, host=_address_of(config.host))
    _check_ports(config)
    if server.package and profile in NETWORK_FILES.keys() - {"cpu"}:
        raise InputError(
            f"the tritonserver from pip has no backend for profile {profile}: use profile cpu or a container"
        )
    if server.package and not (numpy := version("numpy")).startswith("1."):  # ready, it breaks at the first text
        raise InputError(
            f"with numpy {numpy} the tritonserver from pip cannot read what is sent to it: pip install 'numpy<2'"
        )
    check_repository(config.repository, profile)
    with _runtime() as runtime, shared_memory(runtime.name) as memory, _log(config.log_file) as log:
        command, environment = _command(server, config, profile, runtime, memory)
        # A process group of its own: Ctrl-C reaches this process only, which then stops the group in order.
        tied = [sys.executable, "-ISc", _TIE, str(os.getpid()), *command]
        process = subprocess.Popen(tied, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            _wait_until_ready(process, config, runtime.name)
            yield process
        finally:
            stop_group(process)


def unused_ports(count: int) -> list[int]:
    """Return ports of the loopback interface that nothing listens on right now."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in sockets:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in sockets]


def stop_group(process: subprocess.Popen[bytes]) -> None:
    """Stop a process that leads a group, and then what is left of its group; a second Ctrl-C only ends the patience."""
    try:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_S)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # model processes or workers that outlived it, if any
        process.wait()


def _address_of(host: str) -> str:
    """Return a host's numeric address, of IPv4 where there is one: Triton's HTTP endpoint takes no names."""
    try:
        return str(min(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM))[4][0])
    except (socket.gaierror, UnicodeError) as error:  # UnicodeError: a label of it is empty or too long
        raise InputError(
            f"{host} cannot be resolved: give an address of this machine with --host, e.g. 0.0.0.0"
        ) from error


def _check_options(options: tuple[str, ...]) -> None:
    if options and not options[0].startswith("--"):
        raise InputError(f"{options[0]}: one repository is served; options of tritonserver itself follow after --")
    for option in options:
        if option.split("=")[0] in _OWN_OPTIONS:
            raise InputError(f"{option}: likeness serve says that itself; see its own options, `likeness serve --help`")


def _check_ports(config: ServeConfig) -> None:
    ports = {"--grpc-port": config.grpc_port, "--http-port": config.http_port, "--metrics-port": config.metrics_port}
    if len({*ports.values()}) < len(ports):
        given = ", ".join(f"{option} {port}" for option, port in ports.items())
        raise InputError(f"{given}: the three must differ")
    for option, port in ports.items():
        with socket.socket(socket.AF_INET6 if ":" in config.host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((config.host, port))
            except OSError as error:
                raise InputError(
                    f"port {port} on {config.host} cannot be used ({error.strerror}): choose another with {option}"
                ) from error


def _command(
    server: Tritonserver, config: ServeConfig, profile: str, runtime: Path, memory: str
) -> tuple[list[str], dict[str, str]]:
    is_ipv6 = ":" in config.host
    grpc_host, http_host = (f"[{config.host}]", f"ipv6:{config.host}") if is_ipv6 else (config.host, config.host)
    command = [
        str(server.binary),
        f"--id={runtime.name}",
        f"--model-repository={_for_shells(config.repository.resolve(), runtime)}",
        f"--model-config-name={profile}",
        f"--grpc-address={grpc_host}",
        f"--grpc-port={config.grpc_port}",
        f"--http-address={http_host}",
        f"--http-port={config.http_port}",
        f"--metrics-address={http_host}",
        f"--metrics-port={config.metrics_port}",
        "--exit-timeout-secs=10",
        f"--backend-config=python,shm-region-prefix-name={memory}",
        # Every configuration is written whole: to complete one, Triton would start each Python model a first time.
        "--disable-auto-complete-config",
        # Most of a start is waiting for processes to come up, so let all of them come up at once.
        f"--model-load-thread-count={_LOADED_AT_ONCE}",
    ]
    environment = dict(os.environ)
    # The python backend finds its packages through the `python3` on PATH.
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")])
    # What is fp32 in the file is computed in fp32, on GPUs that would else take TF32.
    environment.setdefault("NVIDIA_TF32_OVERRIDE", "0")
    # Every model process loads numpy, whose BLAS would start a thread for each core and use none of them.
    environment.setdefault("OPENBLAS_NUM_THREADS", "1")
    # onnxruntime reports its use to its maker unless told not to; a server of one's own should talk to nobody.
    environment.setdefault("ORT_DISABLE_TELEMETRY", "1")
    if server.package:
        # Its stubs look for this interpreter's library. A container's own server must not: beside the system's Python
        # lies the host's driver, which would come before the container's newer one.
        libraries = [str(sysconfig.get_config_var("LIBDIR")), environment.get("LD_LIBRARY_PATH", "")]
        environment["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, libraries))
        backend = runtime / "backends" / "python"
        _link_python_backend(server.package, backend)
        command += [f"--backend-directory={backend.parent}", f"--cache-directory={server.package / 'caches'}"]
    return [*command, *config.options], environment


def _for_shells(repository: Path, runtime: Path) -> Path:
    """Return a repository's path, or a link to it where a shell would not take the path as it is.

    Triton's python backend starts each model by a shell, in whose command paths stand without quotes.
    """
    if _is_plain(repository):
        return repository
    link = runtime / "repository"
    link.symlink_to(repository)
    return link


def _is_plain(path: Path) -> bool:
    return shlex.quote(str(path)) == str(path)


def _link_python_backend(package: Path, backend: Path) -> None:
    """Make a folder of links: this Python's stub must lie beside the backend; site-packages is not ours to write."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = package / "python_backend_stubs" / version / STUB
    if not stub.is_file():
        raise ServeError(f"the installed tritonserver has no python backend for Python {version}: use 3.11")
    backend.mkdir(parents=True)
    for path in [*(package / "backends" / "python").glob("*.*"), stub]:
        (backend / path.name).symlink_to(path)


@contextmanager
def _runtime() -> Iterator[Path]:
    """Give a folder for what a server is started with."""
    if not os.access(_BACKEND_TEMPORARY, os.W_OK):  # Triton would abort
        raise InputError(
            f"{_BACKEND_TEMPORARY} cannot be written to, as Triton's python backend has to, whatever TMPDIR says: "
            f"mount a folder there (docker run --tmpfs {_BACKEND_TEMPORARY})"
        )
    try:
        folder = tempfile.TemporaryDirectory(prefix=OWN)
    except OSError as error:  # a container may be read-only
        raise InputError(
            f"no temporary folder can be made ({error.strerror}): name a place for it by TMPDIR"
        ) from error
    with folder:
        runtime = Path(folder.name)
        if not _is_plain(runtime):
            raise InputError(f"TMPDIR is {runtime.parent}, which a shell reads otherwise: name a folder without spaces")
        yield runtime


@contextmanager
def _log(path: Path | None) -> Iterator[int]:
    if path is None:
        yield 2  # standard error: Triton's log goes to both, and standard output is the command's own
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as out:
        yield out.fileno()


def _wait_until_ready(process: subprocess.Popen[bytes], config: ServeConfig, name: str) -> None:
    """Wait until the server of this name answers: one that was started on the same ports at the same time may, too."""
    from tritonclient.grpc import InferenceServerClient
    from tritonclient.utils import InferenceServerException

    where = f"see {config.log_file}" if config.log_file else "see the log above"
    deadline = time.monotonic() + config.ready_timeout_s
    with InferenceServerClient(config.address, channel_args=PROBE_CHANNEL) as client:
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise ServeError(
                    f"tritonserver ended with code {process.returncode} while it loaded the models: {where}"
                )
            try:
                mine = client.get_server_metadata(client_timeout=1.0).name == name
                # Triton opens the metrics port last: then all that is promised answers.
                if mine and client.is_server_ready(client_timeout=1.0) and _listens(config.host, config.metrics_port):
                    return
            except InferenceServerException:
                pass  # not listening yet
            time.sleep(0.1)
    waited = f"{config.ready_timeout_s:g} s (--ready-timeout-s allows more)"
    raise ServeError(f"tritonserver was not ready after {waited}: {where}")


def _listens(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=1.0):
            return True
    except OSError:
        return False
