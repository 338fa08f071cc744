"""Finds the places in a module where plugins can stand. It changes nothing."""

from typing import List, NamedTuple, Optional, Sequence, Set, Tuple

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .blocks import channels_at, positions_of, why_no_position
from .extension import plain_class
from .modules import (
    enumerate_names,
    is_container,
    is_replaceable,
    match_modules,
    named_modules,
)
from .stages import find_stages, modules_instead
from .validation import (
    AFTER_MODULE,
    AFTER_STAGE,
    OUTPUT,
    POSITIONS,
    Entry,
    PluginsError,
)
from .widths import WidthFinder


class Site(NamedTuple):
    """One place for plugins: a map that a module reads or returns."""

    host: str  # the name of the module that has the plugins
    # In the host, the name of the module whose map they get. '' is the host
    # itself. None: upstream's own plugin code in the host runs them.
    module: Optional[str]
    in_channels: int  # of the map
    like: str  # the module whose dtype, device and mode a plugin takes
    frozen: bool  # whether a plugin there is
    position: str  # of the convolution, also if the entry has after_3x3
    after: bool = True  # whether the map is the module's output
    containers: Tuple[str, ...] = ()  # in the host, around the plugins
    # The number of the map among those that the module returns and that have
    # one of the widths; None: each map. DDRNet and PIDNet return maps of other
    # widths, but only in training, and these have no plugins.
    index: Optional[int] = None
    widths: Tuple[int, ...] = ()
    # The norm in the host that conv-bn fusion fuses with the module.
    norm: str = ''
    formerly: str = ''  # the path in checkpoints of version 1.0

    @property
    def path(self) -> str:
        """The name of the module that has the plugins as children."""
        return join(self.host, *self.containers)

    @property
    def followed(self) -> str:
        """The name of the module whose map the plugins get."""
        return join(self.host, self.module or '')


class StageSites(NamedTuple):
    """The sites of one stage (or map), or the reason why it has none."""

    sites: Sequence[Site] = ()
    reason: str = ''


def join(*names: str) -> str:
    """Join names with dots, without those that are empty."""
    return '.'.join(filter(None, names))


def why_none(stages: Sequence[StageSites]) -> str:
    """The reason why none of the stages of a module has a site."""
    return stages[0].reason if stages else 'its stages are not known'


class SiteFinder:
    """Finds sites in a module, by position and stage, or by name."""

    def __init__(self, root: nn.Module):
        self._root = root
        self._title = type(root).__name__
        self.stages = find_stages(root)
        self._widths = WidthFinder(root, self.stages)

    def find(self, entry: Entry) -> List[Site]:
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
            return [
                self._after_module(entry, name)
                for name in match_modules(self._root, entry)
            ]
        if not getattr(self._root, 'plugin_positions', True):
            raise PluginsError(
                f"{entry.where}['position']: {self._title} is no backbone and "
                f'has no positions, got {entry.position!r}; use '
                f'{self._remedy}'
            )
        stages = self.find_by_stage(entry.position)
        if not any(stage.sites for stage in stages):
            raise PluginsError(
                f"{entry.where}['position']: {self._title} takes no plugin "
                f'{entry.position}: {why_none(stages)}; it has '
                f'{self._positions}; or use {self._remedy}'
            )
        flags = entry.flags(len(stages))
        for n, (flag, stage) in enumerate(zip(flags, stages)):
            if flag and not stage.sites:
                having = tuple(
                    f and bool(s.sites) for f, s in zip(flags, stages)
                )
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

    def find_by_stage(self, position: str) -> List[StageSites]:
        """The sites of each stage (or output), or why it has none."""
        if position == OUTPUT:
            stage = self._maps([''], OUTPUT)
            return [StageSites([site]) for site in stage.sites] or [stage]
        if position == AFTER_STAGE:
            return [self._maps(names, position) for names in self.stages]
        seen: Set[nn.Module] = set()
        return [self._blocks(names, position, seen) for names in self.stages]

    @property
    def _positions(self):
        """The positions that at least one stage of the backbone has."""
        found = [
            position
            for position in POSITIONS
            if any(stage.sites for stage in self.find_by_stage(position))
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
        return f"modules='…'; its modules are {enumerate_names(children)}"

    def _blocks(self, names, position, seen) -> StageSites:
        """The sites in the blocks of a stage, but for those in ``seen``.

        A block that several stages share is of the first one.
        """
        sites, others = [], []
        for name in names:
            stage = self._root.get_submodule(name)
            for path, block in (
                (name, stage),
                *named_modules(stage, f'{name}.'),
            ):
                if block in seen:
                    others.append(f'{path} is in an earlier stage too')
                    continue
                seen.add(block)
                if position in positions_of(block):
                    sites.append(self._in_block(path, block, position))
                elif why_no_position(block, position):
                    others.append(
                        f'{path} ({type(block).__name__}) '
                        f'{why_no_position(block, position)}'
                    )
        none = (
            f'{names[0]} has no blocks whose positions are known '
            '(mmpsa.declare_block tells those of your own)'
        )
        return StageSites(sites, '' if sites else (others or [none])[0])

    def _in_block(self, path, block, position):
        anchors = positions_of(block)
        anchor = anchors[position]
        return Site(
            host=path,
            module=anchor.child,
            after=anchor.after,
            in_channels=channels_at(block, anchor),
            like=path,
            frozen=self._is_frozen(path),
            position=next(p for p in anchors if anchors[p] == anchor),
        )

    def _maps(self, names, position) -> StageSites:
        """The sites at the maps that the modules of a stage return.

        The host is the innermost module that returns them. If this is a
        single layer, which a runner may replace, they are in the backbone.
        """
        if getattr(self._root, 'rfp_inplanes', None):
            return StageSites(
                reason='its blocks run one by one in a recursive feature '
                'pyramid'
            )
        sites = []
        for name in names:
            try:
                widths = tuple(self._widths.of_maps(name))
            except ValueError as error:
                return StageSites(reason=str(error))
            if not widths:
                return StageSites(
                    reason=f'{name or "it"} returns no N×C×H×W maps of fixed '
                    'width'
                )
            host = name
            module = self._root.get_submodule(name)
            while plain_class(module).forward is nn.Sequential.forward:
                host = join(host, [*module._modules][-1])
                module = module[-1]
            frozen = position == AFTER_STAGE and self._is_frozen(name)
            if is_container(module) or is_replaceable(module):
                if not name:
                    return StageSites(
                        reason='it is a Sequential of single layers'
                    )
                if len(widths) > 1:
                    return StageSites(
                        reason=f'{name} is a container that returns '
                        f'{len(widths)} maps'
                    )
                try:
                    site = self._after(name, *widths)
                except ValueError as error:
                    return StageSites(reason=str(error))
                sites.append(
                    site._replace(
                        position=position,
                        like=name,
                        frozen=frozen,
                        formerly=self._inside(name, position),
                    )
                )
                continue
            sites += [
                Site(
                    host=host,
                    module='',
                    in_channels=width,
                    like=name,
                    frozen=frozen,  # plugins at outputs are in no stage
                    position=position,
                    containers=(position, str(index)),
                    index=index,
                    widths=widths,
                )
                for index, width in enumerate(widths)
            ]
        return StageSites(sites)

    def _inside(self, name, position):
        """Where version 1.0 put a plugin after such a stage."""
        stage = self._root.get_submodule(name)
        inner = [n for n, m in stage.named_children() if any(m.children())]
        return join(name, inner[-1], position, '0') if inner else ''

    def _after(self, name: str, in_channels: int) -> Site:
        """The site at the output of a module that an entry names.

        The plugin is a child of that module. There are two exceptions: a
        container would run the plugin, and a runner may replace a single
        layer together with the plugin. For these two, the host is the nearest
        outer module that is neither.

        Raises:
            ValueError: If there is no such module, or if it is skipped in
                evaluation.
        """
        module = self._root.get_submodule(name)
        outer, inner, host = name.split('.'), [], module
        like = name
        while outer and (is_container(host) or is_replaceable(host)):
            if host is module and is_replaceable(host):
                # A norm may be frozen in a block that is not frozen, and an
                # activation has no parameters.
                like = '.'.join(outer[:-1])
            inner.insert(0, outer.pop())
            host = self._root.get_submodule('.'.join(outer))
        if is_container(host):
            raise ValueError(
                f'{name} is only inside containers, which would run the '
                'plugin as a child; name a module inside a module that is no '
                'container'
            )
        fuses = getattr(host, 'efficient_conv_bn_eval_forward', None)
        if fuses and isinstance(module, (nn.Conv2d, _BatchNorm)):
            raise ValueError(
                f'{name} is fused in evaluation; name {".".join(outer)}, or '
                'leave out its efficient_conv_bn_eval=True'
            )
        return Site(
            host='.'.join(outer),
            module='.'.join(inner),
            in_channels=in_channels,
            like=like,
            frozen=self._is_frozen(like),
            position=AFTER_MODULE,
            containers=(AFTER_MODULE, *inner) if inner else (),
            norm=_fused_norm(host, inner),
        )

    def _after_module(self, entry, name) -> Site:
        try:
            return self._after(name, self._widths.of_module(entry, name))
        except PluginsError:
            raise
        except ValueError as error:
            raise PluginsError(f"{entry.where}['modules']: {error}") from None

    def _is_frozen(self, name):
        parameters = [*self._root.get_submodule(name).parameters()]
        return bool(parameters) and not any(
            p.requires_grad for p in parameters
        )


def _fused_norm(host, names):
    """The norm that mmcv's ``fuse_conv_bn`` would fuse with a module."""
    if not isinstance(host.get_submodule('.'.join(names)), nn.Conv2d):
        return ''
    *around, name = names
    siblings = host.get_submodule('.'.join(around))._modules
    later = list(siblings)[list(siblings).index(name) + 1 :]
    for sibling in later:
        if isinstance(siblings[sibling], _BatchNorm):
            return '.'.join((*around, sibling))
        if isinstance(siblings[sibling], nn.Conv2d):
            break
    return ''
