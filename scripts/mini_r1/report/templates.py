"""Filling the templates that lie in this folder. Whatever a model or a file says is a value, never a template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from mini_r1.common import printable


def render(template: str, **values: Any) -> str:
    """Fills a template of this folder; in `*.html.jinja`, every value that is no `Markup` is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=select_autoescape(["html.jinja"], default=False),
        # No control characters, but in HTML that was made here.
        finalize=lambda value: value if isinstance(value, Markup) else printable(str(value)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    # `tojson` writes `<`, `>`, `&` and whatever is not ASCII as `\u....`, so that no text can end its <script>.
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    return environment.get_template(template).render(values)
