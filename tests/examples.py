"""Take the Python blocks out of a Markdown page and run them."""

import doctest
import pathlib
import re

# ```python, ```pycon and MyST-NB's ```{code-cell}. An HTML comment `<!-- not run: why -->` on the
# line before the fence keeps a block from being run.
BLOCK = re.compile(
    r"(?P<skip><!-- not run: [^\n]+ -->\n+)?"
    r"^(?P<fence>```+)(?:python|pycon|\{code-cell\}[^\n]*)\n(?P<code>.*?)^(?P=fence)\s*$",
    re.MULTILINE | re.DOTALL,
)
OPTION = re.compile(r"\A(?::[\w-]+:[^\n]*\n)+|\A---\n.*?\n---\n", re.DOTALL)


def blocks(text: str, all_of_them: bool = False) -> list[tuple[int, str]]:
    """The runnable blocks of a page, or all: line number of the first line, and code."""
    found = []
    for match in BLOCK.finditer(text):
        if match["skip"] and not all_of_them:
            continue
        options = OPTION.match(match["code"])
        start = match.start("code") + (options.end() if options else 0)
        found.append((text.count("\n", 0, start) + 1, text[start : match.end("code")]))
    return found


def run_page(path: pathlib.Path) -> int:
    """Run the blocks of a page one after another in one namespace; their number."""
    namespace = {"__name__": "__main__"}
    page = blocks(path.read_text())
    for line, code in page:
        if ">>>" in code:
            flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
            test = doctest.DocTestParser().get_doctest(
                code, namespace, path.name, str(path), line - 1
            )
            runner = doctest.DebugRunner(optionflags=flags)
            runner.run(test, clear_globs=False)
            namespace.update(test.globs)
        else:
            # Padded, so that a traceback names the line of the page.
            exec(compile("\n" * (line - 1) + code, str(path), "exec"), namespace)
    return len(page)
