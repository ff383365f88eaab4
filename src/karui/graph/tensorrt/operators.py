"""Which ONNX operators TensorRT's parser takes, and in which types their first input may be.

Source: "Supported ONNX Operators", docs/operators.md of github.com/onnx/onnx-tensorrt, as of TensorRT 10.15
(opsets 9 to 24); NVIDIA's ONNX Opset Guide gives 9 to 25 for TensorRT 11. Operators that stand there with
"N" are not listed here.
"""

from __future__ import annotations

OPSETS = range(9, 26)
FLOAT, FLOAT16, BFLOAT16, DOUBLE = "FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE"
INT32, INT64, INT8, UINT8, BOOL = "INT32", "INT64", "INT8", "UINT8", "BOOL"
HALVES = (FLOAT, FLOAT16)
FLOATS = (*HALVES, BFLOAT16)
NUMBERS = (*FLOATS, INT32, INT64)
ALL = (*NUMBERS, BOOL)

IN_FLOAT = """
Acos Acosh Asin Asinh Atan Atanh Attention AveragePool BatchNormalization Ceil Celu Clip Conv ConvTranspose
Cos Cosh CumSum Dropout Einsum Elu Erf Exp Floor GRU Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool
GroupNormalization HardSigmoid HardSwish Hardmax ImageScaler InstanceNormalization IsInf LRN LSTM
LayerNormalization LeakyRelu Log LogSoftmax LpNormalization LpPool MatMul MaxPool MeanVarianceNormalization
PRelu ParametricSoftplus QuantizeLinear RMSNormalization RNN Reciprocal Resize RotaryEmbedding Round
ScaledTanh Scan Selu Sigmoid Sin Sinh Softmax Softplus Softsign Sqrt Tan Tanh ThresholdedRelu Upsample
"""
IN_HALVES = "DeformConv GridSample Mish NonMaxSuppression NonZero RoiAlign"
OF_NUMBERS = """
Abs Add ArgMax ArgMin DepthToSpace Div Equal Gelu Greater GreaterOrEqual IsNaN Less LessOrEqual Max Mean Min
Mod Mul Neg Pad Pow RandomNormalLike RandomUniformLike Range ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp
ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Scatter ScatterElements ScatterND
Shrink Sign SpaceToDepth Sub Sum TensorScatter TopK
"""
OF_ALL = """
Concat Constant ConstantOfShape Expand EyeLike Flatten Gather GatherElements GatherND Identity If Loop
OneHot RandomNormal RandomUniform Reshape ReverseSequence Shape Size Slice Split Squeeze Tile Transpose
Trilu Unsqueeze Where
"""
OF_BOOL = "And Not Or Xor"

TYPES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(IN_FLOAT.split(), FLOATS),
    **dict.fromkeys(IN_HALVES.split(), HALVES),
    **dict.fromkeys(OF_NUMBERS.split(), NUMBERS),
    **dict.fromkeys(OF_ALL.split(), ALL),
    **dict.fromkeys(OF_BOOL.split(), (BOOL,)),
    **dict.fromkeys(("Cast", "CastLike"), (*ALL, UINT8)),
    **dict.fromkeys(("BlackmanWindow", "HammingWindow", "HannWindow"), (*HALVES, INT32, INT64)),
    "DequantizeLinear": (INT8,),
    "STFT": (FLOAT,),
}
INTEGER_FORMS = (
    "ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul", "QGemm", "QLinearAdd", "QLinearMul",
    "QLinearSigmoid", "QLinearAveragePool", "QLinearGlobalAveragePool", "QLinearConcat", "QLinearSoftmax",
    "QLinearLeakyRelu", "QAttention", "MatMulIntegerToFloat",
)  # fmt: skip
DYNAMIC_FORMS = ("DynamicQuantizeLinear", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM")
