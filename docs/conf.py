"""Settings of Sphinx for the documentation, and what makes it of the docstrings as they are written.

The docstrings are in Google's style, with formulas indented and code between single backticks. Here they become
reStructuredText: formulas literal, and a name between backticks a link wherever it names something documented. Formulas
of the pages become MathML, which browsers draw without a script from the network.
"""

import re
import sys
import tempfile
import uuid
import warnings
from pathlib import Path
from typing import Any

import jupyter_client
from docutils import nodes
from latex2mathml import converter
from sphinx.util.nodes import make_refnode
from traitlets import default

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
warnings.filterwarnings("ignore", category=DeprecationWarning)

import vpf_jax  # noqa: E402


class _KernelManager(jupyter_client.AsyncKernelManager):
    """Of kernels that are reached through files: of ports, which each looks for, two that start at once may find the
    same one, and one of them dies.
    """

    @default("transport")
    def _transport_default(self) -> str:
        return "ipc"

    @default("ip")
    def _ip_default(self) -> str:
        # Where the files lie, and what their names begin with.
        return str(Path(tempfile.gettempdir(), f"kernel-{uuid.uuid4().hex}"))


jupyter_client.AsyncKernelManager = _KernelManager

project = "vpf_jax"
author = "The vpf_jax developers"
copyright = author
release = version = vpf_jax.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
nitpicky = True
# Types of other packages, which only the network could link; and what docstrings have between single backticks, names
# and other code. Pages link by {py:func}, which has to lead somewhere.
_TYPE_VARIABLE = r"vpf_jax\..*\.(Any\w+|Class|Tree|T)"
nitpick_ignore_regex = [
    ("py:class", rf"(?!vpf_jax).*|{_TYPE_VARIABLE}"),
    ("py:exc", r"(?!vpf_jax).*"),
    ("py:obj", r".*"),
]
default_role = "py:obj"
smartquotes = False
highlight_language = "none"

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 900
nb_merge_streams = True

autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
add_module_names = False
add_function_parentheses = False
python_maximum_signature_line_length = 90

html_theme = "sphinx_book_theme"
html_title = "vpf_jax"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_extra_path = ["_extra"]
html_math_renderer = "mathml"
html_copy_source = False
html_theme_options = {
    "show_toc_level": 2,
    "use_download_button": False,
    # One search button, above the table of pages, is enough.
    "navbar_persistent": [],
}

# A line of prose, then lines that are indented more: a formula or a table of the docstring.
_LIST = re.compile(r"\s*([-*]|\d+\.) ")
_SECTIONS = ("Args:", "Returns:", "Raises:", "Attributes:", "Yields:")


def make_literal(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Marks indented blocks after a blank line as literal, and shields what reStructuredText would read as markup."""
    made: list[str] = []
    literal = False
    for number, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if line.strip() and not indent:
            literal = False
        starts = indent >= 4 and number > 0 and not lines[number - 1].strip() and not literal
        if starts and not _in_section(lines[:number]) and not _LIST.match(line):
            made += ["::", ""]
            literal = True
        made.append(line if literal else _shielded(line))
    lines[:] = made


def _in_section(above: list[str]) -> bool:
    outer = [line.strip() for line in above if line.strip() and not line.startswith(" ")]
    return bool(outer) and outer[-1] in _SECTIONS


def _shielded(line: str) -> str:
    """Bars, stars and trailing underscores as they stand, outside backticks."""
    # Every second part is code.
    parts = re.split(r"(``.*?``|`[^`]*`)", line)
    parts[::2] = [re.sub(r"([|*])|(?<=\w)_(?!\w)", r"\\\g<0>", part) for part in parts[::2]]
    return "".join(parts)


_SHORT = (
    (r"numpy\._typing\._array_like\._Buffer \| .*?_NestedSequence\[complex \| bytes \| str\]", "ArrayLike"),
    (r"str \| type\[Any\] \| numpy\.dtype \| jax\._src\.typing\.SupportsDType", "DTypeLike"),
    (r"jax\.jaxlib\._jax\.|jaxlib\._jax\.|jaxtyping\.|numpy\.(?=ndarray)", ""),
    (r"Key\[Array, ''\] \| UInt32\[Array, '2'\] \| UInt32\[Array, '4'\]", "PRNGKeyArray"),
    (r"(\w+)\[Array, ('[^']*')\] \| \1\[ndarray, \2\]", r"\1[Array | ndarray, \2]"),
    (r"tuple\[(?:vpf_jax\.machine\.)?BoltzmannMachine, \.\.\.\]", "Stack"),
)


def shorten(app: Any, what: str, name: str, obj: Any, options: Any, signature: Any, returned: Any) -> Any:
    """Types as the source has them, instead of what they stand for."""
    found = [signature, returned]
    for pattern, short in _SHORT:
        found = [text and re.sub(pattern, short, text.replace("~", "")) for text in found]
    return tuple(found)


def skip(app: Any, what: str, name: str, obj: Any, would_skip: bool, options: Any) -> bool | None:
    """Fields of named tuples that have no words of their own."""
    return True if (getattr(obj, "__doc__", None) or "").startswith("Alias for field number") else None


def link(app: Any, environment: Any, node: Any, shown: nodes.Node) -> nodes.Node | None:
    """A name as the text has it, such as `energy` or `vpf_jax.energy`, linked to the one thing of that name."""
    if node.get("refdomain") != "py":
        return None
    domain, target = environment.get_domain("py"), node["reftarget"].removeprefix("vpf_jax.").removesuffix("()")
    if target in vpf_jax.__all__:
        target = f"{getattr(vpf_jax, target).__module__}.{target}".removeprefix("vpf_jax.")
    package, _, last = target.rpartition(".")
    if not last.isidentifier():
        return None
    found = [
        (name, entry)
        for name, entry in domain.objects.items()
        # By the whole name, or as a package has it that takes it over from a module of its own: data.DatasetError.
        if f".{name}".endswith(f".{target}") or (name.startswith(f"vpf_jax.{package}.") and name.endswith(f".{last}"))
    ]
    # A function of the library before a method or field that happens to have its name.
    some = [one for one in found if one[1].objtype in ("function", "class", "exception", "data")] or found
    if len(some) != 1:
        return None
    name, entry = some[0]
    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, shown, name)


def visit_math(translator: Any, node: Any) -> None:
    translator.body.append(converter.convert(node.astext()))
    raise nodes.SkipNode


def visit_displaymath(translator: Any, node: Any) -> None:
    translator.body.append(f'<div class="formula">{converter.convert(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def setup(app: Any) -> None:
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_displaymath, None))
    # Before Napoleon, which turns the sections into fields.
    app.connect("autodoc-process-docstring", make_literal, priority=400)
    app.connect("autodoc-process-signature", shorten)
    app.connect("autodoc-skip-member", skip)
    app.connect("missing-reference", link)
