"""Count lines of code: without blank lines, comments and docstrings.

    python dev/count_lines.py 'mmpsa/plugins/*.py' 'mmpsa/ops/*.py'

Each argument is a pattern, and gets a line.
"""

import ast
import sys
import tokenize
from pathlib import Path

NO_CODE = {
    getattr(tokenize, kind)
    for kind in 'COMMENT NL NEWLINE INDENT DEDENT ENDMARKER ENCODING'.split()
}
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def count(path):
    """The number of lines of a file that hold code."""
    with open(path, 'rb') as file:
        lines = {
            line
            for token in tokenize.tokenize(file.readline)
            if token.type not in NO_CODE
            for line in range(token.start[0], token.end[0] + 1)
        }
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node):
            lines -= {*range(node.body[0].lineno, node.body[0].end_lineno + 1)}
    return len(lines)


if __name__ == '__main__':
    for pattern in sys.argv[1:]:
        paths = sorted(Path().glob(pattern))
        print(
            f'{sum(map(count, paths)):6} lines, {len(paths):3} files', pattern
        )
