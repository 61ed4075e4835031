"""Compiles the Triton kernels for GPUs that need not be here, and fails where registers spill.

Run it as `python -m tests.kernels.triton.aot` for one variant an op and target, with `--all` for every variant; never
with TRITON_INTERPRET, under which there is nothing to compile. Constants and options are those of the ops' launches.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import triton
from rich.console import Console
from rich.table import Table
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels.expert_sum import triton as expert_sum
from kernels.monet_mix import triton as monet_mix
from kernels.product_key_topk import triton as product_key_topk
from kernels.sr_update import triton as sr_update

TARGETS = (GPUTarget("cuda", 80, 32), GPUTarget("cuda", 90, 32), GPUTarget("hip", "gfx942", 64))
WIDTHS = (256, 512, 768, 1024)
_CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
_TABLE_TYPES = {"float": "*fp32", "half": "*bf16", "int8": "*i8", "int4": "*i32"}


@dataclass(frozen=True, kw_only=True)
class Variant:
    op: str
    name: str
    kernel: triton.JITFunction
    types: Mapping[str, str]
    """Of the arguments that are given; those with neither a type nor a constant are None."""
    constants: Mapping[str, object]
    """And options of the compiler, as the op's config gives both."""
    is_quick: bool = False
    """One of the few that are compiled without --all."""
    decodes_words: bool = False
    """Reads int4 without instructions that convert integers to floats."""


@dataclass(frozen=True, slots=True)
class Compiled:
    registers: int
    spills: int
    """Bytes of stack and instructions that spill on CUDA, spilled registers on AMD."""
    conversions: int
    """Instructions that convert integers to floats; 0 on AMD, where they are not counted."""


def expert_sums() -> Iterator[Variant]:
    for width in WIDTHS:
        for precision, table in _TABLE_TYPES.items():
            kernel, constants = expert_sum.config(width, precision)
            for backward in (False, True):
                types = dict.fromkeys(("source_ptr", "out_ptr"), "*bf16")
                types |= dict.fromkeys(("dotted_ptr", "summed_ptr"), table)
                types |= dict.fromkeys(("expert_ptr", "start_ptr"), "*i64")
                types |= dict.fromkeys(("gate_ptr", "pre_ptr"), "*fp32")
                types |= dict.fromkeys(("dgate_ptr", "du_ptr", "dv_ptr") if backward else ("bias_ptr",), "*fp32")
                if precision in ("int8", "int4"):
                    types |= dict.fromkeys(("dotted_scale_ptr", "summed_scale_ptr"), "*fp16")
                yield Variant(
                    op="expert_sum",
                    name=f"{'backward' if backward else 'forward'} D={width} {precision}",
                    kernel=kernel,
                    types=types,
                    constants={**constants, "ACT": "gelu", "BACKWARD": backward},
                    is_quick=(width, precision, backward) == (512, "int4", False),
                    decodes_words=precision == "int4" and not backward,
                )


def product_key_topks() -> Iterator[Variant]:
    sizes = {"num_rows": "i32", "num_columns": "i32"}
    scores = {"row_ptr": "*fp32", "column_ptr": "*fp32"}
    for num_keys, k in ((64, 4), (256, 8), (512, 16), (1024, 16), (1024, 32)):
        constants = product_key_topk.topk_config(num_keys, num_keys, k)
        yield Variant(
            op="product_key_topk",
            name=f"topk N={num_keys} k={k}",
            kernel=product_key_topk._topk,
            types={**scores, "i_ptr": "*i32", "j_ptr": "*i32", "score_ptr": "*fp32", "cell_ptr": "*i64", **sizes},
            constants=constants,
            is_quick=num_keys == 64,  # larger sorts take long to compile
        )
    for k in (4, 8, 16, 32, 64):
        gradients = dict.fromkeys(("dscore_ptr", "drow_ptr", "dcolumn_ptr"), "*fp32")
        constants = product_key_topk.backward_config(k)
        yield Variant(
            op="product_key_topk",
            name=f"backward k={k}",
            kernel=product_key_topk._topk_backward,
            types={**gradients, "cell_ptr": "*i64", **sizes, "k": "i32"},
            constants=constants,
        )
    outs = ("token_out_ptr", "head_out_ptr", "row_out_ptr", "column_out_ptr")
    constants = product_key_topk.threshold_config()
    for fill in (False, True):
        yield Variant(
            op="product_key_topk",
            name=f"threshold, {'fill' if fill else 'count'}",
            kernel=product_key_topk._fire,
            types={
                **scores,
                **dict.fromkeys(outs if fill else (), "*i64"),
                **sizes,
                "threshold_ptr": "*fp32",
                "count_ptr": "*i64",
                "num_heads": "i32",
                "pieces": "i32",
            },
            constants={**constants, "FILL": fill},
        )


def sr_updates() -> Iterator[Variant]:
    for width in WIDTHS:
        constants = sr_update.config(width)
        pairs = {"source_ptr": "*fp32", **dict.fromkeys(("begin_ptr", "end_ptr", "token_ptr"), "*i64")}
        table = {"weight_ptr": "*u8", "accumulator_ptr": "*u8", "scale_ptr": "*fp16", "moment_ptr": "*fp32"}
        rows = {"row_ptr": "*i64", "change_row_ptr": "*i64", "change_ptr": "*i32"}
        rule = {"rate16": "fp32", "stream": "i64", "step": "i64"}
        yield Variant(
            op="sr_update",
            name=f"update D={width}",
            kernel=sr_update._update,
            types={**table, **pairs, "pair_weight_ptr": "*fp32", **rows, **rule},
            constants=constants,
            is_quick=width == 512,
        )
        yield Variant(
            op="sr_update",
            name=f"piece D={width}",
            kernel=sr_update._sum_piece,
            types={**pairs, "weight_ptr": "*fp32", "sum_ptr": "*fp32"},
            constants=constants,
        )


def monet_mixes() -> Iterator[Variant]:
    for num_heads, num_units in ((4, 4), (8, 8), (8, 12), (8, 64)):
        constants = monet_mix.config(num_heads, num_units)
        for kernel in (monet_mix._forward, monet_mix._backward):
            yield Variant(
                op="monet_mix",
                name=f"{kernel.fn.__name__.strip('_')} H={num_heads} M={num_units}",
                kernel=kernel,
                types={name: "*fp32" if name.endswith("_ptr") else "i32" for name in kernel.arg_names},
                constants=constants,
                is_quick=(kernel, num_heads, num_units) == (monet_mix._backward, 8, 8),
            )


def compile_variant(variant: Variant, target: GPUTarget) -> Compiled:
    names = variant.kernel.arg_names
    options = {name: value for name, value in variant.constants.items() if name not in names}
    signature, constants = {}, {name: value for name, value in variant.constants.items() if name in names}
    for name in names:
        if name in constants or name not in variant.types:
            signature[name] = "constexpr"
            constants.setdefault(name, None)
        else:
            signature[name] = variant.types[name]
    # Tensors that torch allocates are aligned, which launches find out and compile for.
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if signature[name].startswith("*")}
    source = ASTSource(fn=variant.kernel, signature=signature, constexprs=constants, attrs=aligned)
    made = triton.compile(source, target=target, options=options)
    if target.backend == "hip":
        counts = {name: int(count) for name, count in re.findall(r"\.(\w+_count): *(\d+)", made.asm["amdgcn"])}
        return Compiled(counts["vgpr_count"], counts["vgpr_spill_count"] + counts["sgpr_spill_count"], 0)
    return _read_cubin(made.asm["cubin"])


def _read_cubin(cubin: bytes) -> Compiled:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage, sass = (
            subprocess.run([_CUOBJDUMP, option, file.name], capture_output=True, text=True, check=True).stdout
            for option in ("-res-usage", "-sass")
        )
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    assert found, usage
    registers, stack, local = map(int, found.groups())
    return Compiled(
        registers, stack + local + len(re.findall(r"\b(?:STL|LDL)\b", sass)), len(re.findall(r"\bI2F", sass))
    )


def fault(variant: Variant, compiled: Compiled) -> str:
    """What is wrong with it, or nothing."""
    if compiled.spills:
        return "spills"
    return "converts integers to floats" if variant.decodes_words and compiled.conversions else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", action="store_true", help="every variant that ships, some minutes")
    chosen = parser.parse_args()
    table = Table("op", "variant", "target", "warps", "registers", "spills", "fault")
    faults = 0
    for variants in (expert_sums, product_key_topks, sr_updates, monet_mixes):
        for variant in variants():
            for target in TARGETS if chosen.all or variant.is_quick else ():
                compiled = compile_variant(variant, target)
                wrong = fault(variant, compiled)
                faults += bool(wrong)
                counts = map(str, (target.arch, variant.constants["num_warps"], compiled.registers, compiled.spills))
                table.add_row(variant.op, variant.name, *counts, wrong)
    Console(width=110).print(table)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
