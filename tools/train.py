"""Train a pose estimator or a segmentor: what ``mim train mmpsa`` runs."""

import argparse

from cli import config_file, parse_args


def use_amp(cfg):
    """Turn on mixed precision, with a dynamic loss scale unless one is set."""
    wrapper = cfg.optim_wrapper.get('type', 'OptimWrapper')
    if wrapper not in ('OptimWrapper', 'AmpOptimWrapper'):
        raise ValueError(
            '--amp needs optim_wrapper.type to be OptimWrapper or '
            f'AmpOptimWrapper, but the config has {wrapper}'
        )
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')


def main():
    """Read the command line, build the runner, train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', type=config_file, help='config file')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='resume from this checkpoint, or, if none is given, '
        'from the latest one in the work dir',
    )
    parser.add_argument(
        '--amp', action='store_true', help='train in mixed precision'
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate by the total batch size over '
        'auto_scale_lr.base_batch_size of the config',
    )
    parser.add_argument(
        '--no-validate',
        action='store_true',
        help='do not evaluate during training',
    )
    args, cfg = parse_args(parser)

    if args.resume is not None:
        cfg.resume = True
        cfg.load_from = None if args.resume == 'auto' else args.resume
    if args.amp:
        use_amp(cfg)
    if args.auto_scale_lr:
        cfg.merge_from_dict({'auto_scale_lr.enable': True})
    if args.no_validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None

    from mmengine.runner import Runner

    Runner.from_cfg(cfg).train()


if __name__ == '__main__':
    main()
