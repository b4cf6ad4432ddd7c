"""What the site takes from files outside ``docs/``, and the pages of the API reference.

README, CONTRIBUTING and CHANGELOG are pages too, written once. The reference has a page for each room of the package, with
all its public modules, made from their docstrings. Links from a page to a file that is not on the site go to the repository.
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
PACKAGE = ROOT / "src" / "mindtuner"
OUTSIDE = re.compile(r"\]\(((?:\.\./)+|/)([^)#]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=as_page(text)))
    files.append(File.generated(config, "api/mindtuner.md", content=front_door()))
    for room in rooms():
        files.append(File.generated(config, f"api/{room.name}.md", content=room_page(room)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    depth = page.file.src_uri.count("/")
    return OUTSIDE.sub(
        lambda m: f"]({config.repo_url}/blob/main/{m[2]}" if m[1] == "/" or m[1].count("../") > depth else m[0], markdown
    )


def as_page(text: str) -> str:
    """A page of the repository's root, its links seen from ``docs/``; what has no page there is marked as outside."""

    def link(match: re.Match) -> str:
        target, _, anchor = match[1].partition("#")
        if "://" in target or not target:
            return match[0]
        if target in PAGES:
            target = PAGES[target]
        elif target == "examples":
            target = "gallery/index.md"
        elif target.startswith("docs/"):
            target = target.removeprefix("docs/")
        else:
            target = "/" + target
        return f"]({target}{'#' + anchor if anchor else ''})"

    return re.sub(r"\]\(([^)\s]+)\)", link, text)


def rooms() -> list[Path]:
    """The public rooms of the package: folders with modules, without the command line."""
    return sorted(path.parent for path in PACKAGE.glob("*/__init__.py") if path.parent.name != "cli")


def front_door() -> str:
    """What ``import mindtuner`` gives."""
    import mindtuner

    names = [name for name in mindtuner.__all__ if not name.startswith("_")]
    homes = {name: f"{getattr(mindtuner, name).__module__}.{name}" for name in names}
    blocks = [f"::: {homes[name]}\n    options: {{heading: mindtuner.{name}, toc_label: {name}}}" for name in names]
    return "# mindtuner\n\nWhat `import mindtuner` gives.\n\n" + "\n\n".join(blocks) + "\n"


def room_page(room: Path) -> str:
    """All public modules of a room."""
    modules = sorted(
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        for path in room.rglob("*.py")
        if not any(part.startswith("_") and part != "__init__.py" for part in path.relative_to(room).parts)
    )
    blocks = [f"::: {module}\n    options: {{show_submodules: false}}" for module in modules]
    return f"# {room.name}\n\n" + "\n\n".join(blocks) + "\n"
