"""Runs in each of Python's kernels, at its start: more forms of charts and tables, and variables.

A figure of matplotlib is also data: what its axes show, in the words of E2B's charts. A table of
pandas is also a map of its columns. Neither package is imported here: the forms are registered by
the types' names.
"""

import datetime
import math
import os
import sys
import types

CHART, TABLE = "application/vnd.voidbox.chart+json", "application/vnd.voidbox.table+json"
_POINTS_MAX = 100_000


def plain(value):
    """Return a value as JSON has it: numbers as such, moments as ISO 8601, others as text."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (datetime.date, datetime.datetime)):
        return value.isoformat()
    item = getattr(value, "item", None)
    if callable(item) and getattr(value, "ndim", 0) == 0:
        value = item()
        if isinstance(value, (datetime.date, datetime.datetime)):
            return value.isoformat()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, int) else str(value)


# Tables.


def table_of(frame):
    """Return the columns of a DataFrame."""
    return {str(name): [plain(value) for value in frame[name]] for name in frame.columns}


# Charts.


def chart_of(figure):
    """Return what a figure's axes show; one that is nothing we know as "unknown"."""
    found = [axes_of(axes) for axes in figure.get_axes()]
    found = [chart for chart in found if chart["elements"] or chart["title"]]
    if not found:
        return None
    if len(found) == 1:
        return found[0]
    title = figure.get_suptitle() if hasattr(figure, "get_suptitle") else ""
    return {"type": "superchart", "title": title, "elements": found}


def axes_of(axes):
    """Return one chart. The first of these that finds anything says what it is."""
    ways = {"pie": pie, "box_and_whisker": boxes, "bar": bars, "line": lines, "scatter": scatters}
    found = ((kind, find(axes)) for kind, find in ways.items())
    kind, elements = next((one for one in found if one[1]), ("unknown", []))
    chart = {"type": kind, "title": axes.get_title() or None, "elements": elements}
    if kind in ("pie", "unknown"):
        return chart
    chart.update(labels(axes))
    if kind in ("line", "scatter"):
        for name, axis in (("x", axes.xaxis), ("y", axes.yaxis)):
            chart.update(scale(name, axis))
    return chart


def labels(axes):
    """Return the axes' labels; a unit is what stands in brackets at the end of one."""
    found = {}
    for name, text in (("x", axes.get_xlabel()), ("y", axes.get_ylabel())):
        _, bracket, rest = text.rpartition("(")
        is_unit = bool(bracket) and rest.endswith(")")
        found[f"{name}_label"] = text or None
        found[f"{name}_unit"] = rest[:-1] if is_unit else None
    return found


def kind_of(axis):
    """Return what kind of scale an axis has."""
    from matplotlib import dates

    converter = axis.get_converter() if hasattr(axis, "get_converter") else axis.converter
    if isinstance(converter, (dates.DateConverter, dates._SwitchableDateConverter)):
        return "datetime"
    if type(axis.get_major_formatter()).__name__ == "StrCategoryFormatter":
        return "categorical"
    return axis.get_scale()


def scale(name, axis):
    """Return an axis' ticks, and its kind."""
    kind = kind_of(axis)
    ticks = [moment(tick) if kind == "datetime" else plain(tick) for tick in axis.get_ticklocs()]
    shown = [label.get_text() for label in axis.get_ticklabels()]
    return {f"{name}_ticks": ticks, f"{name}_tick_labels": shown, f"{name}_scale": kind}


def moment(number):
    """Return a date of matplotlib's."""
    from matplotlib import dates

    return dates.num2date(number).isoformat()


def coordinates(axis):
    """Return what makes an axis' numbers the names or the moments that they stand for."""
    kind = kind_of(axis)
    if kind == "datetime":
        return lambda value: moment(value) if isinstance(value, (int, float)) else plain(value)
    if kind == "categorical":
        mapping = getattr(getattr(axis, "units", None), "_mapping", {})
        names = {number: name for name, number in mapping.items()}
        return lambda value: names.get(int(value), plain(value))
    return plain


def points(axes, pairs):
    """Return points, as far as there are not too many."""
    x_of, y_of = coordinates(axes.xaxis), coordinates(axes.yaxis)
    return [[x_of(plain(x)), y_of(plain(y))] for x, y in list(pairs)[:_POINTS_MAX]]


def lines(axes):
    """Return the lines."""
    return [
        {"label": str(line.get_label()), "points": points(axes, line.get_xydata())}
        for line in axes.get_lines()
    ]


def scatters(axes):
    """Return the clouds of points."""
    from matplotlib.collections import PathCollection

    return [
        {"label": str(one.get_label()), "points": points(axes, one.get_offsets())}
        for one in axes.collections
        if isinstance(one, PathCollection)
    ]


def tick_names(axis):
    """Return what stands at an axis' ticks."""
    shown = (label.get_text() for label in axis.get_ticklabels())
    return dict(zip((plain(tick) for tick in axis.get_ticklocs()), shown))  # noqa: B905


def bars(axes):
    """Return the bars, by group and by the label of the tick below."""
    found = []
    ticks, across = tick_names(axes.xaxis), tick_names(axes.yaxis)
    for container in axes.containers:
        if type(container).__name__ != "BarContainer":
            continue
        group = str(container.get_label())
        for bar in container:
            is_flat = getattr(container, "orientation", "vertical") == "horizontal"
            size = bar.get_width() if is_flat else bar.get_height()
            middle = (bar.get_y() + bar.get_height() / 2 if is_flat
                      else bar.get_x() + bar.get_width() / 2)  # fmt: skip
            names = across if is_flat else ticks
            label = names.get(plain(middle)) or str(plain(middle))
            found.append({"label": label, "group": group, "value": plain(size)})
    return found


def pie(axes):
    """Return the slices: angles in degrees."""
    from matplotlib.patches import Wedge

    texts = [text.get_text() for text in axes.texts]
    wedges = [patch for patch in axes.patches if isinstance(patch, Wedge)]
    names = [text for text in texts if not text.endswith("%")]
    return [
        {
            "label": names[index] if index < len(names) else "",
            "angle": plain(abs(wedge.theta2 - wedge.theta1)),
            "radius": plain(wedge.r),
        }
        for index, wedge in enumerate(wedges)
    ]


def boxes(axes):
    """Return box plots: matplotlib draws each as lines, or patches, in an order of its own."""
    from matplotlib.patches import PathPatch

    found = []
    lines = [(list(line.get_ydata()), line.get_marker()) for line in axes.get_lines()]
    bodies = [ys for ys, _ in lines if len(ys) == 5]
    bodies += [
        [y for _, y in patch.get_path().vertices]
        for patch in axes.patches
        if isinstance(patch, PathPatch)
    ]
    others = [ys for ys, _ in lines if len(ys) == 2]  # two whiskers, two caps, a median each
    if not bodies or len(others) < 5 * len(bodies):
        return []
    names = [label.get_text() for label in axes.get_xticklabels()]
    spots = [ys for ys, marker in lines if marker not in ("None", "", None) or not ys]
    for index, body in enumerate(bodies):
        low, high = min(body), max(body)
        whiskers = others[index * 5 : index * 5 + 5]
        ends = [end for pair in whiskers for end in pair]
        inner = [pair[0] for pair in whiskers if pair[0] == pair[1] and low <= pair[0] <= high]
        found.append(
            {
                "label": names[index] if index < len(names) else str(index + 1),
                "min": plain(min(ends)),
                "first_quartile": plain(low),
                "median": plain(inner[0]) if inner else None,
                "third_quartile": plain(high),
                "max": plain(max(ends)),
                "outliers": [plain(y) for y in spots[index]] if index < len(spots) else [],
            }
        )
    return found


# Variables of one execution.

_before = []


def enter(env):
    """Set variables until leave()."""
    _before.append({name: os.environ.get(name) for name in env})
    os.environ.update(env)


def leave():
    """Have the variables that were there before enter()."""
    for name, value in _before.pop().items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def form_of(value):
    """Return which of the two forms a value has, and how to make it; None for neither."""
    for kind in type(value).__mro__:
        package, name = kind.__module__.partition(".")[0], kind.__name__
        if (package, name) == ("matplotlib", "Figure"):
            return CHART, chart_of
        if (package, name) == ("pandas", "DataFrame"):
            return TABLE, table_of
    return None


def install():
    """Have IPython know all of this."""
    from IPython import get_ipython
    from IPython.core.formatters import BaseFormatter
    from traitlets import Unicode

    class Form(BaseFormatter):
        # By the type's name alone: what is registered for a figure is taken back by IPython when
        # matplotlib's backend is chosen.
        format_type = Unicode("")

        def __call__(self, value):
            try:
                found = form_of(value)
                is_ours = found is not None and found[0] == self.format_type
                return found[1](value) if is_ours else None
            except Exception:  # a form less, rather than an execution that fails
                return None

    display = get_ipython().display_formatter
    for kind in (CHART, TABLE):
        display.formatters[kind] = Form(parent=display, format_type=kind)
    module = types.ModuleType("voidbox_kernel")
    module.enter, module.leave = enter, leave
    sys.modules["voidbox_kernel"] = module


if __name__ == "voidbox_kernel":
    install()
