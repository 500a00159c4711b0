"""How a CPU opens a network: the settings of onnxruntime that the server runs it with, for all who measure it."""

from collections.abc import Mapping
from pathlib import Path

import onnxruntime as ort

SLOWER_THAN_ITS_PARTS = ["SkipLayerNormFusion"]
"""The fused kernel runs scalar code: addition and normalisation apart take a fraction of its time."""

_CPU_INFO = Path("/proc/cpuinfo")
_BETWEEN_OPERATORS_US = 50  # threads that spin for so long need no waking within a run, and stop soon after it


def open_session(path: Path, threads: int, spinning: bool = False, spin_us: int | None = None) -> ort.InferenceSession:
    """Open ``model.onnx`` on the CPU.

    Args:
        path: of the file.
        threads: that share one operator.
        spinning: whether they burn their core while they wait, which answers sooner where nothing else runs; every
            model of a server is a process of its own, and such threads would steal the others' cores.
        spin_us: for how long, at most; None: as long as onnxruntime likes.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    compute_int8_exactly(options)
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    if spin_us is not None:
        options.add_session_config_entry("session.intra_op.spin_duration_us", str(spin_us))
    return ort.InferenceSession(
        str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=SLOWER_THAN_ITS_PARTS
    )


def compute_int8_exactly(options: ort.SessionOptions) -> None:
    """Let no int8 sum saturate halfway, wherever the file was made.

    Processors with VNNI do not saturate; there the exact kernels would give the same answers in twice the time.
    """
    if not has_vnni():
        options.add_session_config_entry("session.x64quantprecision", "1")


def has_vnni() -> bool:
    """Say whether this processor multiplies and adds int8 without saturating halfway (VNNI, or Arm's dot product)."""
    if not _CPU_INFO.is_file():
        return False
    flags = _CPU_INFO.read_text(encoding="utf-8", errors="replace")
    return "vnni" in flags or "asimddp" in flags


class Sessions:
    """One network, opened for the runs of batches and once more for a product that comes alone: it has all threads.

    Runs are computed side by side, with one thread each, for threads that share an operator wait for each other. A
    network that computes a batch in one run gives it all threads.

    Args:
        path: of the file.
        parameters: of the model's configuration.
    """

    def __init__(self, path: Path, parameters: Mapping[str, str]) -> None:
        threads = int(parameters["cpu_threads"])
        side_by_side = threads > 1 and not parameters.keys().isdisjoint({"run_rows", "run_tokens"})
        self.batches = self.alone = open_session(path, 1 if side_by_side else threads)
        if side_by_side:
            self.alone = open_session(path, threads, spinning=True, spin_us=_BETWEEN_OPERATORS_US)

    def for_batch(self, rows: int) -> ort.InferenceSession:
        """Return the session for a batch of so many rows."""
        return self.alone if rows == 1 else self.batches
