"""Counts that can be checked by hand."""

import ptxcpu
import pytest
import torch
from compiling import compile_ptx


@pytest.fixture(scope="module")
def ptx():
    return compile_ptx("access.cu")


def test_contiguous_copy(ptx):
    n = 1024
    r = ptxcpu.report(ptx, "copy_contiguous", 4, 256, [torch.randn(n), torch.zeros(n)])
    assert r["global_load_requests"] == r["global_store_requests"] == n / 32
    assert r["global_load_sectors_per_request"] == r["global_store_sectors_per_request"] == 4
    assert r["global_load_bytes"] == r["global_load_unique_bytes"] == 4 * n
    assert r["instructions_by_class"]["fp32"] == n and r["flops"] == 2 * n
    assert r["tensor_core_share_of_flops"] == 0 and r["barriers_per_thread"] == 0
    for architecture in ("sm_80", "sm_90"):
        assert r[architecture]["occupancy"] == 1 and r[architecture]["spill_bytes"] == 0


def test_strided_copy(ptx):
    r = ptxcpu.report(ptx, "copy_strided", 1, 128, [torch.randn(1024), torch.zeros(128)])
    assert r["global_load_sectors_per_request"] == 32 and r["global_load_unique_bytes"] == 4 * 128


def test_bank_conflicts(ptx):
    x = torch.randn(32, 32)
    for kernel, conflicts in (("transpose_conflicts", 32 * 31), ("transpose_padded", 0)):
        y = torch.zeros(32, 32)
        r = ptxcpu.report(ptx, kernel, 1, 32, [x, y])
        assert torch.equal(y, x.t()) and r["shared_requests"] == 64
        assert r["shared_bank_conflicts"] == conflicts and r["barriers_per_thread"] == 1


def test_tensor_core_share():
    a, b = torch.randn(16, 16).half(), torch.randn(8, 16).half()
    r = ptxcpu.report(
        compile_ptx("instructions.cu"),
        "mma_f16_k16",
        1,
        32,
        [a, b, torch.zeros(16, 8), torch.zeros(16, 8)],
    )
    assert r["tensor_core_share_of_flops"] == 1 and r["flops"] == 2 * 16 * 8 * 16


def test_ldmatrix_of_contiguous_rows_has_no_conflicts():
    r = ptxcpu.report(
        compile_ptx("instructions.cu"),
        "ldmatrix_x4",
        1,
        32,
        [torch.zeros(256, dtype=torch.int16), torch.zeros(128, dtype=torch.int32)],
    )
    assert r["shared_bank_conflicts"] == 0 and r["instructions_by_class"]["shared_load"] == 32
