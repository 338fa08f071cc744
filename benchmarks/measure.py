"""How time and memory are measured."""

import itertools

import torch
from torch.utils.benchmark import Measurement, Timer
from torch.utils.benchmark.utils.common import TaskSpec


def times(calls, device, rounds, seconds):
    """Time calls in turn, so that a slow moment of the machine meets all.

    Args:
        calls (dict[str, Callable]): What to time, called once already.
        device (str): ``'cpu'``: by torch's timer, in a loop. ``'cuda'``: by
            Triton's, between events, each call with an empty L2 cache.
        rounds (int): How many turns each gets.
        seconds (float): How long a turn lasts, one call at least.

    Returns:
        dict[str, Measurement]: The time of a call, by turns on a CPU and by
        calls on a GPU.
    """
    turn = cpu_turn if device == 'cpu' else cuda_turn
    turns = [
        turn(name, call, seconds)
        for _ in range(rounds)
        for name, call in calls.items()
    ]
    return {found.description: found for found in Measurement.merge(turns)}


def cpu_turn(name, call, seconds):
    """A turn by ``torch.utils.benchmark``, with two calls to warm up."""
    timer = Timer(
        'call()',
        globals=dict(call=call),
        description=name,
        num_threads=torch.get_num_threads(),
    )
    once = timer.timeit(1)
    number = int(seconds / once.median)
    return timer.timeit(number) if number > 1 else once


def cuda_turn(name, call, seconds):
    """A turn by ``triton.testing``."""
    from triton.testing import do_bench

    found = do_bench(call, rep=1000 * seconds, return_mode='all')
    task = TaskSpec('call()', '', description=name)
    return Measurement(
        1, [milliseconds / 1000 for milliseconds in found], task
    )


def peak_memory(call, device):
    """The most bytes of tensors that a call adds at any time.

    The result of the call counts too. On a GPU, torch's allocator tells the
    number. On a CPU, it is the peak of the sum of the allocations that
    torch's profiler records.
    """
    if device == 'cuda':
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return torch.cuda.max_memory_allocated() - before
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        call()
    events = profile.kineto_results.events()
    events = [event for event in events if event.name() == '[memory]']
    events.sort(key=lambda event: event.start_ns())
    sums = itertools.accumulate(event.nbytes() for event in events)
    return max(sums, default=0)


def difference(result, expected):
    """The largest difference of results, in parts of the largest value.

    Args:
        result (Tensor or sequence[Tensor]): What a call returns.
        expected (Tensor or sequence[Tensor]): What it is compared with.

    Returns:
        float: The largest of all tensors.
    """
    if torch.is_tensor(result):
        result, expected = [result], [expected]
    peaks = [tensor.abs().max().item() for tensor in expected]
    floor = 1e-3 * max(peaks)  # some gradients are zero but for rounding
    return max(
        (ours.double() - tensor.double()).abs().max().item() / max(peak, floor)
        for ours, tensor, peak in zip(result, expected, peaks)
    )


def compare(calls, base, alike, tolerance, device, rounds, seconds):
    """Time and memory of the contenders of a case.

    Args:
        calls (dict[str, Callable or str]): By contender; a string says why
            there is none.
        base (str): The contender whose time the others are divided by.
        alike (sequence[str]): Those whose results must match the first's.
        tolerance (float): How far they may be apart, as of
            :func:`difference`.
        device (str): ``'cpu'`` or ``'cuda'``.
        rounds (int): As in :func:`times`.
        seconds (float): As in :func:`times`.

    Returns:
        list[dict]: Of each its ``contender``, ``base``, and either
        ``median`` and ``iqr`` (seconds of a call), ``ratio`` (to the base's
        median) and ``peak_bytes``, or a ``note`` that says why not. Of those
        alike ``difference`` and ``matches`` too.
    """
    notes, able, results = {}, {}, {}
    for name, call in calls.items():
        if isinstance(call, str):
            notes[name] = call
            continue
        try:
            result = call()
            able[name] = call
            if name in alike:
                results[name] = result
        except torch.cuda.OutOfMemoryError:
            notes[name] = 'out of memory'
    expected = next(iter(results.values()), None)
    apart = {k: difference(v, expected) for k, v in results.items()}
    found = times(able, device, rounds, seconds)
    rows = []
    for name, call in calls.items():
        row = dict(contender=name, base=base)
        if name in notes:
            row.update(note=notes[name])
        else:
            row.update(
                median=found[name].median,
                iqr=found[name].iqr,
                ratio=found[name].median / found[base].median,
                peak_bytes=peak_memory(call, device),
            )
        if name in apart:
            row.update(
                difference=apart[name], matches=apart[name] <= tolerance
            )
        rows.append(row)
    return rows
