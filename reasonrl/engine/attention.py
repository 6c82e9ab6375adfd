"""Which of PyTorch's attention kernels may train."""

from __future__ import annotations


def keep_from_cudnn() -> None:
    """Have `scaled_dot_product_attention` choose among its other kernels in this process.

    With a padding mask the gradients of cuDNN's are NaN now and then: training a 0.5 B model under bfloat16 autocast lost
    its weights between steps 40 and 60, every time, and never with the others (torch 2.11.0, CUDA 13, one H200).
    """
    import torch

    torch.backends.cuda.enable_cudnn_sdp(False)
