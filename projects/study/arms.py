"""What the arms of several plans have in common."""


def at(part, cfg, lr_mult=None, modules='fpn_convs.*', **entry):
    """An arm: a plugin behind modules of ``part``, as ``'backbone.1'``.

    ``lr_mult`` is of the learning rate of PSA, ``entry`` of the plugin's
    entry, beside its ``cfg``.
    """
    plugins = [dict(cfg=cfg, modules=modules, **entry)]
    arm = {f'model.{part}.plugins': plugins}
    if lr_mult:
        rates = dict(custom_keys={'.psa.': dict(lr_mult=lr_mult)})
        arm['optim_wrapper'] = dict(paramwise_cfg=rates)
    return arm


SE = dict(type='timm_se')
PSA_P = dict(type='PSA', layout='parallel', identity_init=True)
PSA_S = dict(type='PSA', layout='sequential', identity_init=True)
