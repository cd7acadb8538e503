"""The modules and thread orders that the tests share."""

import pytest
import torch
from compiling import compile_ptx
from ptxcpu import Module


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def instructions():
    return Module(compile_ptx("instructions.cu"))


@pytest.fixture(scope="session")
def hopper():
    return Module(compile_ptx("hopper.cu", "compute_90"))


@pytest.fixture(params=[0, 1, 2], ids=["ascending", "lifo", "random"])
def order(request):
    return request.param
