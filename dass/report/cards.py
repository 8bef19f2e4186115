"""What a notebook shows of a result: a fragment of HTML that needs nothing around it."""

from collections.abc import Sequence

from markupsafe import Markup

from dass.report.page import make_environment


def render_card(
    title: str, lines: Sequence[str], head: Sequence[str], rows: Sequence[Sequence[str]], picture: str
) -> str:
    """A title, lines of text, a table and a picture, all text escaped.

    head: of the table, whose first row is then the best of all; empty for a table of facts, a name and a value each.
    picture: SVG text of our own; labels may reach a little beyond its edge.
    """
    picture = picture.replace("<svg", '<svg style="display: block; overflow: visible"', 1)
    text = (
        make_environment(())
        .get_template("card.html")
        .render(title=title, lines=lines, head=head, rows=rows, picture=Markup(picture))  # noqa: S704 - our own SVG
    )
    return text.encode("utf-8", "replace").decode("utf-8")  # class names may come from undecodable file names
