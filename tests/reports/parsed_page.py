"""Reads a page as a browser would."""

from html.parser import HTMLParser

EMPTY = {"meta", "link", "img", "input", "br"}


class Page(HTMLParser):
    """A parsed page, whose tags must match.

    Attributes:
        tags: Name and attributes of each tag.
        cells: Texts of the cells of each row of each table.
        text: All text outside scripts and styles.
    """

    def __init__(self, text):
        super().__init__()
        self.tags, self.cells, self.text, self._open = [], [], "", []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in EMPTY:
            self._open.append(tag)
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] in ("script", "style"):
            return
        self.text += data
        if self._open and self._open[-1] in ("td", "th"):
            self.cells[-1][-1] += data

    def all(self, tag):
        """The attributes of all tags of a name."""
        return [attributes for name, attributes in self.tags if name == tag]

    def assert_complete(self):
        """It loads nothing, every picture has a text, and links within the page have their aim."""
        for _, attributes in self.tags:
            for name in ("src", "xlink:href"):
                assert (attributes.get(name) or "#").startswith(("#", "data:"))
            assert "://" not in (attributes.get("href") or "")
        (policy,) = (x["content"] for x in self.all("meta") if "http-equiv" in x)
        assert policy.startswith("default-src 'none'; ")
        assert all(image["alt"] for image in self.all("img"))
        assert all(x["aria-label"] for _, x in self.tags if x.get("role") == "img")
        ids = [attributes["id"] for _, attributes in self.tags if "id" in attributes]
        assert len(ids) == len(set(ids))
        assert {x["href"][1:] for x in self.all("a") if x["href"][0] == "#"} <= set(ids)
