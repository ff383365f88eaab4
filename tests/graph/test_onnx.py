"""The ONNX export: what the file must be, and what must be refused."""

from __future__ import annotations

import shutil
import warnings

import numpy as np
import onnx
import pytest
from tests.runtimes.onnx_nets import NAMES, shared

from karui.artifact import Port, Signature
from karui.errors import BuildFailed, Unsupported
from karui.graph.onnx import (
    answers,
    batches,
    check_file,
    export_onnx,
    kept_in_float,
    only_recurrent,
    output_names,
    path_of,
    quiet,
    refuses_rules,
)
from karui.numerics import Numerics, parse_numerics


@pytest.fixture(scope="session")
def bench(tmp_path_factory):
    return shared(tmp_path_factory)


def exported(bench, name, path, opset=20):
    net = bench.net(name)
    export_onnx(net.folder, net.signature, path, opset)
    return onnx.load(str(path))


@pytest.mark.parametrize("name", NAMES)
def test_the_file_has_the_users_names_a_dynamic_batch_and_the_opset_asked_for(bench, name, tmp_path):
    model = exported(bench, name, tmp_path / "m.onnx")
    signature = bench.net(name).signature
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [20]
    assert [port.name for port in model.graph.input] == [port.name for port in signature.inputs]
    assert [port.name for port in model.graph.output] == [port.name for port in signature.outputs]
    for port in [*model.graph.input, *model.graph.output]:
        assert port.type.tensor_type.shape.dim[0].dim_param == "batch"
    assert "head.weight" in {tensor.name for tensor in model.graph.initializer}
    assert any(node.name.startswith("head/") for node in model.graph.node)


def test_the_scope_of_a_folded_batch_norm_does_not_hide_its_convolution(bench, tmp_path):
    model = exported(bench, "cnn", tmp_path / "m.onnx")
    convolutions = [node.name for node in model.graph.node if node.op_type == "Conv"]
    assert [name.partition("/")[0] for name in convolutions] == ["conv1", "conv2"]


def test_folded_weights_are_named_after_their_module(bench, tmp_path):
    model = exported(bench, "encoder", tmp_path / "m.onnx")
    inside = {tensor.name.rpartition(".")[0] for tensor in model.graph.initializer if len(tensor.dims) == 2}
    assert {"layer.linear1", "layer.linear2", "layer.self_attn", "head", "emb"} <= inside


def test_no_stack_traces_or_local_paths_are_left_in_the_file(bench, tmp_path):
    exported(bench, "encoder", tmp_path / "m.onnx")
    data = (tmp_path / "m.onnx").read_bytes()
    assert b"stack_trace" not in data
    assert b"onnx_nets.py" not in data
    assert b"torch.onnx" not in data


def test_names_that_inputs_and_outputs_share_are_told_apart(bench, tmp_path):
    model = exported(bench, "same", tmp_path / "m.onnx")
    assert [port.name for port in model.graph.output] == ["x_out", "scores", "label", "positive"]
    ports = (Port("h", "float32", (None, 2)),)
    assert output_names(Signature("args", ports, ports)) == ["h_out"]


@pytest.mark.gate
def test_an_opset_that_is_not_honoured_is_a_failed_build(bench, tmp_path):
    net = bench.net("encoder")
    with pytest.raises(BuildFailed, match="opset 18 instead of 17"):
        export_onnx(net.folder, net.signature, tmp_path / "m.onnx", 17)
    assert list(tmp_path.iterdir()) == []
    assert not list(net.folder.glob("*17*"))


def test_another_opset_is_honoured(bench, tmp_path):
    model = exported(bench, "mlp", tmp_path / "m.onnx", 18)
    assert model.opset_import[0].version == 18


def test_a_file_of_another_opset_or_of_fixed_batch_is_refused(bench, tmp_path):
    path = tmp_path / "m.onnx"
    model = exported(bench, "mlp", path)
    with pytest.raises(BuildFailed, match="opset 20 instead of 21"):
        check_file(path, 21, dynamic=True)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(model, str(path))
    with pytest.raises(BuildFailed, match="no dynamic batch"):
        check_file(path, 20, dynamic=True)


def test_the_export_is_kept_for_the_next_build(bench, tmp_path):
    net = bench.net("mlp")
    exported(bench, "mlp", tmp_path / "one.onnx")
    kept = net.folder / "exported-20.onnx"
    before = kept.stat().st_mtime_ns
    exported(bench, "mlp", tmp_path / "two.onnx")
    assert kept.stat().st_mtime_ns == before
    assert (tmp_path / "two.onnx").read_bytes() == kept.read_bytes()


def test_a_model_given_as_onnx_is_copied_as_it_is(bench, tmp_path):
    exported(bench, "mlp", tmp_path / "model.onnx")
    export_onnx(tmp_path, bench.net("mlp").signature, tmp_path / "copy.onnx")
    assert (tmp_path / "copy.onnx").read_bytes() == (tmp_path / "model.onnx").read_bytes()


def test_weights_too_large_for_one_file_stand_beside_it(bench, tmp_path, monkeypatch):
    monkeypatch.setattr("karui.graph.onnx.LARGE_BYTES", 100)
    captured, goal = tmp_path / "captured", tmp_path / "goal"
    captured.mkdir(), goal.mkdir()
    shutil.copyfile(bench.net("mlp").folder / "model.pt2", captured / "model.pt2")
    export_onnx(captured, bench.net("mlp").signature, goal / "model.onnx")
    assert {path.name for path in goal.iterdir()} == {"model.onnx", "exported-20.onnx.data"}
    onnx.checker.check_model(str(goal / "model.onnx"))


def test_exporting_says_nothing(bench, tmp_path, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exported(bench, "dict", tmp_path / "m.onnx", 19)
    assert capfd.readouterr() == ("", "")


def test_quiet_restores_logging_after_an_error():
    import logging

    with pytest.raises(ValueError, match="x"), quiet():
        raise ValueError("x")
    assert logging.root.manager.disable == 0


PATHS = {"head/linear": "head", "body.0/linear": "body.0", "body.1/relu": "body.1"}


def test_rules_choose_nodes_by_module_path():
    assert kept_in_float(PATHS, parse_numerics("int8[body.*=fp32]")) == ["body.0/linear", "body.1/relu"]
    assert kept_in_float(PATHS, parse_numerics("int8[body.0=int8,*=fp32]")) == ["head/linear", "body.1/relu"]
    assert kept_in_float(PATHS, parse_numerics("int8")) == []


def test_a_rule_that_fits_no_layer_is_refused():
    with pytest.raises(Unsupported, match="tail"):
        kept_in_float(PATHS, parse_numerics("int8[tail=fp32]"))


@pytest.mark.parametrize(
    ("numerics", "said"),
    [
        (Numerics("int8", facts={"ranges": 1}), "earlier steps"),
        (parse_numerics("fp16[head=fp32]"), "only INT8 takes rules"),
        (parse_numerics("int8[head=bf16]"), "not in bf16"),
        (parse_numerics("int8[head=fp32]"), None),
        (parse_numerics("int8"), None),
    ],
)
def test_rules_and_facts_that_cannot_be_honoured_are_refused(numerics, said):
    answer = refuses_rules(numerics)
    assert answer is None if said is None else said in answer


def test_a_module_path_is_told_by_the_node_or_by_its_weight():
    assert path_of("enc.linear1/MatMul_3", "x.y") == "enc.linear1"
    assert path_of("fused head/linear") == "head"
    assert path_of("/layer/conv1/Conv", "layer.conv1.weight") == "layer.conv1"
    assert path_of("Conv_3") == ""


def test_only_recurrent_layers():
    assert only_recurrent({"Net": 1, "GRU": 1, "LSTM": 2}) == "LSTM, GRU"
    assert only_recurrent({"LSTM": 1, "Linear": 1}) == ""
    assert only_recurrent({}) == ""


def test_a_fixed_batch_gets_whole_batches_and_answers_for_the_rows_given():
    port = Port("x", "float32", (None, 1))
    fixed = Signature("args", (port,), (port,), dynamic_batch=False, batch=4)
    arrays = {"x": np.arange(6, dtype=np.float32)[:, None]}
    parts = [part["x"][:, 0].tolist() for part in batches(arrays, fixed, 16)]
    assert parts == [[0, 1, 2, 3], [4, 5, 5, 5]]
    assert answers(lambda part: [part["x"]], arrays, fixed)[0][:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    free = Signature("args", (port,), (port,))
    assert [len(part["x"]) for part in batches(arrays, free, 4)] == [4, 2]
