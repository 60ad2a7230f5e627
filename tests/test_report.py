import html.parser
import io

import matplotlib.image
import numpy as np

from facemix_jax import report
from facemix_jax.report import Drawing, Heading, Labelled, Note, Picture, Section, Small, Table


class Parser(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.sources, self.classes, self.text = [], [], [], ""

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "img", "source"):
            self.open.append(tag)
        self.sources += [v for k, v in attributes if k in ("src", "srcset", "href")]
        self.classes += [v for k, v in attributes if k == "class"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_page_is_one_well_formed_file_without_outside_references():
    png = report.image_rows([np.zeros((2, 4, 3, 3))])
    cell = [Labelled("3", "pa<per", "paper"), Labelled("4")]
    blocks = [
        Table(("x", "y"), [("1", "<2>"), ("5", cell)]),
        Picture(png, "cap"),
        Drawing(b"<svg/>", b"<svg />", "what it is", "below"),
        Heading("<h>"),
        Small("print"),
    ]
    intro = ["intro", Note("mind <this>")]
    page = report.page("A & B", intro, [Section("Numbers", blocks)], "foot")
    parser = Parser()
    parser.feed(page)
    assert parser.open == []
    assert all(source.startswith("data:image/") for source in parser.sources)
    assert len(parser.sources) == 3
    for text in ("A & B", "mind <this>", "<2>", "pa<per", "cap", "below", "<h>", "print", "foot"):
        assert text in parser.text
    assert "http" not in page


def test_image_rows_puts_pixels_where_they_belong():
    images = np.zeros((2, 2, 3, 3))
    images[1, 0, 2] = (1, 0, 0)
    png = report.image_rows([images, images], gap=1, zoom=2)
    pixels = matplotlib.image.imread(io.BytesIO(png))[..., :3]
    assert pixels.shape == (2 * (4 + 2), 2 * (6 + 2), 3)
    np.testing.assert_allclose(pixels[1, 8 + 1 + 4], (1, 0, 0), atol=0.01)
    np.testing.assert_allclose(pixels[1, 1], 0, atol=0.01)
    np.testing.assert_allclose(pixels[0], 1, atol=0.01)


def test_as_pictures_stretches_each_map_on_its_own():
    maps = np.random.default_rng(0).normal(size=(3, 20, 20, 5)) * [[[[1]]], [[[100]]], [[[0]]]]
    pictures = report.as_pictures(maps)
    assert pictures.shape == (3, 20, 20, 3)
    assert np.isfinite(pictures).all()
    np.testing.assert_allclose(pictures[:2].min((1, 2, 3)), 0)
    np.testing.assert_allclose(pictures[:2].max((1, 2, 3)), 1)
