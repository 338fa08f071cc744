"""The version of mmpsa, and the versions of what it works with."""

__version__ = '1.1.0'

# torch.compiler is what older ones lack.
OLDEST_TORCH = '2.1'
CODEBASES = ('mmpose', 'mmseg', 'mmdet', 'mmpretrain')
# Oldest that works, first version not tested; forks go by the same numbers.
VERSIONS = {
    'mmengine': ('0.10.0', '0.11.0'),
    'mmcv': ('2.1.0', '2.4.0'),
    'mmpose': ('1.3.0', '1.4.0'),
    'mmseg': ('1.2.2', '1.5.0'),
    'mmdet': ('3.0.0', '3.6.0'),
    'mmpretrain': ('1.2.0', '1.4.0'),
}
