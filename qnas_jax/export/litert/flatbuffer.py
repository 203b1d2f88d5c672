"""A LiteRT model in the making: tensors, constants and operators, and the flatbuffer of them.

Nothing here knows the graph; `litert.py` says what the tensors and operators are.

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
ALIGNMENT = 16  # of constants, bytes; the schema asks for it
LAST_BYTE_CODE = 127  # the highest kind of operator that the field for old readers holds

# The first version of an operator that takes such inputs; 1 where nothing is said.
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
    """A builder that writes equal vectors once.

    LiteRT wants 8 bytes of zero point beside every scale of weights and biases, all zero.
    """

    def __init__(self, size: int):
        super().__init__(size)
        self.written: dict[tuple, int] = {}

    def CreateNumpyVector(self, x: np.ndarray) -> int:
        """Writes a vector, unless it stands there already; returns its place."""
        key = (x.dtype.str, x.tobytes())
        if key not in self.written:
            self.written[key] = super().CreateNumpyVector(x)
        return self.written[key]


class _Constant(schema.BufferT):
    """Bytes that start where LiteRT wants them to; the generated class starts them anywhere."""

    def Pack(self, builder: flatbuffers.Builder) -> int:
        """Writes them; returns their place."""
        assert self.data is not None
        builder.StartVector(1, len(self.data), ALIGNMENT)
        builder.head -= len(self.data)
        builder.Bytes[builder.head : builder.head + len(self.data)] = self.data
        data = builder.EndVector()
        schema.BufferStart(builder)
        schema.BufferAddData(builder, data)
        return schema.BufferEnd(builder)


class _Shared(NamedTuple):
    """A table of numbers and vectors, written once for all that hold the same."""

    table: Any

    def Pack(self, builder: _Builder) -> int:
        """Writes it, unless it stands there already; returns its place."""
        values = vars(self.table).values()
        fields = (v.tobytes() if isinstance(v, np.ndarray) else v for v in values)
        key = (type(self.table), *fields)
        if key not in builder.written:
            builder.written[key] = self.table.Pack(builder)
        return builder.written[key]


class Draft(NamedTuple):
    """A model in the making; tensors and kinds of operators are known by their numbers.

    Attributes:
      tensors: In the order of their numbers.
      buffers: What constants hold; the first is that of all tensors that are computed.
      shared: Constants that several operators read, by what they hold.
      operators: In the order in which they run.
      kinds: Name and version of each kind of operator, and its number.
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
        """Adds a tensor; returns its number."""
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
        """Adds a tensor that is known, without a name; returns its number."""
        self.buffers.append(_Constant(data=data))
        return self.tensor("", shape, kind, quantization, len(self.buffers) - 1)

    def whole_numbers(self, *values: int) -> int:
        """Adds whole numbers, once for all that read the same; returns their tensor's number."""
        if values not in self.shared:
            data = np.array(values, np.int32)
            self.shared[values] = self.constant(data.tobytes(), data.shape, TensorType.INT32)
        return self.shared[values]

    def operator(self, kind: str, inputs: list[int], out: int, options: Any = None) -> int:
        """Adds an operator; returns the number of the tensor that it gives."""
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
    """A model with nothing in it."""
    return Draft([], [schema.BufferT()], {}, [], {})


def pack(model: Draft, read: tuple[str, int], given: tuple[str, int]) -> bytes:
    """The flatbuffer of a model, with a signature.

    Args:
      model: The model.
      read: The signature's name for the input, and the number of its tensor.
      given: The same of the output.
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
    """One scale for all."""
    return Quantization(
        scale=np.array([scale], np.float32), zeroPoint=np.array([zero_point], np.int64)
    )


def per_channel(scale: np.ndarray, axis: int) -> Quantization:
    """A scale for each channel, and no zero points."""
    return Quantization(
        scale=scale.astype(np.float32),
        zeroPoint=np.zeros(len(scale), np.int64),
        quantizedDimension=axis,
    )
