"""Gives a module that exists the methods of a mixin.

The module becomes an instance of a subclass of its class, under the same name.
So it holds nothing that refers to itself, its keys stay, and its copies and
pickles have the methods too.
"""

from functools import lru_cache, wraps

from torch import nn


class Extension:
    """What the mixins inherit from."""

    extension_parts: tuple  # the mixins, and the class without them

    def chosen_or(self, forward):
        """The forward that this module had chosen for itself, or another."""
        return vars(self).get('chosen_forward', forward)

    def __reduce_ex__(self, protocol):
        # A pickle finds the class without the mixins by its name.
        _, (_, *args), *state = super().__reduce_ex__(max(protocol, 2))
        return (_new, (*self.extension_parts, *args), *state)


def extend(module: nn.Module, mixin: type) -> None:
    """Make a module an instance of a mixin, if it is none."""
    if not isinstance(module, mixin):
        if 'forward' in vars(mixin) and 'forward' in vars(module):
            # some choose one when they are built
            module.chosen_forward = vars(module).pop('forward')
        module.__class__ = _extended(mixin, type(module))


def plain_class(module: nn.Module) -> type:
    """The class of a module without mixins."""
    return getattr(module, 'extension_parts', ((), type(module)))[1]


@lru_cache(maxsize=None)
def _extended(mixin, cls):
    mixins, plain = getattr(cls, 'extension_parts', ((), cls))
    namespace = {
        '__module__': plain.__module__,
        '__qualname__': plain.__qualname__,
        '__doc__': plain.__doc__,
        'extension_parts': ((mixin, *mixins), plain),
    }
    if 'forward' in vars(mixin):

        @wraps(cls.forward)  # exporters read the names of its inputs
        def forward(self, *args, **kwargs):
            return mixin.forward(self, *args, **kwargs)

        # torch.compile limits how often it compiles the same code, and other
        # classes would count.
        forward.__code__ = forward.__code__.replace()
        namespace['forward'] = forward
    return type(plain.__name__, (mixin, cls), namespace)


def _new(mixins, plain, *args):
    cls = plain
    for mixin in reversed(mixins):
        cls = _extended(mixin, cls)
    return cls.__new__(cls, *args)
