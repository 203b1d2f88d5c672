"""Builds the flatbuffer of a LiteRT model from tensors, constants and operators.

This module does not know the graph; `write.py` decides which tensors and operators there are.

References:
  The format: https://github.com/google-ai-edge/LiteRT, `tflite/schema/schema.fbs`, and
  `tflite/tools/versioning/op_version.cc` for the versions of operators.
"""

from typing import Any, NamedTuple, cast

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.schema_py_generated import TensorType

FILE_IDENTIFIER, SCHEMA_VERSION = b"TFL3", 3
SIGNATURE = "serving_default"  # converters write this key
ALIGNMENT = 16  # bytes, of constants; required by the schema
LAST_BYTE_CODE = 127  # highest operator code that fits the field for old readers

# The first version of an operator that supports an input type; 1 if not listed.
VERSIONS = {
    ("CONV_2D", TensorType.INT8): 3,
    ("DEPTHWISE_CONV_2D", TensorType.FLOAT32): 2,  # dilation
    ("DEPTHWISE_CONV_2D", TensorType.INT8): 3,
    ("RESIZE_BILINEAR", TensorType.FLOAT32): 3,  # pixel centres
    ("RESIZE_BILINEAR", TensorType.INT8): 3,
    ("ADD", TensorType.INT8): 2,
    ("CONCATENATION", TensorType.INT8): 2,
    ("DEQUANTIZE", TensorType.INT8): 2,
    ("MEAN", TensorType.INT8): 2,
    ("PAD", TensorType.INT8): 2,
}

Quantization = schema.QuantizationParametersT


class _Builder(flatbuffers.Builder):
    """A builder that stores equal vectors once.

    LiteRT requires an 8-byte zero point for every scale of weights and biases; all are zero.
    """

    def __init__(self, size: int):
        super().__init__(size)
        self.written: dict[tuple, int] = {}

    def CreateNumpyVector(self, x: np.ndarray) -> int:
        """Writes a vector unless an equal one exists; returns its offset."""
        key = (x.dtype.str, x.tobytes())
        if key not in self.written:
            self.written[key] = super().CreateNumpyVector(x)
        return self.written[key]


class _Constant(schema.BufferT):
    """A buffer whose data is aligned to `ALIGNMENT`; the generated class does not align it."""

    def Pack(self, builder: flatbuffers.Builder) -> int:
        """Writes the buffer; returns its offset."""
        assert self.data is not None
        builder.StartVector(1, len(self.data), ALIGNMENT)
        builder.head -= len(self.data)
        builder.Bytes[builder.head : builder.head + len(self.data)] = self.data
        data = builder.EndVector()
        schema.BufferStart(builder)
        schema.BufferAddData(builder, data)
        return schema.BufferEnd(builder)


class _Shared(NamedTuple):
    """A table of numbers and vectors; equal tables are stored once."""

    table: Any

    def Pack(self, builder: _Builder) -> int:
        """Writes the table unless an equal one exists; returns its offset."""
        values = vars(self.table).values()
        fields = (v.tobytes() if isinstance(v, np.ndarray) else v for v in values)
        key = (type(self.table), *fields)
        if key not in builder.written:
            builder.written[key] = self.table.Pack(builder)
        return builder.written[key]


class Draft(NamedTuple):
    """A model under construction; tensors and operator kinds are referred to by index.

    Attributes:
      tensors: The tensors; a tensor's index is its position.
      buffers: Data of constants; buffer 0 is empty and belongs to all computed tensors.
      shared: Values of shared integer constants -> tensor index.
      operators: The operators in execution order.
      kinds: (name, version) of an operator kind -> index.
    """

    tensors: list[schema.TensorT]
    buffers: list[schema.BufferT]
    shared: dict[tuple[int, ...], int]
    operators: list[schema.OperatorT]
    kinds: dict[tuple[str, int], int]

    def tensor(
        self,
        name: str,
        shape: tuple[int, ...],
        kind: int,
        quantization: Quantization | None = None,
        buffer: int = 0,
    ) -> int:
        """Adds a tensor; returns its index."""
        made = schema.TensorT(
            shape=np.array(shape, np.int32),
            type=kind,
            buffer=buffer,
            name=name or None,
            quantization=quantization and _Shared(quantization),
        )
        self.tensors.append(made)
        return len(self.tensors) - 1

    def constant(
        self,
        data: bytes,
        shape: tuple[int, ...],
        kind: int,
        quantization: Quantization | None = None,
    ) -> int:
        """Adds an unnamed constant tensor; returns its index."""
        self.buffers.append(_Constant(data=data))
        return self.tensor("", shape, kind, quantization, len(self.buffers) - 1)

    def whole_numbers(self, *values: int) -> int:
        """Adds an int32 constant unless an equal one exists; returns its tensor's index."""
        if values not in self.shared:
            data = np.array(values, np.int32)
            self.shared[values] = self.constant(data.tobytes(), data.shape, TensorType.INT32)
        return self.shared[values]

    def operator(self, kind: str, inputs: list[int], out: int, options: Any = None) -> int:
        """Adds an operator; returns the index of its output tensor."""
        read = [self.tensors[number].type for number in inputs]
        version = max(VERSIONS.get((kind, type_), 1) for type_ in read)
        made = schema.OperatorT(
            opcodeIndex=self.kinds.setdefault((kind, version), len(self.kinds)),
            inputs=np.array(inputs, np.int32),
            outputs=np.array([out], np.int32),
        )
        if options is not None:
            name = type(options).__name__.removesuffix("T")
            made.builtinOptionsType = getattr(schema.BuiltinOptions, name)
            made.builtinOptions = cast(Any, _Shared(options))
        self.operators.append(made)
        return out


def draft() -> Draft:
    """Returns an empty model."""
    return Draft([], [schema.BufferT()], {}, [], {})


def pack(model: Draft, read: tuple[str, int], given: tuple[str, int]) -> bytes:
    """Returns the flatbuffer of a model, with a signature.

    Args:
      model: The model.
      read: The input's name in the signature and its tensor index.
      given: The output's name in the signature and its tensor index.
    """
    kinds = []
    for kind, version in model.kinds:
        code = getattr(schema.BuiltinOperator, kind)
        old = min(code, LAST_BYTE_CODE)
        kinds.append(schema.OperatorCodeT(old, builtinCode=code, version=version))
    whole = schema.SubGraphT(
        tensors=model.tensors, inputs=[read[1]], outputs=[given[1]], operators=model.operators
    )
    signature = schema.SignatureDefT(
        inputs=[schema.TensorMapT(*read)],
        outputs=[schema.TensorMapT(*given)],
        signatureKey=SIGNATURE,
    )
    made = schema.ModelT(
        version=SCHEMA_VERSION,
        operatorCodes=kinds,
        subgraphs=[whole],
        description="qnas_jax",
        buffers=model.buffers,
        signatureDefs=[signature],
    )
    builder = _Builder(sum(len(buffer.data or b"") for buffer in model.buffers))
    builder.Finish(made.Pack(builder), file_identifier=FILE_IDENTIFIER)
    return bytes(builder.Output())


def per_tensor(scale: float, zero_point: int) -> Quantization:
    """Returns the quantization of a tensor with one scale and zero point."""
    return Quantization(
        scale=np.array([scale], np.float32), zeroPoint=np.array([zero_point], np.int64)
    )


def per_channel(scale: np.ndarray, axis: int) -> Quantization:
    """Returns the quantization of a tensor with a scale per channel and zero points of 0.

    If all channels have the same scale, it is that of a tensor with one scale.
    """
    if not np.ptp(scale):
        return per_tensor(float(scale[0]), 0)
    return Quantization(
        scale=scale.astype(np.float32),
        zeroPoint=np.zeros(len(scale), np.int64),
        quantizedDimension=axis,
    )
