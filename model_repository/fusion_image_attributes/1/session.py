"""How a CPU opens a network: the settings of onnxruntime that the server runs it with, for all who measure it."""

from pathlib import Path

import onnxruntime as ort

SLOWER_THAN_ITS_PARTS = ["SkipLayerNormFusion"]
"""The fused kernel runs scalar code: addition and normalisation apart take a fraction of its time."""


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
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    if spin_us is not None:
        options.add_session_config_entry("session.intra_op.spin_duration_us", str(spin_us))
    return ort.InferenceSession(
        str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=SLOWER_THAN_ITS_PARTS
    )
