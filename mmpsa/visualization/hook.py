"""Gives the masks of plugins to the visualizer of a run."""

from contextlib import ExitStack

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from .masks import draw_masks, find_plugins, record_masks


@HOOKS.register_module()
class PSAVisualizationHook(Hook):
    """Draws the masks of a model's plugins while it is validated or tested.

    The pictures go to every backend of the run's visualizer, TensorBoard's
    included. A picture is called ``val_psa_N`` or ``test_psa_N``, shows the
    first sample of batch N, and has the training iteration as its step. The
    masks are those of the run itself. With an ``EMAHook`` they are those of
    the averaged weights.

    Args:
        interval (int): The hook draws the first batch and every
            ``interval``-th one after it. Default: 50.

    Raises:
        ValueError: If ``interval`` is not a positive int, or, before the run,
            if the model has no plugins.
    """

    def __init__(self, interval: int = 50):
        if type(interval) is not int or interval < 1:  # nor a bool
            raise ValueError(
                f'interval must be a positive int, got {interval!r}'
            )
        self.interval = interval
        self._recording = ExitStack()

    def before_run(self, runner):
        find_plugins(runner.model)

    def _before_iter(self, runner, batch_idx, data_batch=None, mode='train'):
        if self._is_drawn(batch_idx, mode):
            self._record = self._recording.enter_context(
                record_masks(runner.model)
            )

    def _after_iter(
        self, runner, batch_idx, data_batch=None, outputs=None, mode='train'
    ):
        if self._is_drawn(batch_idx, mode):
            self._recording.close()
            name = f'{mode}_psa_{batch_idx}'
            picture = draw_masks(self._record)
            runner.visualizer.add_image(name, picture, step=runner.iter)

    def _is_drawn(self, batch_idx, mode):
        wanted = mode != 'train' and batch_idx % self.interval == 0
        return wanted and is_main_process()
