"""Compile kernels for GPUs, as the operator launches them, and read the result.

Needs no GPU, and prints a line of JSON for each kernel.
"""

import inspect
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton.backends.nvidia

from dev.launches import launches, loads
from mmpsa.ops import triton_kernels

TOOLS = Path(triton.backends.nvidia.__file__).parent / 'bin'
_LINE = re.compile(r'//## File "(.*)", line (\d+)')
_ACCESS = re.compile(r'\b(LDG|STG)\.\S*')
_WIDTH = re.compile(r'\.(\d+)\b')


def tool(name, *arguments):
    """What one of the tools that Triton brings prints."""
    return subprocess.run(
        [TOOLS / name, *arguments], capture_output=True, text=True, check=True
    ).stdout


def lines_of(*functions):
    """The lines of functions of the kernels' file."""
    lines = set()
    for function in functions:
        source, first = inspect.getsourcelines(function.fn)
        lines.update(range(first, first + len(source)))
    return lines


def read(cubin):
    """What the machine code of a kernel has.

    Returns:
        dict: ``registers`` of a thread; ``local``, the loads and stores of
        memory that stands in for registers; ``x``, how many loads and stores
        of X there are by their bytes.
    """
    file = Path(tempfile.gettempdir()) / 'kernel.cubin'
    file.write_bytes(cubin)
    usage = tool('cuobjdump', '-res-usage', file)
    code = tool('nvdisasm', '-g', '-c', file)
    of_x = lines_of(triton_kernels._load, triton_kernels._store)
    x, is_x = {}, False
    for line in code.splitlines():
        if found := _LINE.search(line):
            is_x = found[1] == triton_kernels.__file__
            is_x = is_x and int(found[2]) in of_x
        elif is_x and (found := _ACCESS.search(line)):
            width = _WIDTH.findall(found[0])
            bits = int(width[-1]) if width else 32
            if re.search(r'\.[US]\d+', found[0]):
                bits = int(re.search(r'\.[US](\d+)', found[0])[1])
            x[bits // 8] = x.get(bits // 8, 0) + 1
    return dict(
        registers=int(re.search(r'REG:(\d+)', usage)[1]),
        local=len(re.findall(r'\b(?:LDL|STL)\b', code)),
        x=x,
    )


def report(case, launch, capability, seen):
    """A line about a launch, unless the same was compiled already."""
    key = launch.key(), capability
    if key not in seen:
        compiled = launch.compile(capability)
        seen[key] = compiled.asm['ttir'], read(compiled.asm['cubin'])
    text, found = seen[key]
    rows = range(launch.grid[1] if len(launch.grid) > 1 else 1)
    most, waits = (
        max(numbers)
        for numbers in zip(
            *(loads(text, launch.values, (0, row)) for row in rows)
        )
    )
    row = dict(
        case=case, kernel=launch.name, grid=launch.grid, warps=launch.warps,
        most=most, waits=waits, **found,
    )  # fmt: skip
    print(json.dumps(row), flush=True)


if __name__ == '__main__':
    seen = {}
    for case in json.loads(sys.argv[1]):
        spec, shape, dtype, last, capability = case
        forward, backward = launches(
            spec, shape, getattr(torch, dtype), last, 132
        )
        for launch in forward + backward:
            report(case, launch, capability, seen)
