"""Tables and a picture of what was measured."""

import itertools

import matplotlib.pyplot as plt

plt.switch_backend('agg')

CELLS = {  # table: what stands in it, from a row
    'Time, ms ± its interquartile range': lambda row: (
        f'{1000 * row["median"]:.2f} ± {1000 * row["iqr"]:.2f}'
    ),
    'Time over {base}': lambda row: f'{row["ratio"]:.2f}',
    'Peak memory, MB': lambda row: f'{row["peak_bytes"] / 1e6:.1f}',
}


def matching(row):
    """Whether a contender's results match, and how far they are apart."""
    word = 'matches' if row['matches'] else 'differs'
    return f'{word}, {row["difference"]:.0e}'


def groups(rows, *keys):
    """Rows by the values of some keys, in the order that they come."""
    found = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in keys), []).append(row)
    return found


def line(row):
    """A contender's figures, to print."""
    name = row['contender'].ljust(18)
    if 'note' in row:
        return f'{name}{row["note"]}'
    milliseconds, spread = 1000 * row['median'], 1000 * row['iqr']
    return (
        f'{name}{milliseconds:10.3f} ms ± {spread:.3f}, '
        f'{row["ratio"]:6.2f} × {row["base"]}, '
        f'{row["peak_bytes"] / 1e6:8.1f} MB'
        + (f', {matching(row)}' if 'matches' in row else '')
    )


def table(rows, cell):
    """A line for each case, a column for each contender.

    Args:
        rows (list[dict]): The rows of a part, dtype and mode.
        cell (Callable): What stands in a cell, from its row.

    Returns:
        str: Markdown.
    """
    names = list(dict.fromkeys(row['contender'] for row in rows))
    lines = [['', *names], ['---', *['--:'] * len(names)]]
    for (where,), case in groups(rows, 'where').items():
        cells = [cell(row) if 'median' in row else '–' for row in case]
        lines.append([where, *cells])
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def markdown(rows, environment, picture):
    """The tables of a run, and its picture.

    Args:
        rows (list[dict]): Every row of the run.
        environment (dict): What figures depend on beside the code.
        picture (str): The path of the picture, from the document.

    Returns:
        str: A document in Markdown.
    """
    parts = [
        '# Time and memory, measured',
        'Written by `python -m benchmarks`.',
        ', '.join(f'{key} {value}' for key, value in environment.items()),
        f'![Times by shape]({picture})',
    ]
    for key, found in groups(rows, 'part', 'dtype', 'mode').items():
        parts.append(f'## {", ".join(key).capitalize()}')
        for title, cell in CELLS.items():
            parts.append(f'{title.format(base=found[0]["base"])}:')
            parts.append(table(found, cell))
        alike = [row for row in found if 'matches' in row]
        if alike:
            first = alike[0]['contender']
            parts.append(f'Results against those of {first}:')
            parts.append(table(alike, matching))
    notes = groups([row for row in rows if 'note' in row], 'contender', 'note')
    for (name, note), found in notes.items():
        where = ', '.join(dict.fromkeys(row['where'] for row in found))
        parts.append(f'No {name} at {where}: {note}.')
    return '\n\n'.join(parts) + '\n'


def draw(rows, path):
    """A panel for each part, dtype and mode: times over the base's.

    Blocks are lines over their shapes. There is one network: it has bars.
    """
    panels = groups(rows, 'part', 'dtype', 'mode')
    figure, axes = plt.subplots(
        1,
        len(panels),
        figsize=(5 * len(panels), 5),
        squeeze=False,
        layout='constrained',
    )
    names = dict.fromkeys(row['contender'] for row in rows)
    colours = dict(zip(names, itertools.cycle(plt.get_cmap('tab20').colors)))
    lines = {}
    for ax, (key, panel) in zip(axes[0], panels.items()):
        measured = [row for row in panel if 'median' in row]
        ratio = f'time over {panel[0]["base"]}'
        ax.set_title(', '.join(key))
        ax.grid(alpha=0.3)
        if key[0] == 'network':
            contenders = [row['contender'] for row in measured]
            bars = ax.barh(
                contenders,
                [row['ratio'] for row in measured],
                color=[colours[name] for name in contenders],
            )
            ax.bar_label(bars, fmt='%.2f', padding=2)
            ax.margins(x=0.12)
            ax.invert_yaxis()
            ax.set_xlabel(ratio)
            continue
        for (name,), found in groups(measured, 'contender').items():
            where = [row['where'] for row in found]
            ratios = [row['ratio'] for row in found]
            (line,) = ax.plot(where, ratios, 'o-', color=colours[name])
            lines[name] = line
        ax.set_yscale('log')
        ax.set_ylabel(ratio)
        ax.tick_params('x', rotation=90)
    if lines:
        figure.legend(
            lines.values(), lines, loc='outside upper center', ncols=6
        )
    figure.savefig(path, dpi=80)
    plt.close(figure)
