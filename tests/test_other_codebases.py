"""The recipes of docs/other_codebases.md: they do what they did before."""

import copy
import io
import re

import onnxruntime
import onnxscript  # noqa: F401  (mim imports pip, which then breaks typing for it)
import pytest
import torch
from helpers import images
from test_docs import blocks

from mmpsa import PSA

RECIPES = [
    text for mark, text in blocks('docs/other_codebases.md', 'python') if mark
]
IDS = [re.search(r"model = [\w.]+\(('\w+')?", x).group() for x in RECIPES]
IDS = [name[8:].replace("('", '-').strip("('") for name in IDS]


def build(recipe):
    for package in re.findall(r'(?m)^(?:import|from) (\w+)', recipe):
        pytest.importorskip(package)
    namespace = {}
    torch.manual_seed(0)
    exec(recipe, namespace)
    return namespace['model']


def is_plugin(name):
    return bool({'psa', 'cbam', 'se', 'attn_last'} & {*name.split('.')})


def perturb(model):
    """Weights that are not the identity's, so that attention counts."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if is_plugin(name):
                tensor.normal_(0.1, 0.1)
    return model.eval()


def flat(output):
    """The tensors that any of these networks returns."""
    if isinstance(output, torch.Tensor):
        return [output]
    values = output.values() if isinstance(output, dict) else output
    return [tensor for value in values for tensor in flat(value)]


def maps(model, x):
    """What attention acts on. Boxes near a threshold come and go."""
    if isinstance(x, list):
        return flat(model.backbone(torch.stack(x)))
    return flat(model(x))


def same(ours, theirs, tolerance=0.0):
    """Relative to the largest value of each output."""
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs):
        bound = tolerance * max(1.0, b.abs().max().item())
        torch.testing.assert_close(torch.as_tensor(a), b, rtol=0, atol=bound)


@pytest.fixture(
    params=[
        pytest.param(x, id=name, marks=[pytest.mark.slow] * ('rcnn' in name))
        for name, x in zip(IDS, RECIPES)
    ]
)
def recipe(request):
    return request.param


@pytest.fixture
def x(recipe):
    x = images()
    return [x[0]] if 'keypointrcnn' in recipe else x


def loss(model, x):
    if not isinstance(x, list):
        return sum(y.square().mean() for y in flat(model(x)))
    points = torch.full((1, 5, 3), 1.0)
    points[..., :2] = 20 + 20 * torch.rand(1, 5, 2)
    target = dict(
        boxes=torch.tensor([[8.0, 8.0, 56.0, 56.0]]),
        labels=torch.tensor([1]),
        keypoints=points,
    )
    return sum(model(x, [target]).values())


def test_trained_saved_loaded_and_copied(recipe, x):
    model = build(recipe)
    parameters = dict(model.named_parameters())
    before = {k: p.detach().clone() for k, p in parameters.items()}
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(3):  # γ, masks and last norms of blocks start at 0
        optimizer.zero_grad()
        loss(model, x).backward()
        optimizer.step()
    plugins = {name.rpartition('.')[0] for name in before if is_plugin(name)}
    assert plugins
    assert plugins <= {
        name.rpartition('.')[0]
        for name, parameter in parameters.items()
        if not torch.equal(parameter, before[name])
    }

    perturb(model)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    loaded = build(recipe)
    loaded.load_state_dict(torch.load(file))
    with torch.no_grad():
        expected = maps(model, x)
        same(maps(loaded.eval(), x), expected)
        copied = copy.deepcopy(model)
        for name, parameter in model.named_parameters():
            if is_plugin(name):
                parameter.zero_()
        same(maps(copied, x), expected)
        assert not torch.equal(maps(model, x)[-1], expected[-1])


@torch.no_grad()
def test_compiled(recipe, x):
    model = perturb(build(recipe))
    torch._dynamo.reset()
    breaks = isinstance(x, list)  # without attention, too
    run = torch.compile(model, backend='eager', fullgraph=not breaks)
    same(flat(run(x)), flat(model(x)))


def onnx(model, x, path, **kwargs):
    torch.onnx.export(model, (x,), path, verbose=False, **kwargs)
    session = onnxruntime.InferenceSession(path)
    (given,) = session.get_inputs()
    array = x[0] if isinstance(x, list) else x
    return session.run(None, {given.name: array.numpy()})


@pytest.mark.slow
@torch.no_grad()
def test_onnx(recipe, x, tmp_path):
    model, path = perturb(build(recipe)), str(tmp_path / 'model.onnx')
    if isinstance(x, list):
        boxes, *_ = onnx(model, x, path, dynamo=False)
        assert len(boxes)
        model, x = model.backbone, images()
    same(onnx(model, x, path, dynamo=True), flat(model(x)), 1e-4)


def test_psa_keeps_its_own_start(recipe):
    """Whatever the library initialises after it."""
    for module in build(recipe).modules():
        if isinstance(module, PSA):
            assert module.sp_wq.weight.std() < 0.002
