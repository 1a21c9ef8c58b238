"""A template as a page: one file that needs no network and runs no code but its own.

The templates escape every value, and a content-security policy allows exactly the script and the style sheet in the
file, by hash.
"""

import base64
import hashlib
import re
from datetime import datetime
from importlib.resources import files
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from cache import comparison
from cache.common.text import shortened, visible
from fuse.caveats import text_of
from fuse.report.story import percent
from fuse.report.tables import NONE

_WORDS: Final = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[_/.-])")


def render(template: str, **values: Any) -> str:
    """The page that a template makes of `values`; every one is made visible, then escaped."""
    style, script = _asset("report.css"), _asset("report.js")
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    environment = Environment(
        loader=PackageLoader("fuse.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: value if isinstance(value, Markup) else visible(str(value)),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "points": points,
        "count": "{:,}".format,
        "shorten": shortened,
        "text": text_of,
        "breakable": _breakable,
        "when": when,
    }
    page = environment.get_template(template)
    return page.render(style=Markup(style), script=Markup(script), policy=policy, **values)


def _asset(name: str) -> str:
    return (files("fuse.report") / "templates" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _breakable(name: str) -> Markup:
    """A name that breaks between its words: `ApplyEyeMakeup`, `brush_hair`."""
    return Markup("<wbr>").join(map(escape, _WORDS.split(visible(name))))


def when(date: str) -> str:
    """An ISO 8601 time as people write it: `26 November 2026, 18:02 UTC`."""
    moment = datetime.fromisoformat(date)
    return f"{moment.day} {moment:%B %Y, %H:%M} UTC"


def points(fraction: float | None, decimals: int = 1) -> str:
    """As in `cache.comparison`, and NONE for a figure that is missing."""
    return NONE if fraction is None else comparison.points(fraction, decimals)
