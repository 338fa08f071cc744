"""Compile kernels for GPUs, as the operator launches them, and read them.

Needs no GPU. Prints a line of JSON for each launch of the cases that it gets.
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

from benchmarks.launches import launches, loads
from mmpsa.ops import triton_kernels

TOOLS = Path(triton.backends.nvidia.__file__).parent / 'bin'
LINE = re.compile(r'//## File "(.*)", line (\d+)')
ACCESS = re.compile(r'\b(?:LDG|STG)\b\S*')


def tool(name, *arguments):
    """What one of the tools that Triton brings prints."""
    return subprocess.run(
        [TOOLS / name, *arguments], capture_output=True, text=True, check=True
    ).stdout


def newest():
    """The newest compute capability that the tools know."""
    known = re.findall(r"'SM(\d+)'", tool('nvdisasm', '--help'))
    return max(map(int, known))


def lines_of_x():
    """The lines of the kernels that load and store X and its like."""
    lines = set()
    for function in (triton_kernels._load, triton_kernels._store):
        source, first = inspect.getsourcelines(function.fn)
        lines.update(range(first, first + len(source)))
    return lines


def read(cubin):
    """What the machine code of a kernel has.

    Returns:
        dict: ``registers`` of a thread; ``local``, the loads and stores of
        memory that stands in for registers; ``x``, the bytes of each load and
        store of X.
    """
    with tempfile.NamedTemporaryFile() as file:
        file.write(cubin)
        file.flush()
        usage = tool('cuobjdump', '-res-usage', file.name)
        code = tool('nvdisasm', '-g', '-c', file.name)
    of_x, widths, is_x = lines_of_x(), [], False
    for line in code.splitlines():
        if found := LINE.search(line):  # of the instructions below it
            # Triton's cache may name the file of another checkout.
            is_x = Path(found[1]).name == Path(triton_kernels.__file__).name
            is_x = is_x and int(found[2]) in of_x
        elif is_x and (found := ACCESS.search(line)):
            bits = re.findall(r'\.[US]?(\d+)\b', found[0])
            widths.append(int(bits[-1] if bits else 32) // 8)
    return dict(
        registers=int(re.search(r'REG:(\d+)', usage)[1]),
        local=len(re.findall(r'\b(?:LDL|STL)\b', code)),
        x=widths,
    )


def main(cases):
    """Print what the launches of some cases are like."""
    compiled = {}
    for case in cases:
        spec, shape, dtype, last, capability = case
        target = newest() if capability == 'newest' else capability
        forward, backward = launches(spec, shape, getattr(torch, dtype), last)
        for launch in forward + backward:
            key = launch.key(), target
            if key not in compiled:
                asm = launch.compile(target).asm
                compiled[key] = asm['ttir'], read(asm['cubin'])
            text, found = compiled[key]
            row = dict(
                case=case,
                kernel=launch.name,
                programs=launch.grid,
                warps=launch.warps,
                is_wide=launch.constants.get('OFFSET')
                is triton.language.int64,
                iterations=loads(text, launch)[0],
                **found,
            )
            print(json.dumps(row), flush=True)


if __name__ == '__main__':
    main(json.loads(sys.argv[1]))
