"""The templates of emitted code, by the folder of their language."""

from __future__ import annotations

from functools import lru_cache

from jinja2 import Environment, PackageLoader, StrictUndefined

from graphc.emit.text import minus, statement, times


@lru_cache(maxsize=2)
def _environment(folder: str) -> Environment:
    environment = Environment(
        loader=PackageLoader("graphc_templates", folder),
        undefined=StrictUndefined,
        trim_blocks=False,
        keep_trailing_newline=False,
        autoescape=False,  # the output is C or CUDA
    )
    environment.globals.update(times=times, minus=minus, call=statement)
    return environment


def render(folder: str, file: str, **context: object) -> str:
    """Return the text of a template."""
    return _environment(folder).get_template(file).render(**context)


def as_it_stands(folder: str, file: str) -> str:
    """Return a file beside the templates that is none."""
    environment = _environment(folder)
    assert environment.loader is not None
    return environment.loader.get_source(environment, file)[0]
