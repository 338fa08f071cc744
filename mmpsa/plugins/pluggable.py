"""Gives a class a constructor that takes ``plugins=``."""

from functools import wraps
from typing import TypeVar

from .insertion import insert_plugins

Class = TypeVar('Class', bound=type)


def pluggable(cls: Class) -> Class:
    """Give a backbone, neck or head a constructor that takes ``plugins=``.

    Use it as a decorator. It inserts the plugins when the constructor of the
    class, or of a subclass, is done. Without ``plugins`` nothing changes.

    The class itself is changed, and no subclass made: upstream's methods call
    ``super(Name, self)``, and ``Name`` must stay the class that they are in.

    Args:
        cls (type): A subclass of :class:`torch.nn.Module`.

    Returns:
        type: The same class.
    """
    _take_plugins(cls)
    own = vars(cls).get('__init_subclass__')

    def init_subclass(subclass, **kwargs):
        if own is None:
            super(cls, subclass).__init_subclass__(**kwargs)
        else:
            own.__func__(subclass, **kwargs)
        if '__init__' in vars(subclass):
            _take_plugins(subclass)

    setattr(cls, '__init_subclass__', classmethod(init_subclass))
    return cls


def _take_plugins(cls):
    init = cls.__init__

    @wraps(init)
    def __init__(self, *args, plugins=None, **kwargs):
        init(self, *args, **kwargs)
        if plugins is not None:
            insert_plugins(self, plugins)

    cls.__init__ = __init__
