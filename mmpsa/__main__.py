"""``python -m mmpsa``: what is installed, and whether the backends are right.

Run it for a bug report, or first on a new GPU. It prints the versions and the
backends, and says why a backend is missing. It compares the output and the
gradients of each backend with the reference. The exit status is 1 if something
is wrong. It also runs where ``import mmpsa`` fails.
"""

import importlib
import itertools
import platform
import sys
from importlib.util import find_spec

import mmpsa
from mmpsa.version import CODEBASES, VERSIONS

PACKAGES = ('torch', 'triton', 'mmengine', 'mmcv')
SHAPES = [(2, 8, 5, 7), (1, 32, 16, 12), (3, 17, 4, 4), (2, 256, 8, 6)]
# Of the largest value: rounding of sums, and of results in half precision.
TOLERANCES = {'float32': 1e-4, 'bfloat16': 1e-2}


def show(name, text):
    """Print a line."""
    print(f'{name + ":":20}{text}', flush=True)


def text_of(error):
    """Kind and message of an exception."""
    return f'{type(error).__name__}: {error}'


def show_versions():
    """Print the versions; False if an installed package does not import."""
    show('mmpsa', mmpsa.__version__)
    show('Python', f'{platform.python_version()}, {platform.platform()}')
    fine = True
    for name in PACKAGES + CODEBASES:
        if find_spec(name) is None:
            show(name, 'not installed')
            continue
        try:
            module = importlib.import_module(name)
            if name in CODEBASES:
                # This loads what they need beside OpenMMLab's packages.
                importlib.import_module(f'{name}.models')
        except Exception as error:  # whatever a broken package raises
            fine = False
            show(name, f'does not import, {text_of(error)}')
            continue
        show(name, module.__version__ + verdict(name, module.__version__))
        if name == 'torch':
            show('CUDA', cuda(module))
    return fine


def verdict(name, version):
    """What to add to a version that mmpsa was not tested with."""
    if name not in VERSIONS:
        return ''
    try:
        from mmpsa.compatibility import is_too_new, is_too_old
    except Exception:  # torch or mmengine is broken: its own line says so
        return ''
    low, high = VERSIONS[name]
    if is_too_old(name, version):
        return f', too old: >={low} is needed'
    if is_too_new(name, version):
        return f', not tested; tested: >={low}, <{high}'
    return ''


def cuda(torch):
    """The CUDA version and the devices."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = [torch.cuda.get_device_name(i) for i in range(count)]
    return f'{torch.version.cuda}, {", ".join(names) or "no device"}'


def cases():
    """Variant, layout, shape and dtype of what is tested."""
    from mmpsa.ops import LAYOUTS

    for variant, layouts in LAYOUTS.items():
        yield from itertools.product([variant], layouts, SHAPES, TOLERANCES)


def self_test(backend, device):
    """Compare a backend with the reference, forward and gradients.

    Args:
        backend (str): Of ``mmpsa.ops.BACKENDS``.
        device (str): ``'cpu'`` or ``'cuda'``.

    Returns:
        tuple[int, list[str]]: How many cases the backend serves; a text on
        each that is wrong.
    """
    import torch

    from mmpsa.psa import PolarizedSelfAttention

    generator = torch.Generator().manual_seed(0)
    count, wrong = 0, []
    for variant, layout, shape, dtype in cases():
        ours, exact = (
            PolarizedSelfAttention(shape[1], layout, variant, backend=name)
            for name in (backend, 'reference')
        )
        for parameter in ours.parameters():
            parameter.data.normal_(std=0.5, generator=generator)
        exact.load_state_dict(ours.state_dict())
        x, g = torch.randn(2, *shape, generator=generator).to(
            device, getattr(torch, dtype)
        )
        if ours.to(device).served_by(x) != backend:
            continue
        count += 1
        case = f'{variant} {layout} {shape} {dtype} on {device}'
        try:
            found = results(ours, x, g)
            served = ours.served_by(x)
        except Exception as error:
            wrong.append(f'{case}: {text_of(error)}')
            continue
        if served != backend:  # a kernel failed, and others stand in for it
            wrong.append(f'{case}: it failed and {served} served')
            continue
        expected = results(exact.to(device).double(), x.double(), g.double())
        worst = max(map(distance, found, expected))
        if not worst <= TOLERANCES[dtype]:  # NaN neither
            wrong.append(f'{case}: off by {worst:.1e}')
    return count, wrong


def results(block, x, g):
    """A block's output and all of its gradients."""
    import torch

    x = x.detach().requires_grad_()
    y = block(x)
    return [y, *torch.autograd.grad(y, [x, *block.parameters()], g)]


def distance(found, expected):
    """The largest difference, relative to the largest value or to 1."""
    scale = expected.abs().max().clamp(min=1)
    return ((found.double() - expected).abs().max() / scale).item()


def show_backends():
    """Print the backends and how they did; False if one is wrong."""
    import torch

    from mmpsa.ops import backends

    devices = ['cpu', 'cuda'] if torch.cuda.is_available() else ['cpu']
    fine = True
    for backend, reason in backends().items():
        if reason is not None:
            show(f'backend {backend}', f'not available: {reason}')
            continue
        if backend == 'reference':
            show(f'backend {backend}', 'available; the others must match it')
            continue
        for device in devices:
            count, wrong = self_test(backend, device)
            if not count:
                continue
            text = f'{count - len(wrong)} of {count} cases right on {device}'
            show(f'backend {backend}', text)
            for line in wrong:
                print(f'  wrong: {line}')
            fine = fine and not wrong
    return fine


def main():
    """Print all of it.

    Returns:
        int: The exit status.
    """
    fine = show_versions()
    try:
        mmpsa.PSA
    except Exception as error:
        show('mmpsa', f'does not import, {text_of(error)}')
        return 1
    return 0 if show_backends() and fine else 1


if __name__ == '__main__':
    sys.exit(main())
