"""An attention block of one's own, for any backbone, neck or head."""

from mmengine.registry import MODELS
from torch import nn


@MODELS.register_module()
class OwnAttention(nn.Module):
    """Gates the rows and the columns of a map by their means.

    Args:
        in_channels (int): C of the N×C×H×W input; ``plugins=`` passes the
            width of the place.
        ratio (float): Hidden channels, as a part of ``in_channels``.
    """

    _abbr_ = 'own'  # the name of the submodule: backbone.layer1.0.own

    def __init__(self, in_channels, ratio=1 / 4):
        super().__init__()
        inner = max(int(in_channels * ratio), 1)
        self.squeeze = nn.Conv2d(in_channels, inner, 1)
        self.relu = nn.ReLU()
        self.expand = nn.Conv2d(inner, in_channels, 1)
        # Every gate starts at one, and the block as the identity: a
        # pretrained network computes what it did before.
        nn.init.zeros_(self.expand.weight)
        nn.init.zeros_(self.expand.bias)

    def forward(self, x):
        rows = self.gate(x.mean(3, keepdim=True))  # N×C×H×1
        columns = self.gate(x.mean(2, keepdim=True))  # N×C×1×W
        return x * rows * columns

    def gate(self, means):
        return 2 * self.expand(self.relu(self.squeeze(means))).sigmoid()
