from .insertion import insert_plugins

__all__ = ['insert_plugins']
