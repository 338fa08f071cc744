import os

import torch

# The tensors here are small: threads would cost more than they give.
torch.set_num_threads(1)
# Without a GPU, Triton's kernels are interpreted; it reads this at import.
if not torch.cuda.is_available():
    os.environ['TRITON_INTERPRET'] = '1'
