"""What the arms of several plans have in common."""


def at(part, lr_mult=None, modules='fpn_convs.*', **cfg):
    """An arm: a plugin behind modules of ``part``, as ``'backbone.1'``.

    ``lr_mult`` is of the learning rate of PSA, ``cfg`` of the plugin.
    """
    arm = {f'model.{part}.plugins': [dict(cfg=cfg, modules=modules)]}
    if lr_mult:
        rates = dict(custom_keys={'.psa.': dict(lr_mult=lr_mult)})
        arm['optim_wrapper'] = dict(paramwise_cfg=rates)
    return arm


SE = dict(type='SE', identity_init=True)
PSA_P = dict(type='PSA', layout='parallel', identity_init=True)
PSA_S = dict(type='PSA', layout='sequential', identity_init=True)
