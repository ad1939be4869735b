"""A control: smart-turn's encoder, of Whisper tiny's shape and other weights, read from its 8-bit ONNX file."""

from __future__ import annotations

from pathlib import Path

import onnx
import torch
from onnx import numpy_helper


def encoder_state(path: Path) -> dict[str, torch.Tensor]:
    """The encoder's tensors under the names of transformers, in float32."""
    graph = onnx.load(str(path)).graph
    constants = {tensor.name: torch.tensor(numpy_helper.to_array(tensor)) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and all(name in constants for name in node.input):
            axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
            constants[node.output[0]] = _dequantized(*(constants[name] for name in node.input), axis=axis)
    state = {name: tensor for name, tensor in constants.items() if name.endswith((".weight", ".bias"))}
    state |= {
        f"inner.encoder.{name}.weight": constants[f"inner.encoder.{name}.weight_DequantizeLinear_Output"]
        for name in ("conv1", "conv2")
    }
    state |= _matrices(graph, constants)
    prefix = "inner.encoder."
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _dequantized(numbers: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, *, axis: int) -> torch.Tensor:
    shape = [1] * numbers.dim()
    if scale.numel() > 1:
        shape[min(axis, numbers.dim() - 1)] = -1
    return (numbers.float() - zero.float().reshape(shape)) * scale.reshape(shape)


def _matrices(graph: onnx.GraphProto, constants: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Matrices have lost their names: each takes that of the bias added next; k_proj, between, is the one without."""
    readers = {name: node for node in graph.node for name in node.input}
    found, layer = {}, 0
    for node in graph.node:
        matrix = constants.get(node.input[1]) if node.op_type == "MatMul" else None
        if matrix is None or matrix.dim() != 2:
            continue
        bias = _bias_after(node.output[0], readers)
        if bias is None:
            name = f"inner.encoder.layers.{layer}.self_attn.k_proj.weight"
        elif ".encoder." in bias:
            name = bias.removesuffix("bias") + "weight"
            layer = int(name.split(".")[3]) + name.endswith("fc2.weight")
        else:
            break
        found[name] = matrix.T.contiguous()
    return found


def _bias_after(output: str, readers: dict[str, onnx.NodeProto]) -> str | None:
    """The name of the constant added to a product, looking through quantization."""
    while (node := readers.get(output)) is not None:
        if node.op_type == "Add":
            return next((name for name in node.input if name.endswith(".bias")), None)
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            return None
        output = node.output[0]
    return None
