"""Finds the places in a module where plugins can go."""

import re
from difflib import get_close_matches
from functools import cached_property
from typing import (
    Dict,
    Iterator,
    List,
    NamedTuple,
    Optional,
    Sequence,
    Set,
    Tuple,
)

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .blocks import (
    NATIVE,
    channels_at,
    modules_instead,
    positions_of,
    why_no_position,
)
from .hooks import (
    is_container,
    run_after_module,
    run_in_block,
    run_natively,
    run_on_map,
)
from .probing import find_widths
from .stages import find_stages
from .validation import AFTER_STAGE, OUTPUT, POSITIONS, Entry, PluginsError

AFTER_MODULE = 'after_module'


class Site:
    """One place for plugins.

    Attributes:
        path (str): The name of the module that will have the plugin as a
            child.
        in_channels (int): The width of the map there.
        like (nn.Module): The module whose dtype, device and mode a plugin
            takes.
        frozen (bool): Whether a plugin there is frozen.
        position (str): Its place in the order of keys. For a block, it is
            that of the convolution, also for ``after_3x3``.
    """

    path: str
    position: str
    in_channels: int
    like: nn.Module

    def has(self, name: str) -> bool:
        """Whether there is a module of that name."""
        raise NotImplementedError

    def add(self, name: str, layer: nn.Module) -> None:
        """Put a plugin there, after those that are there."""
        raise NotImplementedError


class Stage(NamedTuple):
    """The sites of one stage (or map), or the reason why it has none."""

    sites: Sequence[Site] = ()
    reason: str = ''


def _is_frozen(module):
    parameters = [*module.parameters()]
    return bool(parameters) and not any(p.requires_grad for p in parameters)


def why_none(stages: Sequence[Stage]) -> str:
    """The reason why none of the stages of a module has a site."""
    return stages[0].reason if stages else 'its stages are not known'


class BlockSite(Site):
    """A position of a block; the plugin is the block's child."""

    def __init__(self, path: str, block: nn.Module, position: str):
        self.path = path
        self.like = block
        positions = positions_of(block)
        self._anchor = positions[position]
        self.position = next(
            name for name in positions if positions[name] == self._anchor
        )
        self.in_channels = channels_at(block, self._anchor)

    @property
    def frozen(self):
        return _is_frozen(self.like)

    def has(self, name):
        return hasattr(self.like, name)

    def add(self, name, layer):
        _add(self.like, name, layer)
        if self._anchor.child is NATIVE:
            run_natively(self.like, self.position, name)
        else:
            run_in_block(self.like, self._anchor, name)


class MapSite(Site):
    """A map that a stage, or the backbone (``name`` is ''), returns.

    The plugins of a stage are children of its last module. A Sequential would
    run its children, so inside a Sequential they are children of its last
    module that is not a single layer.
    """

    def __init__(
        self,
        backbone: nn.Module,
        name: str,
        position: str,
        widths: List[int],
        index: int,
    ):
        self.like = backbone.get_submodule(name)
        self.in_channels = widths[index]
        self._host = self.like
        self.position = position
        self._widths = widths
        self._index = index
        while type(self._host).forward is nn.Sequential.forward:
            # not a single layer: runners replace norm layers
            inner = [
                (f'{name}.{child}'.lstrip('.'), module)
                for child, module in self._host.named_children()
                if any(module.children())
            ]
            if not inner:
                raise ValueError(
                    f'{name or "it"} is a Sequential of single layers'
                )
            name, self._host = inner[-1]
        self.path = f'{name}.{position}.{index}'.lstrip('.')

    @property
    def frozen(self):
        """Whether the stage is; plugins at outputs are in no stage."""
        return self.position == AFTER_STAGE and _is_frozen(self.like)

    def has(self, name):
        return hasattr(_place(self._host, self._names), name)

    def add(self, name, layer):
        if not hasattr(self._host, self.position):
            run_on_map(self.like, self._host, self.position, self._widths)
        _add(_place(self._host, self._names, make=True), name, layer)

    @property
    def _names(self):
        return self.position, str(self._index)


class ModuleSite(Site):
    """The output of a module that an entry names.

    The plugin is a child of that module. There are two exceptions: a container
    would run the plugin, and a runner may replace a single layer together with
    the plugin. For these two, the plugin is in the nearest outer module that
    is neither: in its ``after_module``, under the name of the named module.
    """

    def __init__(self, root: nn.Module, name: str, in_channels: int):
        self.position = AFTER_MODULE
        self.in_channels = in_channels
        self._name = name
        outer, inner, host = name.split('.'), [], root.get_submodule(name)
        around = [host]
        while outer and (is_container(host) or _is_single(host)):
            inner.insert(0, outer.pop())
            host = root.get_submodule('.'.join(outer))
            around.append(host)
        if is_container(host):
            raise ValueError(
                f'{name} is only inside containers, which would run the '
                'plugin as a child; name a module inside a module that is no '
                'container'
            )
        self._host, self._module = host, inner
        self._names = (AFTER_MODULE, *inner) if inner else ()
        self.path = '.'.join((*outer, *self._names))
        # Not the single layer itself: a norm may be frozen in a block that is
        # not frozen, and an activation has no parameters.
        self.like = around[_is_single(around[0])]

    @property
    def frozen(self):
        return _is_frozen(self.like)

    def has(self, name):
        return hasattr(_place(self._host, self._names), name)

    def add(self, name, layer):
        _add(_place(self._host, self._names, make=True), name, layer)
        run_after_module(
            self._host,
            '.'.join(self._module),
            '.'.join((*self._names, name)),
            self._name,
            self.in_channels,
            self._norm,
        )

    @property
    def _norm(self):
        """The norm that mmcv's ``fuse_conv_bn`` would fuse with the module."""
        *around, name = self._module or ['']
        if not isinstance(
            self._host.get_submodule('.'.join(self._module)), nn.Conv2d
        ):
            return ''
        siblings = self._host.get_submodule('.'.join(around))._modules
        later = list(siblings)[list(siblings).index(name) + 1 :]
        for sibling in later:
            if isinstance(siblings[sibling], _BatchNorm):
                return '.'.join((*around, sibling))
            if isinstance(siblings[sibling], nn.Conv2d):
                break
        return ''


def followed(plugin: str) -> str:
    """The name of the module (or position) that a plugin follows."""
    *path, _ = plugin.split('.')
    return '.'.join(name for name in path if name != AFTER_MODULE)


def _is_single(module):
    """Whether a runner may replace it: layers, norms, timm's norms too."""
    return isinstance(module, _BatchNorm) or not any(module.children())


def _add(module, name, layer):
    """Add a child that :func:`named_modules` does not see."""
    layer.is_plugin = True
    module.add_module(name, layer)


def _place(host, names, make=False) -> Optional[nn.Module]:
    """The module in a host under ``names``; ``make`` adds what is missing."""
    for name in names:
        if make and name not in host._modules:
            _add(host, name, nn.ModuleDict())
        host = host._modules.get(name)
        if host is None:
            break
    return host


def named_modules(
    module: nn.Module, prefix: str = ''
) -> Iterator[Tuple[str, nn.Module]]:
    """The modules inside a module, by name, without plugins.

    A module with several names is yielded under each.
    """
    for name, child in module._modules.items():
        if not (child is None or getattr(child, 'is_plugin', False)):
            yield prefix + name, child
            yield from named_modules(child, f'{prefix}{name}.')


class Sites:
    """The sites of a module, by position and stage, or by name."""

    def __init__(self, module: nn.Module):
        self._root = module
        self.stages = find_stages(module)

    def of(self, entry: Entry) -> List[Site]:
        """The sites of an entry.

        Raises:
            PluginsError: If a stage that the entry asks for has no site, if
                the number of its ``stages`` is wrong, if a pattern matches
                nothing, or if a width is not known.
        """
        for name, module in named_modules(self._root):
            if getattr(module, 'output_fmt', None) == 'NHWC':  # timm's
                raise PluginsError(
                    f'{entry.where}: {name} of this {self._title}, a '
                    f'{type(module).__name__}, computes N×H×W×C maps; '
                    'plugins take N×C×H×W'
                )
        if entry.patterns:
            return self._named(entry)
        if not getattr(self._root, 'plugin_positions', True):
            raise PluginsError(
                f"{entry.where}['position']: {self._title} is no backbone and "
                f'has no positions, got {entry.position!r}; use '
                f'{self._remedy}'
            )
        stages = self.at(entry.position)
        if not any(stage.sites for stage in stages):
            raise PluginsError(
                f"{entry.where}['position']: {self._title} takes no plugin "
                f'{entry.position}: {why_none(stages)}; it has '
                f'{self._positions}; or use {self._remedy}'
            )
        flags = self._flags(entry, len(stages))
        having = tuple(
            flag and bool(stage.sites) for flag, stage in zip(flags, stages)
        )
        for n, (flag, stage) in enumerate(zip(flags, stages)):
            if flag and not stage.sites:
                raise PluginsError(
                    f"{entry.where}['stages'] has stage {n + 1} of "
                    f'{len(stages)}, which takes no plugin {entry.position}: '
                    f'{stage.reason}; leave it out: stages={having}'
                )
        return [
            site
            for flag, stage in zip(flags, stages)
            if flag
            for site in stage.sites
        ]

    def _flags(self, entry, num_stages):
        if entry.stages is None:
            return [True] * num_stages
        if (
            not isinstance(entry.stages, (list, tuple))
            or len(entry.stages) != num_stages
            or any(not isinstance(flag, bool) for flag in entry.stages)
        ):
            of = 'output' if entry.position == OUTPUT else 'stage'
            flags = 'boolean' if num_stages == 1 else 'booleans'
            raise PluginsError(
                f"{entry.where}['stages'] must be {num_stages} {flags}, one "
                f'for each {of} of the backbone, got {entry.stages!r}'
            )
        return entry.stages

    @property
    def _title(self):
        return type(self._root).__name__

    @property
    def _positions(self):
        """The positions that at least one stage of the backbone has."""
        found = [
            position
            for position in POSITIONS
            if any(stage.sites for stage in self.at(position))
        ]
        return ', '.join(found) or 'no positions'

    @property
    def _remedy(self):
        pattern = modules_instead(self._root)
        if pattern:
            return f'modules={pattern!r}'
        children = [
            name
            for name, child in named_modules(self._root)
            if any(True for _ in child.parameters())  # no losses
        ]
        return f"modules='…'; its modules are {_enumerate(children)}"

    def at(self, position: str) -> List[Stage]:
        """The sites of each stage (or output), or why it has none."""
        if position == OUTPUT:
            stage = self._maps([''], OUTPUT)
            if not stage.sites:
                return [stage]
            return [Stage([site]) for site in stage.sites]
        if position == AFTER_STAGE:
            return [self._maps(names, position) for names in self.stages]
        seen: Set[nn.Module] = set()
        return [self._blocks(names, position, seen) for names in self.stages]

    def _blocks(self, names, position, seen) -> Stage:
        """The sites in the blocks of a stage, but for those in ``seen``.

        A block that several stages share is of the first one.
        """
        sites, others = [], []
        for name in names:
            stage = self._root.get_submodule(name)
            modules = [(name, stage), *named_modules(stage, f'{name}.')]
            for path, block in modules:
                if block in seen:
                    others.append(f'{path} is in an earlier stage too')
                    continue
                seen.add(block)
                if position in positions_of(block):
                    sites.append(BlockSite(path, block, position))
                elif why_no_position(block, position):
                    others.append(
                        f'{path}, a {type(block).__name__}, '
                        f'{why_no_position(block, position)}'
                    )
        none = f'{names[0]} has no blocks whose positions are known'
        return Stage(sites, '' if sites else (others or [none])[0])

    def _maps(self, names, position) -> Stage:
        if getattr(self._root, 'rfp_inplanes', None):
            return Stage(
                reason='its blocks run one by one in a recursive feature '
                'pyramid'
            )
        sites = []
        for name in names:
            try:
                widths = self._widths.get(name)
                sites += [
                    MapSite(self._root, name, position, widths, i)
                    for i in range(len(widths or []))
                ]
            except ValueError as error:
                return Stage(reason=str(error))
            if not widths:
                return Stage(
                    reason=f'{name or "it"} returns no N×C×H×W maps of fixed '
                    'width'
                )
        return Stage(sites)

    @cached_property
    def _widths(self) -> Dict[str, List[int]]:
        return find_widths(self._root, ['', *sum(self.stages, [])])

    def _named(self, entry) -> List[Site]:
        modules = dict(named_modules(self._root))
        names = {}  # one name per module: a module may have several
        for pattern in entry.patterns:
            try:
                matching = re.compile(_to_regex(pattern)).fullmatch
            except re.error as error:  # [3-1]
                raise PluginsError(
                    f"{entry.where}['modules'] has the malformed pattern "
                    f'{pattern!r}: {error}'
                ) from error
            matched = [name for name in modules if matching(name)]
            if not matched:
                like = get_close_matches(pattern, modules, 5, 0.5)
                raise PluginsError(
                    f"{entry.where}['modules']: {pattern!r} matches no module "
                    f'of this {self._title}; it has '
                    f'{_enumerate(like or [*modules])}'
                )
            called = [name for name in matched if _is_called(modules[name])]
            if not called:
                raise PluginsError(
                    f"{entry.where}['modules']: {pattern!r} matches "
                    f'{_enumerate(matched)}, a list of modules, which is '
                    f'never called; name its items: {pattern + ".*"!r}'
                )
            for name in called:
                names.setdefault(modules[name], name)
        try:
            return [
                ModuleSite(self._root, name, self._width(entry, name, module))
                for module, name in names.items()
            ]
        except PluginsError:
            raise
        except ValueError as error:
            raise PluginsError(f"{entry.where}['modules']: {error}") from None

    def _width(self, entry, name, module) -> int:
        """The width of a module's output.

        An attribute of the module has it, or the entry, or a run finds it.
        """
        given = entry.cfg.get('in_channels')
        for attribute in ('out_channels', 'num_features', 'num_channels'):
            width = getattr(module, attribute, None)
            if isinstance(width, int):
                if given not in (None, width):
                    raise PluginsError(
                        f"{entry.where}['cfg']['in_channels'] is {given}, but "
                        f'{name} has {attribute}={width}'
                    )
                return width
        return given or self._probed(entry, name)

    def _probed(self, entry, name):
        """The width of a module's output, found by running the network."""
        remedy = (
            'give it inside cfg: '
            f'cfg=dict(type={entry.cfg["type"]!r}, in_channels=64)'
        )
        where = f"{entry.where}['modules']: the width of {name}"
        if not getattr(self._root, 'plugin_positions', True):
            raise PluginsError(f'{where} is not known; {remedy}')
        try:
            widths = self._widths_of_all.get(name, [])
        except ValueError as error:
            raise PluginsError(
                f'{where} is not known: {error}; {remedy}'
            ) from error.__cause__
        if not widths:
            raise PluginsError(
                f'{where} is not known: it returns no N×C×H×W map of fixed '
                f'width where {self._title} runs on pictures; {remedy}'
            )
        if len(widths) > 1:
            raise PluginsError(
                f"{entry.where}['modules']: {name} returns {len(widths)} "
                'N×C×H×W maps, a plugin takes one; name another module'
            )
        return widths[0]

    @cached_property
    def _widths_of_all(self):
        called = [
            name
            for name, module in named_modules(self._root)
            if _is_called(module)
        ]
        return find_widths(self._root, called)


def _is_called(module):
    forward = vars(module).get('forward', type(module).forward)
    return forward is not nn.Module.forward


def _to_regex(pattern):
    """A pattern of names as a regular expression."""
    meanings = {'**.': r'(?:.+\.)?', '**': '.*', '*': '[^.]*', '?': '[^.]'}
    return ''.join(
        meanings.get(token) or (token if token[0] == '[' else re.escape(token))
        for token in re.findall(r'\*\*\.|\*\*|\[[^]]+\]|.', pattern)
    )


def _enumerate(names, limit=8):
    shown = ', '.join(names[:limit])
    more = len(names) - limit
    return f'{shown} and {more} more' if more > 0 else shown
