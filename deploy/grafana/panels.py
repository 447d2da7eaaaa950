"""What the dashboards are made of: kinds of panels with this project's look, and parts of expressions.

Ratios are sums over sums, or the mean or maximum of ratios, never a sum of ratios. Figures of a router are those of the one
that leads: others know no placement.
"""

import string

from grafana_foundation_sdk.builders import bargauge, common, dashboard, prometheus, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import prometheus as prometheus_models

SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
# Rows that workers computed. Frontends count the same rows as their gates chose them, each with its rank.
TOKENS = 'moe_expert_tokens_total{worker!="",instance=~"$instance"%s}'
CHOSEN = 'moe_expert_tokens_total{rank=~"%s"}'
MODEL = 'model_name=~"$model_name",instance=~"$instance"'
GREEN, YELLOW, RED, BLUE, GREY = "green", "yellow", "red", "blue", "text"


def leading(metric: str) -> str:
    return f"max({metric} and on (instance) conclave_router_leading == 1)"


def quantile(share: float, metric: str, selector: str) -> str:
    return f"histogram_quantile({share}, sum by (le) (rate({metric}_bucket{{{selector}}}[$__rate_interval])))"


def quantiles(metric: str, selector: str = MODEL) -> list[tuple[str, str]]:
    return [(quantile(share, metric, selector), name) for share, name in [(0.5, "p50"), (0.95, "p95"), (0.99, "p99")]]


def or_zero(expr: str) -> str:
    """0 where there is nothing to take a quantile of."""
    return f"({expr}) >= 0 or vector(0)"


# Names of workers beside their ids, which others count by: on a router and on every frontend.
def named(expr: str, by: str, label: str = "worker") -> str:
    names = 'moe_worker_info' if label == "worker" else f'label_replace(moe_worker_info, "{label}", "$1", "worker", "(.+)")'
    return f"sum by ({by}) ({expr} * on (instance, {label}) group_left (name) {names})"


def of_leader(expr: str) -> str:
    return f"({expr} and on (instance) conclave_router_leading == 1)"


def thresholds(*steps):
    """(color of all below), then (value, color)."""
    first, *rest = steps
    made = [models.Threshold(value=None, color=first), *(models.Threshold(value=value, color=color) for value, color in rest)]
    return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(made)


def with_queries(panel, queries, instant=False, as_table=False):
    for letter, (expr, legend) in zip(string.ascii_uppercase, queries, strict=False):
        query = prometheus.Dataquery().expr(expr).ref_id(letter).legend_format(legend)
        query = query.instant() if instant else query.range()
        kind = prometheus_models.PromQueryFormat
        panel.with_target(query.format(kind.TABLE if as_table else kind.TIME_SERIES))
    return panel


def titled(panel, title: str, text: str, width: int, height: int):
    return panel.title(title).description(text).datasource(SOURCE).span(width).height(height)


def number(title, text, queries, unit="none", width=4, steps=(GREEN,), decimals=None):
    panel = titled(stat.Panel(), title, text, width, 4).unit(unit).thresholds(thresholds(*steps))
    panel.graph_mode(common_models.BigValueGraphMode.NONE)
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).fields("").values(False))
    if decimals is not None:
        panel.decimals(decimals)
    return with_queries(panel, queries, instant=True)


def lines(title, text, queries, unit="short", width=8, stack=None, steps=None, minimum=0, height=8):
    panel = titled(timeseries.Panel(), title, text, width, height).unit(unit)
    if minimum is not None:
        panel.min(minimum)
    panel.line_width(1).fill_opacity(10 if stack is None else 40).show_points(common_models.VisibilityMode.NEVER)
    legend = common.VizLegendOptions().display_mode(common_models.LegendDisplayMode.LIST)
    panel.legend(legend.placement(common_models.LegendPlacement.BOTTOM).show_legend(True))
    tooltip = common.VizTooltipOptions().mode(common_models.TooltipDisplayMode.MULTI)
    panel.tooltip(tooltip.sort(common_models.SortOrder.DESCENDING))
    if stack:
        panel.stacking(common.StackingConfig().mode(stack).group("A"))
    if steps:
        panel.thresholds(thresholds(*steps))
        panel.thresholds_style(common.GraphThresholdsStyleConfig().mode(common_models.GraphTresholdsStyleMode.DASHED))
    return with_queries(panel, queries)


STACKED = common_models.StackingMode.NORMAL
SHARES = common_models.StackingMode.PERCENT


def bars(title, text, queries, unit="short", width=8, steps=(GREEN,), maximum=None):
    panel = titled(bargauge.Panel(), title, text, width, 8).unit(unit).min(0).thresholds(thresholds(*steps))
    if maximum is not None:
        panel.max(maximum)
    panel.orientation(common_models.VizOrientation.HORIZONTAL).display_mode(common_models.BarGaugeDisplayMode.BASIC)
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).fields("").values(False))
    return with_queries(panel, queries, instant=True)


def matrix(title, text, expr, steps, unit="none", width=12, row="layer", column="expert", decimals=2, height=10):
    """A heat map: one cell per pair of labels, colored by its value."""
    panel = titled(table.Panel(), title, text, width, height).unit(unit).decimals(decimals)
    panel.thresholds(thresholds(*steps)).cell_height(common_models.TableCellHeight.SM)
    # Prometheus gives rows in no order, and Grafana sorts labels as text: "2" behind "10". Sorting is stable, so the second
    # one decides.
    for label in (row, column):
        if label in ("layer", "expert"):
            expr = f'label_replace({expr}, "{label}", "0$1", "{label}", "([0-9])")'
    for field in (column, row):
        panel.with_transformation(models.DataTransformerConfig(id_val="sortBy", options={"sort": [{"field": field}]}))
    panel.with_transformation(models.DataTransformerConfig(id_val="groupingToMatrix", options={
        "rowField": row, "columnField": column, "valueField": "Value"}))
    # All columns but the first, which has the names of the rows.
    panel.override_by_regexp(r"/^(?!.*\\).*$/", [
        models.DynamicConfigValue("custom.cellOptions", {"type": "color-background", "mode": "basic"}),
        models.DynamicConfigValue("custom.align", "center")])
    return with_queries(panel, [(expr, "")], instant=True, as_table=True)


# Load over its fair share: cold experts are blue, hot ones yellow and red.
HEAT = (BLUE, (0.5, "super-light-blue"), (0.8, GREEN), (1.3, YELLOW), (2.0, RED))


def timeline(title, text, queries, states):
    panel = titled(statetimeline.Panel(), title, text, 24, 8)
    panel.show_value(common_models.VisibilityMode.AUTO).row_height(0.8).merge_values(True).fill_opacity(80)
    mapped = {str(value): models.ValueMappingResult(text=name, color=color, index=index)
              for index, (value, name, color) in enumerate(states)}
    panel.mappings([models.ValueMap(options=mapped)])
    return with_queries(panel, queries)


def query_variable(name, label, query, sort=models.VariableSort.ALPHABETICAL_ASC):
    everything = models.VariableOption(selected=True, text="All", value="$__all")
    return (dashboard.QueryVariable(name).label(label).datasource(SOURCE).query(query).multi(True).include_all(True)
            .all_value(".*").current(everything).sort(sort).refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED))


def annotation(name, color, expr):
    return dashboard.AnnotationQuery().name(name).datasource(SOURCE).enable(True).icon_color(color).expr(expr)


def board(name, title, text, variables):
    made = dashboard.Dashboard(title).uid(f"conclave-{name}").description(text).tags(["conclave"]).readonly()
    made.time("now-30m", "now").refresh("10s").timezone("browser").tooltip(models.DashboardCursorSync.CROSSHAIR)
    made.with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    for variable in variables:
        made.with_variable(variable)
    # A minute: four scrapes of the shipped configuration.
    made.annotation(annotation("Worker lost", "red", "sum(increase(conclave_router_workers_lost_total[1m])) > 0"))
    made.annotation(annotation("New epoch", "blue", "sum(increase(conclave_router_epochs_total[1m])) > 0"))
    made.annotation(annotation("Plan for balance", "purple", "sum(increase(moe_rebalances_total[1m])) > 0"))
    link = dashboard.DashboardLink("conclave").type(models.DashboardLinkType.DASHBOARDS).tags(["conclave"])
    return made.link(link.as_dropdown(False).keep_time(True).include_vars(True))


def add(made, row, panels):
    made.with_row(dashboard.Row(row))
    for panel in panels:
        made.with_panel(panel)


def rate(selector: str, by: str) -> str:
    return f"sum by ({by}) (rate({selector}[$__rate_interval]))"
