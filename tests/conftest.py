import os
import sys
from pathlib import Path

import torch

# For the scripts; behind mmpsa where that is installed apart from them.
sys.path.append(str(Path(__file__).parents[1]))

# The tensors here are small: threads would cost more than they give.
torch.set_num_threads(1)
# Without a GPU, Triton's kernels are interpreted; it reads this at import.
if not torch.cuda.is_available():
    os.environ['TRITON_INTERPRET'] = '1'

import triton_operators  # noqa: E402

triton_operators.install()
