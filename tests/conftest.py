import torch

# The tensors here are small: threads would cost more than they give.
torch.set_num_threads(1)
