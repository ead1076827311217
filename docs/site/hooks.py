"""Hooks of mkdocs: pages made from the code and the results when the site is built.

Nothing that is made here is committed: the catalogue, the reference of the command line, copies
of two pages of the repository and the shipped report.
"""

from typing import Any

import catalogue
import command_line
from catalogue import ROOT

from fusionbench.registry.catalog import Catalog, read_catalog

OUTSIDE = {
    "../benchmarks/RESULTS.md": "benchmarks.md",
    "../results/README.md": "results.md",
    "../CONTRIBUTING.md": "contributing.md",
}
"""Documents outside of docs/ and their pages on the site."""
FIGURES = {
    "../results/paper/report/figures/": "paper/",
    "../results/paper)": "paper/report.html)",
}
"""Links to the shipped results, and where their files are on the site."""
COPIED = {
    "quick/report.html": "results/quick/report/report.html",
    "quick/differences.svg": "results/quick/report/figures/differences.svg",
    "paper/report.html": "results/paper/report/report.html",
    "paper/differences.png": "results/paper/report/figures/differences.png",
    "paper/heatmap.svg": "results/paper/report/figures/heatmap.svg",
    "paper/layers.svg": "results/paper/report/figures/layers.svg",
}


def made(*, with_data: bool = True) -> dict[str, str]:
    """Path below docs/ -> Markdown of every page that is not written by hand.

    `with_data` also loads every task that is installed, for its sizes and examples (about 30 s).
    """
    found = catalogue.pages(read_catalog(), catalogue.load_task if with_data else None)
    found["cli.md"] = command_line.page()
    for outside, page in OUTSIDE.items():
        found[page] = (ROOT / outside.removeprefix("../")).read_text(encoding="utf-8")
    return found


def catalogue_nav(catalog: Catalog) -> list[Any]:
    """The catalogue in the navigation: an index page and one page each."""
    families = sorted({card.family for card in catalog.methods.values()})
    tasks = [*catalog.tasks, *catalog.benchmarks]
    return [
        {"Methods": ["catalogue/methods/index.md",
                     *({name: f"catalogue/methods/{name}.md"} for name in families)]},
        {"Tasks": ["catalogue/tasks/index.md",
                   *({name: f"catalogue/tasks/{name}.md"} for name in tasks)]},
    ]  # fmt: skip


def on_config(config: Any) -> Any:
    """Add the catalogue to the navigation."""
    config.nav.append({"Catalogue": catalogue_nav(read_catalog())})
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages of `made` and the files of `COPIED`."""
    from mkdocs.structure.files import File

    for path, text in made().items():
        files.append(File.generated(config, path, content=text))
    for path, source in COPIED.items():
        files.append(File.generated(config, path, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links to documents outside of docs/ become links to their pages."""
    for outside, name in (OUTSIDE | FIGURES).items():
        markdown = markdown.replace(f"]({outside}", f"]({name}")
    return markdown
