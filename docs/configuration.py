"""Writes docs/configuration.md from the typed configuration: python -m docs.configuration

Types, bounds and defaults are pydantic's JSON schema of `Config`; what a key means is the comment above it in
gesr_core/config.py, else the one in conf/base/<section>.yaml; what a section means is its class's docstring.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from gesr_core import config as typed
from gesr_core.config import PROJECT_ROOT, Config

PAGE: Final = PROJECT_ROOT / "docs/configuration.md"
_BASE: Final = PROJECT_ROOT / "conf/base"
_MODELS: Final = {"two_tower": "TwoTowerConfig", "gesr": "GesrConfig", "tarq": "TarqConfig"}
_BOUNDS: Final = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
_HEAD: Final = """\
<!-- Written by `python -m docs.configuration`: change gesr_core/config.py or conf/base, and run it again. -->
# Configuration reference

A section is a file: `scoring.top_k` stands in `conf/base/scoring.yaml` for everybody, in
`conf/<env>/scoring.yaml` for one environment, and `--set scoring.top_k=50` overrides both for one run. Lists are
replaced as a whole, maps are merged key by key. An unknown key is refused with the nearest known one, and all errors
come at once, before Spark starts.

The default is that of `conf/base`, or the code's where no file names the key; **yours** means that your environment
must say it.
"""
_SPARK: Final = """
## spark

Spark's own keys, verbatim, for a session that a job starts itself; they win over spark-submit's `--master` and
`--conf`. What all environments share stands in [conf/base/spark.yaml](../conf/base/spark.yaml), with the reason beside
each key.
"""


def page() -> str:
    """Return the document."""
    schema = Config.model_json_schema()
    sections = {
        name: _definition(field) for name, field in schema["properties"].items() if name not in ("models", "spark")
    }
    shown = [_table(name, schema["$defs"][of], of, _base(name)) for name, of in sections.items()]
    models = [_table(f"models: {name}", schema["$defs"][of], of, _base("models")[name]) for name, of in _MODELS.items()]
    inner = [name for name in schema["$defs"] if name not in {*sections.values(), *_MODELS.values()}]
    entries = [_table(name, schema["$defs"][name], name, {}) for name in inner]
    lists = "\n## Entries of lists and maps\n\nWhat the tables above name by these names.\n"
    return "".join([_HEAD, *shown, *models, _SPARK, lists, *(entry.replace("\n## ", "\n### ", 1) for entry in entries)])


def without_meaning() -> list[str]:
    """Return the keys of which no comment says what they mean; one that is a table of its own needs none."""
    return re.findall(r"^\| `(\w+)` \| (?!\[).*\|  \|$", page(), re.MULTILINE)


def _table(title: str, schema: Mapping[str, Any], of: str, base: Mapping[str, Any]) -> str:
    said = {**_comments_of_yaml(title.split(":")[0]), **_comments_of_class(of)}
    rows = [
        f"| `{key}` | {_type(field)} | {_default(key, field, base)} | {said.get(key, '')} |"
        for key, field in schema["properties"].items()
    ]
    about = re.sub(r"\n(?!\n|- )", " ", schema.get("description", "")).replace(" - ", "\n- ")
    return "\n".join(
        ["", f"## {title}", "", about, "", "| key | type | default | meaning |", "|---|---|---|---|", *rows, ""]
    )


def _type(field: Mapping[str, Any]) -> str:
    if "$ref" in field or "allOf" in field:
        name = _definition(field)
        return f"[{name}](#{name.lower()})"
    if "anyOf" in field:
        return " or ".join(_type(kind) for kind in field["anyOf"])
    if "const" in field or "enum" in field:
        return " or ".join(f"`{value}`" for value in field.get("enum", [field.get("const")]))
    if field["type"] == "array":
        return f"list of {_type(field['items'])}"
    if field["type"] == "object":
        return "map"
    kind = {"integer": "integer", "number": "number", "string": "text", "boolean": "true or false", "null": "null"}
    bounds = [f"{sign} {field[bound]:g}" for bound, sign in _BOUNDS.items() if bound in field]
    return " ".join([kind[field["type"]], " and ".join(bounds)]).strip()


def _default(key: str, field: Mapping[str, Any], base: Mapping[str, Any]) -> str:
    if key not in base and "default" not in field:
        return "**yours**"
    value = base.get(key, field.get("default"))
    if isinstance(value, Mapping):
        return ""
    if isinstance(value, bool) and "enum" in field:
        # `on` and `off` are booleans to YAML.
        value = "on" if value else "off"
    if isinstance(value, str):
        return f"`{value}`"
    return f"`{yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix('...' + chr(10)).strip()}`"


def _definition(field: Mapping[str, Any]) -> str:
    of = field if "$ref" in field else field["allOf"][0]
    return str(of["$ref"]).rpartition("/")[2]


def _base(section: str) -> dict[str, Any]:
    path = _BASE / f"{section}.yaml"
    return dict(yaml.safe_load(path.read_text(encoding="utf-8")) or {}) if path.is_file() else {}


def _comments_of_class(name: str) -> dict[str, str]:
    """The comment above each field of a class of gesr_core/config.py, and of what it inherits from."""
    found: dict[str, str] = {}
    for class_ in reversed(getattr(typed, name).__mro__):
        if class_.__module__ == typed.__name__:
            lines, _ = inspect.getsourcelines(class_)
            [tree] = ast.parse("".join(lines)).body
            assert isinstance(tree, ast.ClassDef)
            fields = [node for node in tree.body if isinstance(node, ast.AnnAssign)]
            found |= {ast.unparse(field.target): _comment_above(lines, field.lineno - 1) for field in fields}
    return {key: comment for key, comment in found.items() if comment}


def _comments_of_yaml(section: str) -> dict[str, str]:
    path = _BASE / f"{section}.yaml"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    keys = {line.strip().partition(":")[0]: place for place, line in enumerate(lines) if not line.startswith("#")}
    return {key: comment for key, place in keys.items() if (comment := _comment_above(lines, place))}


def _comment_above(lines: list[str], place: int) -> str:
    said: list[str] = []
    while place > 0 and lines[place - 1].strip().startswith("#"):
        place -= 1
        said.insert(0, lines[place].strip().removeprefix("#").strip())
    return " ".join(said).replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;")


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {Path(PAGE).relative_to(PROJECT_ROOT)}; without a meaning: {without_meaning() or 'none'}")


if __name__ == "__main__":
    main()
