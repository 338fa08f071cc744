"""Trainings with each backend arrive where those by the equations do."""

import copy

import pytest
import torch
from helpers import AUTOCAST_DTYPES, KINDS, make_block
from torch import nn
from torch.nn.functional import mse_loss

from mmpsa.compatibility import release
from mmpsa.ops import backends, reference

GPU = 'cuda' if torch.cuda.is_available() else 'cpu'
CHANNELS = 32
VALUE_MAP = ('official', 'sequential')
CASES = [
    (kind, backend, dtype)
    for backend, dtypes in dict(
        cpp=(torch.float32, torch.bfloat16),
        triton=(torch.float32, torch.bfloat16, torch.float16),
        torch=(torch.float32, torch.float64, torch.bfloat16, torch.float16),
    ).items()
    for dtype in dtypes
    for kind in KINDS
    if backend == 'torch' or kind != VALUE_MAP
]
# How far weights may be apart, in parts of the path that each has gone: every
# step adds its rounding. Both trainings round alike to half precision, but for
# results next to a tie.
TOLERANCE = {
    torch.float64: 1e-10,
    torch.float32: 2e-5,
    torch.float16: torch.finfo(torch.float16).eps,
    torch.bfloat16: torch.finfo(torch.bfloat16).eps,
}


class Equations(nn.Module):
    """A block by its equations, half precision in float32."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x):
        weights, spec = self.block.weights, self.block.spec
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        with torch.autocast(x.device.type, enabled=False):
            y = reference.polarized_self_attention(wide, weights, spec)
        return y.to(x.dtype)


def make_model(block):
    torch.manual_seed(4)
    stem, head = nn.Conv2d(3, CHANNELS, 3), nn.Conv2d(CHANNELS, 4, 1)
    # Smooth: at a kink, rounding could change a gradient by all of it.
    return nn.Sequential(stem, block, nn.SiLU(), head)


def train(model, steps, dtype, device):
    """Train under autocast to ``dtype``; in float64, without.

    Returns:
        tuple[list[Tensor], ...]: The loss of each step; where each weight has
        gone from its start; the length of its path.
    """
    wide = torch.promote_types(dtype, torch.float32)
    model.to(device, wide)
    parameters = [*model.parameters()]
    start = [parameter.detach().clone() for parameter in parameters]
    paths = [torch.zeros_like(weight) for weight in start]
    torch.manual_seed(5)
    images = torch.randn(3, 2, 3, 8, 7).to(device, wide)
    targets = torch.randn(3, 2, 4, 6, 5).to(device, wide)
    optimizer = torch.optim.SGD(model.parameters(), 0.3, momentum=0.9)
    losses = []
    for step in range(steps):
        at = step % 3
        with torch.autocast(
            device,
            dtype if dtype in AUTOCAST_DTYPES else torch.bfloat16,
            enabled=dtype != wide,
        ):
            out = model(images[at])
            assert out.dtype == dtype
        loss = mse_loss(out.to(wide), targets[at])
        optimizer.zero_grad()
        loss.backward()
        before = [parameter.detach().clone() for parameter in parameters]
        optimizer.step()
        for path, parameter, old in zip(paths, parameters, before):
            path += (parameter.detach() - old).abs()
        losses.append(loss.detach())
    ways = [p.detach() - old for p, old in zip(parameters, start)]
    return losses, ways, paths


def compare_trainings(model, exact, steps, dtype, device):
    """The second by the equations."""
    losses, ways, _ = train(model, steps, dtype, device)
    exact_losses, exact_ways, paths = train(exact, steps, dtype, device)
    assert exact_losses[-1] < 0.95 * exact_losses[0]  # of the same images
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(losses, exact_losses, rtol=tolerance, atol=0)
    noise = torch.finfo(ways[0].dtype).eps  # of weights of about one
    for way, expected, path in zip(ways, exact_ways, paths):
        bound = tolerance * path.max().item() + 4 * noise
        torch.testing.assert_close(way, expected, rtol=0, atol=bound)


@pytest.mark.parametrize('kind, backend, dtype', CASES)
@pytest.mark.filterwarnings('ignore:::triton.runtime.interpreter')
def test_training(kind, backend, dtype):
    if backends()[backend] is not None:
        pytest.skip(backends()[backend])
    if dtype.itemsize == 2 and dtype not in AUTOCAST_DTYPES:
        pytest.skip('this torch has no such autocast on the CPU')
    device = GPU if backend == 'triton' else 'cpu'
    is_interpreted = backend == 'triton' and device == 'cpu'
    if is_interpreted and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter rounds bfloat16 towards zero")
    block = make_block(*kind, CHANNELS, backend=backend)
    exact = Equations(copy.deepcopy(block))
    x = torch.zeros(1, CHANNELS, 6, 5, dtype=dtype, device=device)
    assert block.to(device).served_by(x) == backend
    steps = 4 if is_interpreted else 16
    compare_trainings(
        make_model(block), make_model(exact), steps, dtype, device
    )


@pytest.mark.slow
@pytest.mark.skipif(
    release(torch.__version__) < (2, 7, 0),
    reason='compiled and exported look the same, and get plain torch',
)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_training_of_a_compiled_network(dtype):
    from torch._inductor import config

    torch._dynamo.reset()
    block = make_block('paper', 'sequential', CHANNELS)
    exact = make_model(Equations(copy.deepcopy(block)))
    model = torch.compile(make_model(block))
    # The caches know the operator's name, not the shapes of its results.
    with config.patch(force_disable_caches=True):
        compare_trainings(model, exact, 16, dtype, 'cpu')
