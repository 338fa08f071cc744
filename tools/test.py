"""Test a pose estimator or a segmentor: what ``mim test mmpsa`` runs."""

import argparse
import os.path as osp

from cli import config_file, parse_args


def draw_predictions(cfg, show_dir):
    """Have every picture drawn into ``show_dir`` with its prediction."""
    hook = cfg.get('default_hooks', {}).get('visualization', {})
    if hook.get('type') == 'PoseVisualizationHook':
        hook.update(enable=True, interval=1, out_dir=osp.abspath(show_dir))
    elif hook.get('type') == 'SegVisualizationHook':
        hook.update(draw=True, interval=1)
        cfg.visualizer.save_dir = show_dir
    else:
        raise ValueError(
            '--show-dir needs default_hooks.visualization to be a '
            'PoseVisualizationHook or a SegVisualizationHook, but the '
            f'config has {dict(hook)}'
        )


def main():
    """Read the command line, build the runner, test."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', type=config_file, help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '--out', metavar='FILE', help='save the metrics here (.json, .yaml)'
    )
    parser.add_argument(
        '--dump', metavar='FILE', help='save the predictions here (.pkl)'
    )
    parser.add_argument(
        '--show-dir', metavar='DIR', help='draw the predictions into here'
    )
    args, cfg = parse_args(parser)

    cfg.load_from = args.checkpoint
    if args.dump is not None:
        evaluators = cfg.test_evaluator
        if not isinstance(evaluators, (list, tuple)):
            evaluators = [evaluators]
        dump = dict(type='DumpResults', out_file_path=args.dump)
        cfg.test_evaluator = [*evaluators, dump]
    if args.show_dir is not None:
        draw_predictions(cfg, args.show_dir)

    import mmengine
    from mmengine.runner import Runner

    metrics = Runner.from_cfg(cfg).test()
    if args.out is not None and mmengine.dist.is_main_process():
        mmengine.dump(metrics, args.out)


if __name__ == '__main__':
    main()
