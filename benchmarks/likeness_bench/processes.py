"""What a server's processes and the GPUs of this machine do while a load runs, where the server is on this machine."""

from __future__ import annotations

import platform
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from statistics import fmean
from typing import TypeAlias

import psutil  # type: ignore[import-untyped]  # ships no type information
from joblib import cpu_count

_CPU_INFO = Path("/proc/cpuinfo")
_CPU_NUMBERS = ("cpu family", "model", "stepping")  # not the MHz: they change from moment to moment
_GIT_TIMEOUT_S = 5.0
_NVIDIA_SMI = "nvidia-smi"
_FORWARDERS = {"docker-proxy", "rootlessport", "ssh", "kubectl"}
"""Programs that listen for a server which is somewhere else."""
_Ip: TypeAlias = IPv4Address | IPv6Address
_ANY: Mapping[int, tuple[_Ip, ...]] = {4: (IPv4Address("0.0.0.0"), IPv6Address("::")), 6: (IPv6Address("::"),)}
"""IP version -> where a process listens for calls to all addresses; at ``::`` those of IPv4 come in, too."""
_GPU_FIELDS = "name,utilization.gpu,memory.used,power.draw"


def machine() -> dict[str, str]:
    """Describe the machine that this process runs on.

    Returns:
        Its processor and the cores that may be used; where Linux names them, also the numbers that tell processors of
        one name apart.
    """
    facts = dict[str, str]()
    if _CPU_INFO.is_file():
        first, _, _ = _CPU_INFO.read_text(encoding="utf-8").partition("\n\n")  # all processors are alike
        facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first.splitlines())}
    found = {"processor": facts.get("model name") or platform.processor() or platform.machine()}
    if numbers := [facts[name] for name in _CPU_NUMBERS if name in facts]:
        found["processor's family, model, stepping"] = ", ".join(numbers)
    return found | {"cores": str(cpu_count())}


def software() -> str:
    """Return the version of likeness; where it lies in its own git checkout, also which commit, and whether changed."""
    found, root = version("likeness"), Path(__file__).parents[2]
    if not (root / ".git").exists():  # installed, maybe inside the checkout of something else
        return found
    command = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_GIT_TIMEOUT_S)
    except (OSError, subprocess.SubprocessError):
        return found
    return f"{found} ({done.stdout.strip()})"


@dataclass(frozen=True, kw_only=True)
class ProcessFigures:
    """What a server and its children used.

    Attributes:
        processes: the most at a time.
        cpu_s: seconds of CPU time, user and system.
        cores: CPU seconds per second.
        peak_rss_mb: the largest sum of resident memory seen, in 10^6 bytes; pages that are shared count several times.
    """

    processes: int
    cpu_s: float
    cores: float
    peak_rss_mb: float


@dataclass(frozen=True, kw_only=True)
class GpuFigures:
    """What one GPU of this machine did, whoever used it.

    Attributes:
        name: its product name.
        utilisation_percent: mean share of the time in which it did anything.
        peak_memory_mb: the most memory in use, in 2^20 bytes as nvidia-smi has it.
        power_w: mean power.

    A figure is None where nvidia-smi does not say it; of a part of a GPU (MIG) it does not know the first.
    """

    name: str
    utilisation_percent: float | None
    peak_memory_mb: float | None
    power_w: float | None


def find_server(address: str) -> psutil.Process | None:
    """Return the process that listens on an address of this machine; None if there is none that this user may see.

    What only forwards to a container or to another machine is not the server, and counts as none.
    """
    host, _, port = address.rpartition("/")[2].rpartition(":")
    if not port.isdigit():
        return None
    listening: dict[_Ip, int] = {}
    try:
        for connection in psutil.net_connections(kind="tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == int(port) and connection.pid:
                listening.setdefault(_ip(connection.laddr.ip), connection.pid)
        for called in _own_addresses(host.strip("[]")):
            for place in (called, *_ANY[called.version]):
                if pid := listening.get(place):
                    found = psutil.Process(pid)
                    return None if found.name() in _FORWARDERS else found
    except psutil.Error:
        return None
    return None


def _own_addresses(host: str) -> list[_Ip]:
    """Return the addresses of this machine that a host name stands for, in the order in which they are called."""
    try:
        called = dict.fromkeys(_ip(str(entry[4][0])) for entry in socket.getaddrinfo(host or "localhost", None))
    except OSError:
        return []
    families = (socket.AF_INET, socket.AF_INET6)
    interfaces = [address for found in psutil.net_if_addrs().values() for address in found]
    own = {_ip(address.address) for address in interfaces if address.family in families}
    return [address for address in called if address.is_loopback or address in own]


def _ip(text: str) -> _Ip:
    """Return an address; one of IPv4 that a socket of IPv6 shows (``::ffff:127.0.0.1``) as what it is."""
    found = ip_address(text.partition("%")[0])  # without the interface
    return found.ipv4_mapped or found if isinstance(found, IPv6Address) else found


@dataclass(frozen=True, kw_only=True)
class Look:
    """A process and its children at one moment.

    Attributes:
        cpu_s: process number -> CPU time, user and system, since it began; empty when the process is gone.
        rss_mb: the sum of their resident memory, in 10^6 bytes; pages that are shared count several times.
    """

    cpu_s: Mapping[int, float]
    rss_mb: float


def look(process: psutil.Process) -> Look:
    """Look at a process and its children; those that have just ended are left out."""
    cpu_s, rss = dict[int, float](), 0
    try:
        members = [process, *process.children(recursive=True)]
    except psutil.Error:
        members = []
    for member in members:
        try:
            with member.oneshot():
                times, here = member.cpu_times(), member.memory_info().rss
        except psutil.Error:
            continue
        cpu_s[member.pid] = times.user + times.system
        rss += here
    return Look(cpu_s=cpu_s, rss_mb=rss / 1e6)


@dataclass
class ProcessWatch:
    """Samples a server and its children. What a process used before it ended is kept from its last sample."""

    server: psutil.Process
    peak_rss_mb: float = 0.0
    most: int = 0
    first_cpu_s: dict[int, float] = field(default_factory=dict)
    last_cpu_s: dict[int, float] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)
    ended: float = field(default_factory=time.perf_counter)

    def sample(self) -> None:
        """Look once."""
        found = look(self.server)
        if not found.cpu_s:
            return  # it is gone
        beginning = not self.last_cpu_s
        for pid, cpu_s in found.cpu_s.items():
            # One that appears later has used nothing of what was measured before.
            self.first_cpu_s.setdefault(pid, cpu_s if beginning else 0.0)
            self.last_cpu_s[pid] = cpu_s
        self.peak_rss_mb, self.most = max(self.peak_rss_mb, found.rss_mb), max(self.most, len(found.cpu_s))
        self.ended = time.perf_counter()

    def figures(self) -> ProcessFigures | None:
        """Return what was used between the first and the last sample; None without any."""
        if not self.last_cpu_s:
            return None
        cpu_s = sum(late - self.first_cpu_s[pid] for pid, late in self.last_cpu_s.items())
        passed_s = self.ended - self.started
        return ProcessFigures(
            processes=self.most,
            cpu_s=cpu_s,
            cores=cpu_s / passed_s if passed_s > 0 else 0.0,
            peak_rss_mb=self.peak_rss_mb,
        )


@dataclass
class GpuWatch:
    """Samples all GPUs of this machine by nvidia-smi, which has a time limit."""

    timeout_s: float = 5.0
    samples: list[list[tuple[str, ...]]] = field(default_factory=list)

    @staticmethod
    def there_is_one() -> bool:
        """Say whether nvidia-smi is installed."""
        return shutil.which(_NVIDIA_SMI) is not None

    def sample(self) -> None:
        """Look once; what nvidia-smi does not say in time is left out."""
        command = [_NVIDIA_SMI, f"--query-gpu={_GPU_FIELDS}", "--format=csv,noheader,nounits"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=self.timeout_s)
        except (OSError, subprocess.SubprocessError):
            return
        rows = [tuple(cell.strip() for cell in line.split(",")) for line in done.stdout.splitlines()]
        self.samples.append([row for row in rows if len(row) == len(_GPU_FIELDS.split(","))])

    def figures(self) -> tuple[GpuFigures, ...]:
        """Return one entry per GPU that every sample has seen."""
        return tuple(_gpu_figures(list(rows)) for rows in zip(*self.samples, strict=False))


def _gpu_figures(rows: list[tuple[str, ...]]) -> GpuFigures:
    numbers: Mapping[int, list[float]] = {
        column: [value for row in rows if (value := _number(row[column])) is not None] for column in (1, 2, 3)
    }
    return GpuFigures(
        name=rows[0][0],
        utilisation_percent=fmean(numbers[1]) if numbers[1] else None,
        peak_memory_mb=max(numbers[2], default=None),
        power_w=fmean(numbers[3]) if numbers[3] else None,
    )


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:  # "[N/A]"
        return None
