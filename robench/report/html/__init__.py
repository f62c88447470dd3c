"""Pages: self-contained HTML files, of which nothing is fetched from anywhere."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from typing import Any


def render_page(template: str, **context: Any) -> str:
    """A template of this package as one file: style, script and pictures inside, everything that is not ours escaped.

    Args:
        template: such as "run.html".
        context: what it shows; a name that it misses is an error.
    """
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__name__),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = ((files(__name__) / "templates" / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    text = environment.get_template(template).render(style=Markup(style), script=Markup(script), policy=_policy(script), **context)
    return text.strip() + "\n"


def _policy(script: str) -> str:
    """What the browser may load: nothing but what the file holds, and no script but ours."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
