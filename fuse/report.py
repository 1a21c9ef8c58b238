"""report.html: one file that needs no network and runs no code but its own.

The page's data is made in `fuse.page`; here it meets the templates, with autoescape on and a content-security policy
that allows exactly the script and the style sheet that stand in the file, by hash.
"""

import base64
import hashlib
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fuse.tables import NONE
from fuse.text import shortened


def render(page: Mapping[str, Any]) -> str:
    """The page as HTML; `page` comes from `fuse.page.page_of`."""
    style, script = _asset("report.css"), _asset("report.js")
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    environment = Environment(
        loader=PackageLoader("fuse"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": _percent, "points": _points, "count": _count, "shorten": shortened}
    template = environment.get_template("report.html")
    return template.render(**page, style=Markup(style), script=Markup(script), policy=policy)


def _asset(name: str) -> str:
    return (files("fuse") / "templates" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _percent(fraction: float | None, decimals: int = 1) -> str:
    """A fraction as percent, without the sign."""
    return NONE if fraction is None or fraction != fraction else f"{100 * fraction:.{decimals}f}"


def _points(fraction: float | None, decimals: int = 1) -> str:
    """A difference of fractions in points, with a true minus."""
    return NONE if fraction is None else f"{100 * fraction:+.{decimals}f}".replace("-", "−")


def _count(number: int) -> str:
    """A count with thousands set apart."""
    return f"{number:,}"
