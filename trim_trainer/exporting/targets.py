"""What a checkpoint can be exported to."""

from .gptq import GPTQ
from .onnx import ONNX
from .openvino import OPENVINO

TARGETS = {target.name: target for target in (OPENVINO, ONNX, GPTQ)}
