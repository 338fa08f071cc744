"""torch.compile: Inductor on the CPU, and sizes that change."""

import pytest
import torch
from helpers import KINDS, compare, make_block
from torch._dynamo.backends.debugging import aot_eager

from mmpsa.compatibility import release
from mmpsa.ops import backends

pytestmark = pytest.mark.skipif(
    release(torch.__version__) < (2, 7, 0),
    reason='compiled and exported look the same, and get plain torch',
)
VALUE_MAP = ('official', 'sequential')
# It takes Inductor half a minute to compile plain torch.
PLAIN = [('paper', 'sequential'), ('official', 'parallel'), VALUE_MAP]
BACKENDS = [
    *((kind, 'cpp') for kind in KINDS if kind != VALUE_MAP),
    *(pytest.param(kind, 'torch', marks=pytest.mark.slow) for kind in PLAIN),
]
FORMATS = [torch.contiguous_format, torch.channels_last]
# No two alike, as compiled code may take those for one.
SHAPES = [(2, 24, 9, 7), (3, 24, 5, 8), (5, 24, 12, 4)]


@pytest.fixture(autouse=True)
def no_caches():
    """What Inductor keeps on the disk is of the code as it was."""
    from torch._inductor import config

    with config.patch(force_disable_caches=True):
        yield


def make(kind, backend):
    if backends()[backend] is not None:
        pytest.skip(backends()[backend])
    torch._dynamo.reset()
    return make_block(*kind, 24, backend=backend)


def random(shape):
    torch.manual_seed(1)
    return torch.randn(shape)


@pytest.mark.parametrize('kind, backend', BACKENDS)
def test_inductor(kind, backend):
    """What reads the result believes the strides that it was promised."""
    block = make(kind, backend)
    compiled = torch.compile(lambda x: -block(x), fullgraph=True)
    for memory_format in FORMATS if backend == 'cpp' else FORMATS[:1]:
        x = random(SHAPES[0]).to(memory_format=memory_format)
        compare(block, x, 1e-5, None, torch.float64, lambda x: -compiled(x))
        assert compiled(x).is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize('kind, backend', BACKENDS)
def test_sizes_that_change(kind, backend):
    """One graph for all of them, in both directions."""
    block, graphs = make(kind, backend), []

    def compiler(graph, inputs):
        graphs.append(graph)
        return aot_eager(graph, inputs)

    compiled = torch.compile(
        block, fullgraph=True, dynamic=True, backend=compiler
    )
    compare(block, random(SHAPES[0]), 1e-5, None, torch.float64, compiled)
    first = len(graphs)
    for shape in SHAPES[1:]:
        compare(block, random(shape), 1e-5, None, torch.float64, compiled)
    assert len(graphs) == first > 0


@pytest.mark.slow
@pytest.mark.parametrize('kind, backend', BACKENDS)
def test_inductor_of_sizes_that_change(kind, backend):
    block = make(kind, backend)
    compiled = torch.compile(block, fullgraph=True, dynamic=True)
    for shape in SHAPES:
        compare(block, random(shape), 1e-5, None, torch.float64, compiled)
