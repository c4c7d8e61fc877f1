import torch
from torch import nn

from tap_engine.pipeline.teacher import fits_bf16, teacher_dtype

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def model(stored: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 3)).to(stored).float()


def test_auto_follows_the_type_that_the_weights_were_stored_in() -> None:
    assert fits_bf16(model(torch.bfloat16))
    assert not fits_bf16(model(torch.float16))
    assert not fits_bf16(model(torch.float32))
    assert teacher_dtype("auto", CUDA, model(torch.bfloat16)) == torch.bfloat16
    assert teacher_dtype("auto", CUDA, model(torch.float16)) == torch.float16
    assert teacher_dtype("auto", CUDA, model(torch.float32)) == torch.float16


def test_a_cpu_and_a_named_precision_are_as_said() -> None:
    stored = model(torch.bfloat16)
    assert teacher_dtype("auto", CPU, stored) == torch.float32
    assert teacher_dtype("fp16", CUDA, stored) == torch.float16
    assert teacher_dtype("fp32", CUDA, stored) == torch.float32


def test_one_matrix_in_a_finer_type_is_enough_to_see_it() -> None:
    stored = model(torch.bfloat16)
    with torch.no_grad():
        stored[2].weight[1, 4] += 2**-12
    assert not fits_bf16(stored)
