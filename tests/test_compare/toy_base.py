custom_imports = dict(imports=['toy_experiment'])
default_scope = 'mmengine'
crop_size = (8, 8)
model = dict(type='ToyModel', backbone=dict(type='ToyBackbone'))
loader = dict(
    batch_size=4,
    num_workers=0,
    dataset=dict(type='ToyPictures'),
    collate_fn=dict(type='pseudo_collate'),
)
train_dataloader = dict(
    loader, sampler=dict(type='InfiniteSampler', shuffle=True)
)
val_dataloader = dict(
    loader, sampler=dict(type='DefaultSampler', shuffle=False)
)
val_evaluator = dict(type='ToyScore')
train_cfg = dict(by_epoch=False, max_iters=6, val_interval=2)
val_cfg = dict()
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1))
default_hooks = dict(
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2)
)
