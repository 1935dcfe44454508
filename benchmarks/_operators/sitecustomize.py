"""Lets a torchvision built for CUDA be imported beside a torch built for the CPU.

Such a torchvision cannot load its own library of operators, and then says what they do on meta tensors: "operator
torchvision::nms does not exist". So the two that it names are defined here, for all processes with this folder on
PYTHONPATH. Models, datasets and transforms need no more.
"""

import torch

operators = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
