"""Show files of the repository on the site, where its pages link to them.

Markdown files outside docs/ are pages of the site at their own path. Other
files become pages with their text. So links work as they are written, in the
repository and on the site, and need no address of either.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File, InclusionLevel

ROOT = Path(__file__).resolve().parents[1]
PAGES = (
    *('README.md', 'README_zh-CN.md', 'CHANGELOG.md', 'CONTRIBUTING.md'),
    *('CODE_OF_CONDUCT.md', 'SECURITY.md'),
    *('configs/**/README.md', 'projects/**/README.md'),
)
LINK = re.compile(r'(!?)\[((?:[^][]|\[[^][]*\])*)\]\(([^)\s:#]+)(#[^)\s]*)?\)')


def on_files(files, config):
    """Adds the repository's own pages, and the files that pages link to."""
    for pattern in PAGES:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            files.append(_added(config, name, abs_src_path=str(path)))
    for file in list(files):
        if file.is_documentation_page():
            for *_, name, _ in _links(file.src_uri, file.content_string):
                path = ROOT / name
                if (
                    path.suffix not in ('.md', '.png', '.jpg')
                    and path.is_file()
                ):
                    uri = f'{name}.md'
                    if uri not in files.src_uris:
                        text = f'# {path.name}\n\n{_fenced(path)}'
                        files.append(_added(config, uri, content=text))
    return files


def on_page_markdown(markdown, page, config, files):
    """Points links at the pages that stand for what they name."""
    here = page.file.src_uri
    for link, image, text, name, anchor in _links(here, markdown):
        uri = name[5:] if name.startswith('docs/') else name
        for target in (uri, f'{uri}.md', f'{uri}/README.md'.lstrip('/')):
            if target in files.src_uris:
                url = posixpath.relpath(target, posixpath.dirname(here) or '.')
                new = f'{image}[{text}]({url}{anchor})'
                break
        else:
            # A folder without a page.
            new = text if (ROOT / name).is_dir() else link
        markdown = markdown.replace(link, new)
    return markdown


def on_page_content(html, page, config, files):
    """Takes the roles of reStructuredText out of docstrings."""
    return re.sub(r':(?:class|data|func|meth|mod):(?=<code>)', '', html)


def _links(uri, markdown):
    """The relative links of a page: all of it, its mark, text, path, anchor.

    The path is that in the repository.
    """
    folder = '' if (ROOT / uri).exists() else 'docs'
    folder = posixpath.join(folder, posixpath.dirname(uri))
    for match in LINK.finditer(_without_code(markdown)):
        image, text, path, anchor = match.groups()
        name = posixpath.normpath(posixpath.join(folder, path))
        yield match.group(), image, text, name, anchor or ''


def _without_code(markdown):
    blocks = re.sub(r'(?ms)^( *)```.*?^\1```', '', markdown)
    # Code without a bracket stays, because it may be the text of a link.
    return re.sub(
        r'`[^`\n]*`', lambda code: '' if '[' in code[0] else code[0], blocks
    )


def _fenced(path):
    kind = {'.py': 'python', '.yml': 'yaml'}.get(path.suffix, 'text')
    return f'````{kind}\n{path.read_text()}````\n'


def _added(config, uri, **content):
    return File.generated(
        config, uri, inclusion=InclusionLevel.NOT_IN_NAV, **content
    )
