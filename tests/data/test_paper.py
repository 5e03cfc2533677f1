"""ECG paper, measured in millimetres in what is written: scale, grid, layouts, gaps, thinning and foreign text."""

import io
import re
import struct
import xml.etree.ElementTree as ET
from functools import cache

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from matplotlib.image import imread

from data.ecg import LEADS, Ecg
from data.paper import GAINS, LAYOUTS, SPEEDS, Paper
from data.synthetic import SyntheticCohort

# Baselines of the rows in mm from the top, and the leads of each column: stated here a second time, by hand.
BASELINES = {
    "3x4": [30, 60, 90, 120],
    "6x2": [25, 50, 75, 100, 125, 150, 175],
    "12x1": [20, 35, 50, 65, 80, 95, 110, 125, 140, 155, 170, 185],
}
COLUMNS = {
    "3x4": ["I II III", "aVR aVL aVF", "V1 V2 V3", "V4 V5 V6"],
    "6x2": ["I II III aVR aVL aVF", "V1 V2 V3 V4 V5 V6"],
    "12x1": ["I II III aVR aVL aVF V1 V2 V3 V4 V5 V6"],
}
LEFT = {25: 15, 50: 20}  # where the first second begins
SVG = "{http://www.w3.org/2000/svg}"
settings_of_paper = [(layout, speed, gain) for layout in LAYOUTS for speed in SPEEDS for gain in GAINS]


def steps(seconds=10.0, fs=500, leads=LEADS) -> Ecg:
    """A pulse of 200 ms at 0.5, 1.5, 2.5, ... s: 1 mV in lead I, and 0.05 mV more in each lead after it."""
    time = np.arange(round(seconds * fs)) / fs
    pulse = (time % 1 >= 0.5 - 1e-9) & (time % 1 < 0.7 - 1e-9)
    return Ecg(np.stack([pulse * height(lead) for lead in leads]), fs, tuple(leads), "r1", "p1")


def height(lead: str) -> float:
    return 1 + 0.05 * LEADS.index(lead)


class Page:
    """What a reader with a ruler sees: lines in mm by class, texts, and the segments of an interactive picture."""

    def __init__(self, svg: str):
        self.root = ET.fromstring(svg)
        group = next(g for g in self.root.iter(f"{SVG}g") if g.get("transform"))
        unit = float(re.fullmatch(r"scale\((.*)\)", group.get("transform"))[1])
        self.width, self.height = (float(self.root.get(side).removesuffix("mm")) for side in ("width", "height"))
        self.paths: dict[str, list[list[np.ndarray]]] = {}
        for path in group:
            lines = []
            for subpath in path.get("d").split("M")[1:]:
                first, further = subpath.split("l")
                x, y = np.array(re.findall(r"-?\d+", first), int), np.array(re.findall(r"-?\d+", further), int)
                lines.append(np.cumsum(np.vstack((x, y.reshape(-1, 2))), axis=0) * unit)
            self.paths.setdefault(path.get("class"), []).append(lines)
        self.texts = [(text.get("class"), text.text) for text in self.root.iter(f"{SVG}text")]
        self.segments = [rect for rect in self.root.iter(f"{SVG}rect") if rect.get("class") == "ecg-segment"]
        self.pulses = [lines[0] for lines in self.paths["ecg-trace"] if lines[0][0, 0] == 5]
        self.traces = [lines for lines in self.paths["ecg-trace"] if lines[0][0, 0] != 5]

    def named(self, lead: str) -> list[np.ndarray]:
        """The lines of the first segment of a lead."""
        return self.traces[[segment.get("data-lead") for segment in self.segments].index(lead)]


def page(paper: Paper, ecg: Ecg, **options) -> Page:
    return Page(paper.svg(ecg, interactive=True, **options))


@cache
def pulses(layout: str, speed: int, gain: int) -> Page:
    return page(Paper(layout, speed, gain), steps())


def expected_segments(layout: str):
    """Lead, baseline, first second and length, column after column, then the rhythm strip."""
    seconds = 10 / len(COLUMNS[layout])
    for i, leads in enumerate(COLUMNS[layout]):
        for baseline, lead in zip(BASELINES[layout], leads.split()):
            yield lead, baseline, i * seconds, seconds
    if layout != "12x1":
        yield "II", BASELINES[layout][-1], 0, 10


@pytest.mark.parametrize(("layout", "speed", "gain"), settings_of_paper)
def test_every_pulse_lies_where_a_ruler_finds_it(layout, speed, gain):
    drawn = pulses(layout, speed, gain)
    want = list(expected_segments(layout))
    assert [segment.get("data-lead") for segment in drawn.segments] == [lead for lead, *_ in want]
    assert [text for kind, text in drawn.texts if kind == "ecg-lead"] == [lead for lead, *_ in want]
    for (lead, baseline, start, seconds), lines, segment in zip(want, drawn.traces, drawn.segments, strict=True):
        (line,) = lines
        x, y = line.T
        left = LEFT[speed] + start * speed
        assert x[0] == pytest.approx(left, abs=0.01)
        assert x[-1] == pytest.approx(left + min(seconds, 9.998 - start) * speed, abs=0.01)
        up = y < baseline - 0.5 * gain
        rises, falls = x[1:][up[1:] & ~up[:-1]], x[:-1][up[:-1] & ~up[1:]]
        at = np.arange(np.ceil(start + 0.5) - 0.5, start + seconds + 1e-9)  # 2.5 s ends one column and begins another
        began = at[at > start]
        np.testing.assert_allclose(rises, LEFT[speed] + began * speed, atol=0.05)
        ended = (at + 0.198)[at + 0.198 < start + seconds]  # the last high sample
        np.testing.assert_allclose(falls, LEFT[speed] + ended * speed, atol=0.05)
        np.testing.assert_allclose(y[up], baseline - height(lead) * gain, atol=0.05)
        np.testing.assert_allclose(y[~up], baseline, atol=0.05)
        # What a script under the pointer is given.
        data = {key: float(segment.get(f"data-{key}")) for key in ("start", "seconds", "x", "baseline")}
        assert data == pytest.approx({"start": start, "seconds": seconds, "x": left, "baseline": baseline})
        assert (segment.get("data-mm-per-second"), segment.get("data-mm-per-mv")) == (str(speed), str(gain))
        box = [float(segment.get(key)) for key in ("x", "y", "width", "height")]
        assert box[0] == left and box[2] == seconds * speed and box[1] < baseline < box[1] + box[3]


@pytest.mark.parametrize(("layout", "speed", "gain"), settings_of_paper)
def test_each_row_begins_with_1_mv_for_200_ms(layout, speed, gain):
    drawn = pulses(layout, speed, gain)
    assert [pulse[0, 1] for pulse in drawn.pulses] == BASELINES[layout]
    for pulse, baseline in zip(drawn.pulses, BASELINES[layout]):
        top = pulse[pulse[:, 1] == pulse[:, 1].min()]
        assert np.ptp(top[:, 0]) == pytest.approx(0.2 * speed) and top[0, 1] == pytest.approx(baseline - gain)
        assert set(pulse[:, 1].round(2)) == {baseline, baseline - gain} and pulse[-1, 0] < LEFT[speed]
    assert ("ecg-scale", f"{speed} mm/s · {gain} mm/mV") in drawn.texts


@pytest.mark.parametrize(("layout", "speed", "gain"), settings_of_paper)
def test_boxes_are_1_mm_and_5_mm_and_a_unit_is_a_millimetre(layout, speed, gain):
    drawn = pulses(layout, speed, gain)
    assert drawn.root.get("viewBox") == f"0 0 {drawn.width:g} {drawn.height:g}"
    assert drawn.root.get("preserveAspectRatio") is None  # the default scales both directions alike
    bold, minor = drawn.paths["ecg-bold"][0], drawn.paths["ecg-minor"][0]
    for axis, side, other in ((0, drawn.width, drawn.height), (1, drawn.height, drawn.width)):
        for lines, kept in ((bold, lambda mm: mm % 5 == 0), (minor, lambda mm: mm % 5 != 0)):
            across = [line for line in lines if line[0, axis] == line[1, axis]]
            assert sorted(line[0, axis] for line in across) == [mm for mm in range(round(side) + 1) if kept(mm)]
            assert {tuple(line[:, 1 - axis]) for line in across} == {(0.0, other)}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_page_at_25_mm_per_second_fits_on_a4(layout):
    drawn = pulses(layout, 25, 10)
    assert drawn.width <= 297 and drawn.height <= 210


@pytest.mark.parametrize(("layout", "dpi"), [("3x4", 254), ("12x1", 254), ("6x2", 101.7)])
def test_png_has_the_same_millimetres(layout, dpi):
    png = Paper(layout).png(steps(), dpi=dpi)
    drawn, per_mm = pulses(layout, 25, 10), dpi / 25.4
    pixels = imread(io.BytesIO(png))[..., :3]
    assert pixels.shape[:2] == (round(drawn.height * per_mm), round(drawn.width * per_mm))
    where = png.index(b"pHYs") + 4
    assert struct.unpack(">II", png[where : where + 8]) == pytest.approx((dpi / 0.0254,) * 2, abs=1)
    dark = pixels.max(axis=-1) < 0.45
    for row, baseline in enumerate(BASELINES[layout][:2]):
        # The pulse from 0.5 to 0.7 s: its two edges half way up, its top in its middle, the baseline before it.
        halfway = round((baseline - 5) * per_mm)
        near = slice(round((LEFT[25] + 0.45 * 25) * per_mm), round((LEFT[25] + 0.75 * 25) * per_mm))
        edges = np.flatnonzero(dark[halfway, near]) + near.start + 0.5
        left, right = edges[edges < edges.mean()].mean(), edges[edges > edges.mean()].mean()
        # Between two samples 2 ms apart the trace rises aslant: half way up it is 1 ms before the first high sample.
        assert left == pytest.approx((LEFT[25] + 0.499 * 25) * per_mm, abs=1)
        assert right == pytest.approx((LEFT[25] + 0.699 * 25) * per_mm, abs=1)
        middle, before = round((LEFT[25] + 0.6 * 25) * per_mm), round((LEFT[25] + 0.4 * 25) * per_mm)
        top = baseline - 10 * height(("I", "II")[row])
        for column, mm in ((middle, top), (before, baseline)):
            ink = np.flatnonzero(dark[round((mm - 2) * per_mm) : round((mm + 2) * per_mm), column])
            assert ink.mean() + round((mm - 2) * per_mm) + 0.5 == pytest.approx(mm * per_mm, abs=1)


@pytest.mark.parametrize("dpi", [254, 187])
def test_png_draws_the_grid_in_every_millimetre(dpi):
    pixels = imread(io.BytesIO(Paper().png(steps(), dpi=dpi)))[..., :3]
    per_mm = pixels.shape[1] / 270
    assert per_mm == pytest.approx(dpi / 25.4, abs=0.5 / 270)
    # Between two level lines, below all traces: what is darker than paper.
    ink = 1 - pixels[round(131.2 * per_mm) : round(131.8 * per_mm)].mean(axis=(0, 2))
    place = np.arange(len(ink)) + 0.5
    found, size = [], []
    for mm in range(170, 260):
        near = np.abs(place - mm * per_mm) < 0.45 * per_mm
        found.append(np.average(place[near], weights=ink[near]))
        size.append(ink[near].sum())
    np.testing.assert_allclose(found, np.arange(170, 260) * per_mm, atol=0.15)  # of a pixel
    assert min(size[::5]) > 1.5 * max(size[i] for i in range(90) if i % 5)


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from([100, 257, 500, 1000, 4000]),
    st.sampled_from(SPEEDS),
    st.integers(0, 2**32 - 1),
    st.floats(0, 0.05),
    st.floats(0, 0.3),
)
@example(4000, 25, 0, 0.0, 0.0)
def test_thinning_loses_no_peak_and_invents_none(fs, speed, seed, spikes, gaps):
    rng = np.random.default_rng(seed)
    signal = rng.normal(0, 0.1, 2 * fs) + (rng.random(2 * fs) < spikes)
    signal[rng.random(2 * fs) < gaps] = np.nan
    signal[0] = 0
    drawing = Paper("12x1", speed).draw(Ecg(signal[None], fs, ("V1",)))
    segment = next(segment for segment in drawing.segments if segment.drawn)
    (lines,) = [stroke.lines for stroke in drawing.strokes if stroke.style == "trace" and stroke.lines[0][0, 0] != 500]
    points = np.concatenate(lines) / 100
    finite = np.isfinite(signal)
    samples = np.flatnonzero(finite)
    runs = np.split(samples, np.flatnonzero(np.diff(samples) > 1) + 1)
    x = segment.x + (np.arange(2 * fs) / fs * speed)[finite]
    y = segment.baseline - 10 * signal[finite].astype(np.float32)
    # A line is as long as the run of numbers it shows.
    want = segment.x + np.array([(run[0], run[-1]) for run in runs]) / fs * speed
    np.testing.assert_allclose([(line[0, 0] / 100, line[-1, 0] / 100) for line in lines], want, atol=0.0151)
    column, columns = np.floor(x * 10 + 1e-6), np.floor(points[:, 0] * 10 + 0.051)
    for value in np.unique(column):
        here, kept = y[column == value], points[np.abs(points[:, 0] * 10 - value - 0.5) <= 0.65, 1]
        assert kept.min() <= here.min() + 0.05 and kept.max() >= here.max() - 0.05
    # Each point is a sample, to rounding; a lonely sample is a dot, whose second point lies 0.01 mm further.
    nearest = np.searchsorted(x, points[:, 0])
    gap = np.full(len(points), np.inf)
    for shift in range(-3, 4):
        i = np.clip(nearest + shift, 0, len(x) - 1)
        gap = np.minimum(gap, np.maximum(np.abs(x[i] - points[:, 0]), np.abs(y[i] - points[:, 1])))
    assert gap.max() < 0.0201
    assert np.unique(columns, return_counts=True)[1].max() <= 2 + 2 * len(lines)


def test_at_4000_hz_a_spike_of_one_sample_is_drawn_and_the_picture_stays_small():
    signal = np.zeros((12, 40_000))
    signal[:, 12_345] = 2
    svg = Paper("12x1").svg(Ecg(signal, 4000, LEADS), interactive=True)
    assert len(svg) < 300_000
    for (line,), baseline in zip(Page(svg).traces, BASELINES["12x1"]):
        top = np.argmin(line[:, 1])
        assert line[top] == pytest.approx([15 + 12_345 / 4000 * 25, baseline - 20], abs=0.01)


def test_a_noisy_record_of_500_hz_stays_below_300_kb():
    cohort = SyntheticCohort(patients=1, fs=500)
    noisy = cohort[cohort.records[0]].signal + np.random.default_rng(0).normal(0, 0.1, (12, 5000))
    assert len(Paper().svg(Ecg(noisy, 500, LEADS), interactive=True)) < 150_000
    assert len(Paper("6x2").svg(Ecg(noisy, 500, LEADS), interactive=True)) < 300_000


@pytest.mark.parametrize("nothing", [np.nan, np.inf, -np.inf])
def test_the_line_breaks_where_there_is_no_number(nothing):
    signal = steps().signal.copy()
    signal[1, 1000:1500] = nothing  # 2 to 3 s: the last half second of the segment of II
    signal[10, 3750:] = nothing  # V5, in its column but for one sample
    signal[10, 4000] = 0.5
    drawn = page(Paper(), Ecg(signal, 500, LEADS))
    (before,) = drawn.named("II")
    assert before[-1, 0] == pytest.approx(15 + 1.998 * 25, abs=0.01)
    before, after = drawn.traces[-1]  # the rhythm strip
    assert before[-1, 0] == pytest.approx(15 + 1.998 * 25, abs=0.01) and after[0, 0] == pytest.approx(90)
    (dot,) = drawn.named("V5")
    assert dot[0] == pytest.approx([15 + 8 * 25, 55]) and np.ptp(dot, axis=0) == pytest.approx([0.01, 0])


def test_a_short_recording_ends_and_what_is_not_there_is_said():
    drawn = page(Paper(), steps(6).select([lead for lead in LEADS if lead not in ("III", "V2")]))
    (line,) = drawn.named("V1")
    assert (line[0, 0], line[-1, 0]) == pytest.approx((15 + 5 * 25, 15 + 5.998 * 25), abs=0.01)
    assert drawn.traces[-1][0][-1, 0] == pytest.approx(15 + 5.998 * 25, abs=0.01)
    absent = [text for kind, text in drawn.texts if kind == "ecg-absent"]
    assert absent == ["III not recorded", "V2 not recorded", "V4 no signal", "V5 no signal", "V6 no signal"]
    hovered = [segment.get("data-lead") for segment in drawn.segments]
    assert hovered == ["I", "II", "aVR", "aVL", "aVF", "V1", "V3", "II"] and len(drawn.traces) == 8


def test_traces_run_into_other_rows_but_not_far_off_the_page():
    signal = steps().signal.copy()
    signal[6] *= 3  # V1, at the top: 39 mm above its baseline, off the page
    signal[8] *= 3  # V3: 42 mm, into the row of V1
    signal[7, 2600:2700] = 3e38  # V2: a number that a float32 can just hold
    svg = Paper().svg(Ecg(signal, 500, LEADS), interactive=True)
    drawn = Page(svg)
    assert drawn.named("V3")[0][:, 1].min() == pytest.approx(90 - 30 * height("V3"), abs=0.01)
    assert drawn.named("V1")[0][:, 1].min() == pytest.approx(30 - 30 * height("V1"), abs=0.01) and 30 < 39
    assert -141 < drawn.named("V2")[0][:, 1].min() < 0 and not re.search(r"\d{7}|nan|inf|e\+", svg)


def test_start_moves_the_page_along_the_recording():
    drawn = page(Paper(), steps(40000, fs=5, leads=("II", "V6")), start=30007.25)
    assert [float(s.get("data-start")) for s in drawn.segments] == [30007.25, 30014.75, 30007.25]
    x, y = drawn.traces[-1][0].T
    np.testing.assert_allclose(x[y < 115], 15 + (np.arange(30007.6, 30017, 1) - 30007.25) * 25, atol=0.05)
    assert ("ecg-scale", "25 mm/s · 10 mm/mV · from 30007.25 s") in drawn.texts


def test_rhythm_lead_and_cabrera_order():
    ecg = steps()
    assert [s.get("data-lead") for s in page(Paper(rhythm=None), ecg).segments] == list(LEADS)
    assert page(Paper(rhythm=None), ecg).height == page(Paper(), ecg).height - 30
    assert page(Paper("6x2", rhythm="v1"), ecg).segments[-1].get("data-lead") == "V1"
    assert len(page(Paper("12x1", rhythm="V1"), ecg).segments) == 12  # it is there in full length already
    assert page(Paper("12x1", rhythm="-aVR"), ecg).segments[-1].get("data-lead") == "-aVR"
    drawn = page(Paper("6x2", cabrera=True), ecg)
    assert [s.get("data-lead") for s in drawn.segments[:7]] == ["aVL", "I", "-aVR", "II", "aVF", "III", "V1"]
    assert drawn.named("-aVR")[0][:, 1].max() == pytest.approx(75 + 10 * height("aVR"), abs=0.01)


def test_titles_are_text_and_nothing_else_of_the_record_is_printed():
    title = '</text><script>alert("1")</script> & \x00\ud800 two\nlines\u2028 ]]>'
    ecg = steps()
    for interactive in (False, True):
        svg = Paper().svg(ecg, title=title, interactive=interactive)
        assert "<script" not in svg
        root = ET.fromstring(svg.encode())
        assert {element.tag.removeprefix(SVG) for element in root.iter()} == {"svg", "rect", "g", "path", "text"}
        (told,) = [text.text for text in root.iter(f"{SVG}text") if text.get("class") == "ecg-title"]
        assert told == '</text><script>alert("1")</script> & \ufffd\ufffd two lines ]]>' and told in root.get(
            "aria-label"
        )
        assert bool(root.findall(f".//{SVG}rect[@class='ecg-segment']")) == interactive
    assert "r1" not in (plain := Paper().svg(ecg)) and "p1" not in plain and "ecg-title" not in plain
    assert Paper().png(ecg, title=r"$\no{maths$ <b>", dpi=20).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "4x3"}, "the layout of ECG paper is 3x4, 6x2 or 12x1, got '4x3'"),
        ({"speed": 30}, "the speed of ECG paper is 25 or 50 mm/s, got 30"),
        ({"gain": 0}, "the gain of ECG paper is 5, 10 or 20 mm/mV, got 0"),
        ({"gain": "10"}, "the gain of ECG paper is 5, 10 or 20 mm/mV, got '10'"),
        ({"rhythm": "V10"}, "unknown lead 'V10'"),
    ],
)
def test_paper_that_is_not_made_is_refused(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Paper(**options)


@pytest.mark.parametrize("start", [-0.1, 10.0, float("nan")])
def test_a_page_outside_the_recording_is_refused(start):
    with pytest.raises(ValueError, match=f"record 'r1': cannot be drawn from {start:g} s on: it lasts 10 s"):
        Paper().svg(steps(), start=start)


def test_a_page_without_a_trace_is_refused():
    with pytest.raises(ValueError, match="record 'f': there is nothing to draw: .* in any of I, .*; it has VX, VY"):
        Paper().svg(Ecg(np.zeros((2, 100)), 100, ("VX", "VY"), "f"))
    with pytest.raises(ValueError, match="ECG: there is nothing to draw: no finite sample from 0 to 10 s"):
        Paper().svg(Ecg(np.full((12, 100), np.nan), 100, LEADS))
    assert page(Paper(rhythm="VX"), Ecg(np.zeros((2, 100)), 100, ("VX", "VY"))).segments[0].get("data-lead") == "VX"


@pytest.mark.parametrize("dpi", [0, 19, 1201, float("nan")])
def test_a_resolution_that_is_none_is_refused(dpi):
    with pytest.raises(ValueError, match=f"must be 20 to 1200 dpi, got {dpi}"):
        Paper().png(steps(), dpi=dpi)


def test_equal_ecgs_give_equal_bytes():
    assert Paper().svg(steps()) == Paper().svg(steps()) and Paper().png(steps(), dpi=50) == Paper().png(steps(), dpi=50)
