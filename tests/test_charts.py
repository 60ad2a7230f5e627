import dataclasses
import io
import xml.etree.ElementTree as ElementTree

import matplotlib.colors
import matplotlib.image
import numpy as np
import pytest

from facemix_jax import charts
from facemix_jax.results import Chart, Curve

MEASURED = Curve(
    label="accuracy of $5 & <more>",
    mark="measured",
    x=(2, 4, 8),
    y=(0.9, 0.8, 0.7),
    half_widths=(None, 0.1, 0.05),
)
CHART = Chart(
    title="over M",
    x_label="group size",
    y_label="accuracy",
    curves=(MEASURED, Curve(label=MEASURED.label, mark="paper", x=(2, 4), y=(0.91, 0.9))),
    log2_x=True,
)


def long(points):
    x = tuple(range(points))
    return Curve(label="loss", mark="measured", x=x, y=(1.0,) * points, half_widths=(0.1,) * points)


def plotted(chart, theme="light"):
    return charts._figure(chart, theme)


def test_files_are_what_they_say_and_the_same_every_time():
    drawn = charts.draw(CHART)
    for svg in (drawn.svg, drawn.light, drawn.dark):
        assert ElementTree.fromstring(svg).tag.endswith("svg")
    assert matplotlib.image.imread(io.BytesIO(drawn.png)).ndim == 3
    assert charts.draw(CHART).svg == drawn.svg
    assert charts.draw(dataclasses.replace(CHART, title="x")).svg != drawn.svg, "the control"
    # Nothing is fetched: references are to the file's own parts.
    for element in ElementTree.fromstring(drawn.dark).iter():
        for name, value in element.attrib.items():
            assert not name.endswith("href") or value.startswith("#")


def test_error_bars_stand_where_there_are_intervals():
    (axes,) = plotted(CHART).axes
    ((_, _, (bars,)),) = axes.containers
    segments = [
        segment
        for segment in bars.get_segments()
        if np.size(segment) and np.isfinite(segment).all()
    ]
    ends = [(x, round(low, 6), round(high, 6)) for (x, low), (_, high) in segments]
    assert ends == [(4, 0.7, 0.9), (8, 0.65, 0.75)]


def test_many_points_have_a_band_instead():
    (few,) = plotted(dataclasses.replace(CHART, curves=(long(10),), log2_x=False)).axes
    (many,) = plotted(dataclasses.replace(CHART, curves=(long(60),), log2_x=False)).axes
    assert (len(few.containers), len(many.containers)) == (1, 0)
    (band,) = many.collections
    low, high = band.get_datalim(many.transData).get_points()[:, 1]
    assert (low, high) == pytest.approx((0.9, 1.1))


def test_marks_are_told_apart_and_named():
    figure = plotted(CHART)
    first, second = (line for line in figure.axes[0].lines if line.get_marker() == "o")
    assert first.get_color() == second.get_color(), "one label, one colour"
    assert (first.get_linestyle(), second.get_linestyle()) == ("-", "--")
    assert (first.get_fillstyle(), second.get_fillstyle()) == ("full", "none")
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert sorted(texts) == [f"{MEASURED.label} (measured)", f"{MEASURED.label} (paper)"]
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["2", "4", "8"]


def luminance(colour):
    red, green, blue = (
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in matplotlib.colors.to_rgb(colour)
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize(("theme", "ground"), [("light", "#ffffff"), ("dark", "#121212")])
def test_colours_stand_out_on_their_ground(theme, ground):
    """Contrast of 3 for lines and 4.5 for text, as the accessibility guidelines (WCAG) ask."""

    def contrast(colour):
        low, high = sorted((luminance(colour), luminance(ground)))
        return (high + 0.05) / (low + 0.05)

    assert min(map(contrast, charts._COLOURS[theme])) >= 3
    assert contrast(charts._INK[theme][0]) >= 4.5
    other = charts._INK["dark" if theme == "light" else "light"][0]
    assert contrast(other) < 3, "the control"


def test_colours_of_heat_maps_mean_the_same_in_all(monkeypatch):
    figures = []
    monkeypatch.setattr(charts, "_png", figures.append)
    for largest in (1e-6, 1.6, 2.3):
        charts.heat_map(np.array([[largest, 0.5], [np.nan, 0.1]]), ["a", "b"], title="x")
    limits = {figure.axes[0].images[0].get_clim() for figure in figures}
    assert limits == {(0, 2)}
