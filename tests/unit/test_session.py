from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from likeness_export.exporting import onnx_export
from likeness_export.repository.adapters.session import Sessions, open_session

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """Write a network that adds one."""
    one = onnx.numpy_helper.from_array(np.ones(1, np.float32), "one")
    tensors = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 2]) for name in ("x", "y")]
    node = onnx.helper.make_node("Add", ["x", "one"], ["y"])
    graph = onnx.helper.make_graph([node], "plus", tensors[:1], tensors[1:], [one])
    path = tmp_path / "model.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def test_a_product_alone_has_all_threads_and_each_run_of_a_batch_has_one(network: Path) -> None:
    sessions = Sessions(network, {"cpu_threads": "2", "run_rows": "2"})
    for rows, expected in ((1, sessions.alone), (4, sessions.batches)):
        opened = sessions.for_batch(rows)
        assert opened is expected
        assert opened.run(None, {"x": np.zeros((rows, 2), np.float32)})[0].tolist() == [[1.0, 1.0]] * rows
    alone, batches = (opened.get_session_options() for opened in (sessions.alone, sessions.batches))
    assert (alone.intra_op_num_threads, batches.intra_op_num_threads) == (2, 1)
    spins = "session.intra_op.allow_spinning"
    assert (alone.get_session_config_entry(spins), batches.get_session_config_entry(spins)) == ("1", "0")


@pytest.mark.parametrize(
    ("flags", "exact"),
    [("avx2 avx512f", True), ("avx2 avx512_vnni", False), ("avx2 avx_vnni", False), ("asimd asimddp", False)],
)
def test_int8_is_exact_on_every_processor_and_judged_as_it_is_served(
    flags: str, exact: bool, network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With VNNI it is anyway, and the exact kernels are half as fast."""
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags : fpu {flags}\n")
    monkeypatch.setattr("likeness_export.repository.adapters.session._CPU_INFO", tmp_path / "cpuinfo")
    for session in (open_session(network, 1), onnx_export.open_session("plus", network)):
        options = session.get_session_options()
        if exact:
            assert options.get_session_config_entry("session.x64quantprecision") == "1"
        else:
            with pytest.raises(RuntimeError, match="does not have configuration"):
                options.get_session_config_entry("session.x64quantprecision")


@pytest.mark.parametrize("parameters", [{"cpu_threads": "2"}, {"cpu_threads": "1", "run_tokens": "8"}])
def test_one_session_is_enough_where_nothing_runs_side_by_side(network: Path, parameters: dict[str, str]) -> None:
    sessions = Sessions(network, parameters)
    assert sessions.alone is sessions.batches
    threads = sessions.batches.get_session_options().intra_op_num_threads
    assert threads == int(parameters["cpu_threads"])
