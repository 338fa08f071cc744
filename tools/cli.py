"""What several tools read from the command line alike."""

import argparse
import os
import os.path as osp
from difflib import get_close_matches
from pathlib import Path

from mmengine.config import Config, DictAction

# Both a checkout and an installed package have them beside the tools.
CONFIGS = Path(__file__).absolute().parents[1] / 'configs'


def config_file(path):
    """The type of an argument: a config file, or the name of a shipped one.

    Args:
        path (str): A path, or a name with or without ``.py``.

    Returns:
        str: The path of the file.

    Raises:
        argparse.ArgumentTypeError: If there is no such file.
    """
    if osp.isfile(path):
        return path
    shipped = {
        file.stem: str(file)
        for file in CONFIGS.rglob('*.py')
        if '_base_' not in file.parts
    }
    name = path[:-3] if path.endswith('.py') else path
    if name in shipped:
        return shipped[name]
    near = get_close_matches(osp.basename(name), shipped, 3)
    raise argparse.ArgumentTypeError(
        f'there is no file {path!r}, and no config of this name comes with '
        f'mmpsa; names like it: {", ".join(near) or "none"}'
    )


def parse_args(parser):
    """Add the common arguments to ``parser``, parse, load the config.

    Returns:
        tuple: the parsed arguments (argparse.Namespace) and the config
        (mmengine.Config) with what they say of it merged in.
    """
    parser.add_argument(
        '--work-dir',
        help='folder for logs and models '
        '(default: work_dir of the config, else ./work_dirs/CONFIG_NAME)',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        metavar='KEY=VALUE',
        help='override settings of the config, for example '
        'train_dataloader.batch_size=8 model.backbone.out_indices="(0,1)"',
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='job launcher (default: none)',
    )
    # torch.distributed.launch passes this one
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    args = parser.parse_args()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))

    # A config without custom_imports needs mmpsa too: mmpsa gives backbones
    # their plugins=, and on torch >= 2.6 it lets mmengine read mmengine's own
    # checkpoints. At the top of the file, this import would slow down `-h`.
    from mmengine.device import get_device

    import mmpsa  # noqa: F401

    if args.launcher != 'none' and get_device() == 'cpu':
        parser.error(
            f'--launcher {args.launcher} needs a GPU for each process: '
            'mmengine puts every process on one, and there is none here. '
            'Leave --launcher out to run one process on the CPU'
        )
    cfg = Config.fromfile(args.config)
    cfg.merge_from_dict(args.cfg_options)
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        name = osp.splitext(osp.basename(args.config))[0]
        cfg.work_dir = osp.join('work_dirs', name)
    return args, cfg
