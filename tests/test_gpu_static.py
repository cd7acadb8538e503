"""The reading of disassembled kernels in bench.gpu_static: loops, names, occupancy, sums."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest

# Last, or it would hide the library that sanitize.sh puts in front.
sys.path.append(str(Path(__file__).parent.parent))

from bench import chart, gpu_claims
from bench.gpu_static import kernel_rows, short_names, summary
from bench.sass import MATH, TENSOR, Usage, async_copies, main_loops, occupancy, usage_of_library
from cnnkern import _cuda_library

sys.path.append(str(Path(__file__).parent))
from ptxcpu import toolchain

SASS = """
		Function : outer
	.headerflags	@"EF_CUDA_SM80"
        /*0000*/                   MOV R1, c[0x0][0x28] ;   /* 0x00000a0000017a02 */
        /*0010*/                   FFMA R2, R1, R1, R2 ;
        /*0020*/                   LDG.E R3, [R2.64] ;
        /*0030*/                   FFMA R4, R3, R3, R4 ;
        /*0040*/                   FFMA.FTZ R5, R3, R3, R5 ;
        /*0050*/              @!P0 BRA 0x20 ;
        /*0060*/               @P1 BRA 0x10 ;
        /*0070*/                   EXIT ;
        /*0080*/                   BRA 0x80;
		Function : straight
        /*0000*/                   FADD R1, R1, R2 ;
        /*0010*/                   EXIT ;
"""


def test_the_main_loop_is_the_innermost_with_the_most_arithmetic():
    loops = main_loops(SASS)
    assert loops["outer"] == Counter(FFMA=2, LDG=1, BRA=1)
    assert not loops["straight"]
    usage = Usage(80, 32, 0, 0, 128, loops["outer"])
    assert usage.loop_share(MATH) == 0.5
    assert Usage(80, 32, 0, 0, 128, loops["straight"]).loop_share(MATH) is None


@pytest.mark.parametrize(
    ("arch", "registers", "threads", "shared", "expected"),
    (
        (80, 32, 256, 0, 1),
        (80, 128, 256, 0, 1 / 4),  # 2 blocks by registers
        (80, 64, 1024, 0, 1 / 2),
        (80, 32, 32, 0, 1 / 2),  # 32 blocks at most
        (80, 32, 128, 48 * 1024, 3 * 4 / 64),
        (90, 32, 128, 48 * 1024, 4 * 4 / 64),
        (80, 255, 64, 0, 8 / 64),
    ),
)
def test_occupancy(arch, registers, threads, shared, expected):
    assert occupancy(arch, threads, registers, shared) == expected


def test_names_are_short():
    names = {
        "_ZN7cnnkern12probe_kernelEPi": "probe_kernel",
        "_ZN7cnnkern12_GLOBAL__N_16kernelIfLi3EEEvPKT_l": "kernel<float, 3>",
        "triton_kernel": "triton_kernel",
    }
    assert short_names(list(names)) == names


def test_triton_kernels_have_rows():
    pytest.importorskip("triton")
    from bench import triton_static

    usages = triton_static.usages("3x3s2 64")
    assert all(
        name.startswith("triton ") and set(usage) == {80, 90} for name, usage in usages.items()
    )
    gather = next(u for name, u in usages.items() if "conv2d_gather" in name)
    assert all(gather[arch].loop_share(TENSOR) > 0 for arch in gather)
    rows = kernel_rows(usages)
    assert len(rows) == 2 * len(usages) and {row["kernel"] for row in rows} == set(usages)
    assert all(row["registers"] > 0 and row["spill_bytes"] == 0 for row in rows)


def test_a_row_sums_up_its_launches():
    launch = {
        "kernel": "copy", "thread_instructions": 10, "flops": 8, "tensor_core_share_of_flops": 0.5,
        "instructions_by_class": {"fp32": 4, "integer": 6}, "shared_requests": 2,
        "shared_bank_conflicts": 1, "block": [32, 1, 1], "static_shared_bytes": 0,
        "dynamic_shared_bytes": 0, "sm_80": {"registers": 8, "spill_bytes": 0},
        "sm_90": {"registers": 9, "spill_bytes": 0},
    }  # fmt: skip
    for kind in ("load", "store"):
        launch |= {f"global_{kind}_{key}": 4 for key in ("requests", "sectors")}
        launch[f"global_{kind}_bytes"] = 128
    call = {"name": "copy", "dtype": "float32", "bytes": 256}
    row = summary(call, [launch, launch], {})
    assert row["launches"] == 2
    assert row["moved"] == row["requested"] == 2
    assert row["load_sectors"] == row["store_sectors"] == 1
    assert row["bank_conflicts"] == row["tensor_share"] == 0.5
    assert row["math_share"] == 0.4
    assert (row["registers_80"], row["registers_90"]) == (8, 9)


def test_sizes_of_asynchronous_copies():
    sass = """Function : wide
        LDGSTS.E.BYPASS.128 [R1], [R2.64] ;
        LDGSTS.E.BYPASS.LTC128B.128 [R1], [R2.64] ;
        Function : mixed
        LDGSTS.E [R1], [R2.64] ;
        LDGSTS.E.64 [R1], [R2.64] ;
        Function : none
        LDG.E.128 R1, [R2.64] ;
    """
    assert async_copies(sass) == {"wide": (16,), "mixed": (4, 8), "none": ()}


@pytest.mark.skipif(
    not _cuda_library.status().startswith("loaded")
    or not all(map(toolchain.find_tool, ("ptxas", "cuobjdump"))),
    reason="needs the CUDA library and a toolkit",
)
def test_the_matrix_kernels_are_what_the_claims_say():
    usages = usage_of_library(_cuda_library.PATH, "(igemm|mma)_kernel")
    tables = {"kernels": kernel_rows(usages)}
    claims = [c for c in gpu_claims.CLAIMS if c.table == "kernels"]
    assert len(claims) > 2
    for claim in claims:
        assert claim.rows(tables), claim.what
        assert claim.holds(tables), f"{claim.what}: {claim.worst(tables)}, not {claim.bound()}"


@pytest.mark.parametrize("claim", gpu_claims.CLAIMS, ids=lambda claim: claim.what)
def test_the_counts_in_the_repository_show_what_they_must(claim):
    tables = gpu_claims.read()
    assert claim.rows(tables)
    assert claim.holds(tables), f"{claim.worst(tables)}, not {claim.bound()}"


def test_the_readme_has_these_counts():
    text = chart.README.read_text()
    assert chart.fill(text, gpu_claims.table(chart._markdown), "gpu counts") == text
