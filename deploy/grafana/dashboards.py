"""Writes the Grafana dashboards of this folder, or with --check says whether the committed files are what it would write.

    .venv/bin/python deploy/grafana/dashboards.py [--check]

A panel says what it shows and, after "When it is bad", what to do.
"""

import json
import pathlib
import sys

from grafana_foundation_sdk.builders import table
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as models

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from panels import (  # noqa: E402
    BLUE, CHOSEN, GREEN, GREY, HEAT, MODEL, RED, SHARES, STACKED, TOKENS, YELLOW, add, bars, board, leading, lines,
    matrix, named, number, of_leader, or_zero, quantile, quantiles, query_variable, rate, timeline, titled, with_queries)

FOLDER = pathlib.Path(__file__).resolve().parent / "dashboards"

# As the router's status has them; a number orders them in a timeline.
ROUTER_STATES = [(1, "joining", YELLOW), (2, "live", GREEN), (3, "suspect", RED), (4, "draining", BLUE), (5, "drained", GREY)]


def cluster():
    workers = query_variable("instance", "Worker", "label_values(conclave_worker_state, instance)")
    made = board("cluster", "conclave / cluster", "Members, failover, load of the workers, placement and calls.", [workers])
    mine = 'instance=~"$instance"'
    add(made, "Now", [
        number("Live workers", "Workers that the leading router counts as live. When it is bad: conclave cluster status "
               "names the missing one; runbook, WorkerDown.",
               [(leading('conclave_router_workers{state="live"}'), "live")], width=3, steps=(RED, (1, YELLOW), (2, GREEN))),
        number("Frontends", "Frontends that are connected to the leading router. When it is bad: the log of the one that is "
               "missing says why it finds no router.", [(leading("conclave_router_frontends"), "connected")], width=3,
               steps=(RED, (1, GREEN))),
        number("Leading routers", "Routers that command: exactly 1. When it is bad: runbook, NoRouterLeads.",
               [("sum(conclave_router_leading)", "leading")], width=3, steps=(RED, (1, GREEN), (2, RED))),
        number("Fewest replicas", "Replicas of the expert that has the fewest; 0 means that workers do not serve it. When it "
               "is bad: runbook, ExpertWithoutReplica and ReplicasMissing.",
               [(leading("moe_replication_lowest"), "lowest")], width=3, steps=(RED, (1, YELLOW), (2, GREEN))),
        number("Epoch", "Number of the placement within the router's term, one more with every change. When it is bad: it "
               "grows all the time; the row Failover shows workers that come and go.",
               [(leading("conclave_placement_epoch"), "epoch")], width=3),
        number("Placement age", "Time since the last epoch. When it is bad: seconds, for minutes on end, mean that replicas "
               "move all the time; a balancer that moves nothing while loads are uneven is RebalanceStalled in the runbook.",
               [(leading("moe_placement_age_seconds"), "age")], unit="s", width=3),
        number("Imbalance now", "Load of the most loaded worker over the mean, averaged over layers; 1 is even. When "
               "it is bad: runbook, ImbalanceHigh.", [(leading("moe_placement_imbalance_seen"), "seen")], width=3,
               steps=(GREEN, (1.3, YELLOW), (2, RED)), decimals=2),
        number("Firing alerts", "Alerts of the shipped rules that fire now. When it is bad: Prometheus lists them under "
               "Alerts, each with its section of the runbook.",
               [('count(ALERTS{alertstate="firing"}) or vector(0)', "firing")], width=3, steps=(GREEN, (1, RED))),
    ])
    states = ["connecting", "registered", "fenced", "draining", "stopped"]
    numbered = " or ".join(f'{value} * (conclave_worker_state{{{mine},state="{state}"}} == 1)'
                           for value, state in enumerate(states, 1))
    add(made, "Failover", [
        timeline("States of the workers", "What every worker says of itself; down: it cannot be scraped. Red and blue lines "
                 "are lost workers and new epochs: a loss is followed within seconds by an epoch that does without the "
                 "worker, and by more while replicas are loaded elsewhere. When it is bad: runbook, WorkerDown, "
                 "WorkerFenced.",
                 [(f'max by (instance) ({numbered}) or max by (instance) (up{{job="conclave-worker",{mine}}} == 0)',
                   "{{instance}}")],
                 [(0, "down", RED), (1, "connecting", YELLOW), (2, "registered", GREEN), (3, "fenced", "orange"),
                  (4, "draining", BLUE), (5, "stopped", GREY)]),
        timeline("What the router says of the workers", "State of every member by name; a line ends where the worker is a "
                 "member no more. When it is bad: suspect is a worker whose heartbeats are missing: runbook, WorkerLost.",
                 [(named(of_leader("(" + " or ".join(f'{value} * (moe_worker_state{{state="{state}"}} == 1)'
                                                     for value, state, _ in ROUTER_STATES) + ")"), "name"), "{{name}}")],
                 ROUTER_STATES),
        lines("Calls that failed over", "Calls that had to be sent again because a worker did not answer, per minute and "
              "reason. When it is bad: they follow a lost worker for a moment; if they stay, runbook, DispatchResent.",
              [("sum by (reason) (rate(moe_failover_total[$__rate_interval])) * 60", "{{reason}}")], stack=STACKED),
        lines("Recovery", "From the first sending of such a call to its answer; 0: there was none. When it is bad: near the "
              "deadline of a call (150 ms) workers hang instead of ending; runbook, WorkerStuck.",
              [(or_zero(f"histogram_quantile({share}, sum by (le) "
                        f"(rate(moe_failover_recovery_seconds_bucket[$__rate_interval])))"), name)
               for share, name in [(0.5, "p50"), (0.99, "p99")]], unit="s"),
        lines("Tokens that failed over", "Rows that were sent again, by the worker that did not answer them, and rows that a "
              "frontend computed itself. When it is bad: one worker alone is sick: its log; degraded ones are DegradedTokens "
              "in the runbook.",
              [(named(rate("moe_redispatched_tokens_total", "instance, worker"), "name"), "{{name}}"),
               ("sum(rate(moe_degraded_tokens_total[$__rate_interval]))", "degraded")]),
        lines("Workers as the router sees them", "Members by state; distrusted ones count twice. When it is bad: suspect "
              "ones do not send heartbeats; distrusted ones are WorkerDistrusted in the runbook.",
              [('max by (state) (conclave_router_workers and on (instance) conclave_router_leading == 1)', "{{state}}")]),
        lines("Losses and epochs per minute", "Workers that died or went silent, and placements that were published. When "
              "it is bad: losses without an end mean a worker that is started again and again; read its log.",
              [("sum(rate(conclave_router_workers_lost_total[$__rate_interval])) * 60", "workers lost"),
               ("sum(rate(conclave_router_epochs_total[$__rate_interval])) * 60", "epochs")]),
        lines("Silence of the router", "Time since each frontend last heard the router: 0 while its stream stands; -1: "
              "never. When it is bad: it grows; runbook, RouterSilent, and if it grows everywhere, NoRouterLeads.",
              [("moe_router_silence_seconds", "{{instance}}")], unit="s", minimum=None),
        lines("Epochs in use", "The placement that router, frontends and workers work with: one line. When it is bad: a "
              "member that stays below the others does not hear the router.",
              [("max(conclave_placement_epoch)", "router"), ("moe_placement_epoch", "{{instance}}"),
               (f"conclave_worker_epoch{{{mine}}}", "{{instance}}")], minimum=None),
        lines("Links to workers", "Links of each frontend by what carries the calls. When it is bad: fewer than live workers "
              "is LinksMissing in the runbook; grpc where ucx is expected is explained in the frontend's log, 'channel "
              "chosen'.", [("moe_cluster_links_by_channel", "{{instance}} {{channel}}")]),
        lines("Leading and blocked", "Which router leads, and whether it can change anything. When it is bad: runbook, "
              "NoRouterLeads, RouterBlocked.",
              [("conclave_router_leading", "{{instance}} leads"), ("conclave_router_blocked", "{{instance}} blocked")]),
    ])
    add(made, "Load of the workers", [
        bars("Rows per second", "Token rows that each worker computes. When it is bad: a worker far above the others bounds "
             "the throughput; runbook, ImbalanceHigh.",
             [(f"sort_desc({rate(f'conclave_worker_rows_total{{{mine}}}', 'instance')})", "{{instance}}")]),
        bars("Busy", "Share of its time that the compute thread works. When it is bad: all near 100 % means too few workers; "
             "one alone is ImbalanceHigh in the runbook, or a slow machine (Time per row).",
             [(f"sort_desc({rate(f'conclave_worker_busy_seconds_total{{{mine}}}', 'instance')})", "{{instance}}")],
             unit="percentunit", steps=(GREEN, (0.7, YELLOW), (0.9, RED)), maximum=1),
        bars("Memory of experts", "Share of its budget that a worker's experts take. When it is bad: near 100 % there is no "
             "room to take over from a lost worker; --memory, or another worker.",
             [(f'sum by (instance) (conclave_worker_memory_bytes{{kind="used",{mine}}})'
               f' / sum by (instance) (conclave_worker_memory_bytes{{kind="budget",{mine}}})', "{{instance}}")],
             unit="percentunit", steps=(GREEN, (0.9, YELLOW)), maximum=1),
        lines("Rows per second over time", "As above, over time. When it is bad: lines that part after a new epoch mean a "
              "placement that fits the load of before.",
              [(rate(f"conclave_worker_rows_total{{{mine}}}", "instance"), "{{instance}}")]),
        lines("Time per row", "Service time of a row, smoothed. When it is bad: one worker above the others has a slower or "
              "a shared machine.", [(f"conclave_worker_seconds_per_row{{{mine}}}", "{{instance}}")], unit="s"),
        lines("Calls that wait", "Calls in the queues, by class: again are retries and hedges. When it is bad: a queue that "
              "stays is a worker behind its load; runbook, WorkerOverloaded.",
              [(f"sum by (instance, class) (conclave_worker_queue_calls{{{mine}}})", "{{instance}} {{class}}"),
               (f"conclave_worker_queue_rows{{{mine}}}", "{{instance}} rows")]),
        lines("Oldest call", "Age of the oldest call without an answer. When it is bad: seconds mean a compute thread that "
              "hangs; runbook, WorkerStuck.",
              [(f"conclave_worker_oldest_call_age_seconds{{{mine}}}", "{{instance}}")], unit="s"),
        lines("Calls by result", "What became of the calls. When it is bad: busy and late are WorkerOverloaded in the "
              "runbook; refused is explained in the worker's log; cancelled ones were answered elsewhere first.",
              [(rate(f"conclave_worker_calls_total{{{mine}}}", "result"), "{{result}}")], unit="ops", stack=STACKED),
        lines("Calls per batch", "How many calls the compute thread merges. When it is bad: 1 while Busy is high means that "
              "frontends send calls that cannot be merged.",
              [(f"{rate(f'conclave_worker_batch_calls_total{{{mine}}}', 'instance')} / "
                f"{rate(f'conclave_worker_batches_total{{{mine}}}', 'instance')}", "{{instance}}")]),
        lines("Bytes of frames", "Traffic between frontends and workers. When it is bad: near what the network carries, "
              "latency grows with it.",
              [(rate(f"conclave_worker_link_bytes_total{{{mine}}}", "instance, direction"), "{{instance}} {{direction}}")],
              unit="Bps"),
        lines("Experts held and loading", "Experts of each worker, and those still to be loaded. When it is bad: loading "
              "that does not come down is LoadingStalled in the runbook.",
              [(f"conclave_worker_experts{{{mine}}}", "{{instance}}"),
               (f"conclave_worker_experts_loading{{{mine}}}", "{{instance}} loading")]),
        lines("Frontends with a stream", "Sessions at each worker: one per frontend. When it is bad: runbook, LinksMissing.",
              [(f"conclave_worker_sessions{{{mine}}}", "{{instance}}")]),
    ])
    add(made, "Calls of the frontends", [
        lines("Calls by event", "First calls, and what became of them. When it is bad: retry, timeout and link_lost follow "
              "a lost worker for a moment; if they stay, runbook, DispatchResent. waited and rescued: no worker served the "
              "expert; runbook, DegradedTokens.",
              [(rate("moe_dispatch_calls_total", "event"), "{{event}}")], unit="ops", width=12),
        lines("Calls that were sent again", "Retries and hedges as a share of the calls. When it is bad: runbook, "
              "DispatchResent.",
              [(f"""{rate('moe_dispatch_calls_total{event=~"retry|hedge"}', 'instance')} / """
                f"""{rate('moe_dispatch_calls_total{event="first"}', 'instance')}""", "{{instance}}")],
              unit="percentunit", width=12, steps=(GREEN, (0.05, RED))),
        lines("Time that layers waited for one worker", "How long the answers of all others were there already and this "
              "worker's was not, per second. When it is bad: a worker that is always on top is slower than its replicas, or "
              "has more to do; its queue and CPU say which, and the slowest calls of the last minutes are listed by the "
              "frontend (docs/tracing.md).",
              [(rate("moe_straggler_seconds_total", "instance, worker"), "{{instance}} worker {{worker}}")], width=12),
        lines("Layers that waited for one worker", "How often it was the last, per second. When it is bad: often, but for "
              "little time, is chance; compare with the panel beside it.",
              [(rate("moe_straggler_calls_total", "instance, worker"), "{{instance}} worker {{worker}}")], unit="ops",
              width=12),
    ])
    stage_sums, stage_counts = "moe_dispatch_seconds_sum", "moe_dispatch_seconds_count"
    bytes_of = 'moe_dispatch_bytes_total{direction="%s"}'
    add(made, "Traffic", [
        matrix("From frontends to workers", "Bytes per second of calls. When it is bad: a worker whose column is far above "
               "the others holds the hot experts; runbook, ImbalanceHigh.",
               named(rate(bytes_of % "dispatch", "instance, src, dst"), "src, name", "dst"), (BLUE, (1, GREEN)), unit="Bps",
               width=8, row="src", column="name", decimals=0, height=8),
        matrix("From workers to frontends", "Bytes per second of answers. When it is bad: as for calls; an answer is as long "
               "as the rows of its call.", named(rate(bytes_of % "combine", "instance, src, dst"), "name, dst", "src"),
               (BLUE, (1, GREEN)), unit="Bps", width=8, row="name", column="dst", decimals=0, height=8),
        matrix("Time of a stage, by worker", "Mean time of an answered call in each stage. When it is bad: a row that is red "
               "where others are not is a slow worker (compute, queue) or a slow way to it (network).",
               f"{named(rate(stage_sums, 'instance, worker, stage'), 'name, stage')} / "
               f"{named(rate(stage_counts, 'instance, worker, stage'), 'name, stage')}",
               (GREEN, (0.005, YELLOW), (0.05, RED)), unit="s", width=8, row="name", column="stage", decimals=1, height=8),
        lines("Bytes by transport", "Bytes per second of calls and answers by what carries them. When it is bad: grpc or tcp "
              "where workers are on the same machine: --channel, and 'channel chosen' in the frontend's log.",
              [(rate("moe_dispatch_bytes_total", "transport, direction"), "{{transport}} {{direction}}")], unit="Bps",
              stack=STACKED, width=6),
        lines("Where a call's time goes", "Mean of the stages of an answered call, one on the other: their sum is a call. When "
              "it is bad: queue grows with the load (WorkerOverloaded in the runbook), network with the distance, compute "
              "with the rows.",
              [(f"{rate(stage_sums, 'stage')} / {rate(stage_counts, 'stage')}", "{{stage}}")], unit="s", stack=STACKED,
              width=6),
        lines("Round trip, p99", "Of the calls to each worker. When it is bad: runbook, DispatchP99High.",
              [("histogram_quantile(0.99, sum by (worker, le) "
                "(rate(moe_dispatch_round_trip_seconds_bucket[$__rate_interval])))", "worker {{worker}}")], unit="s", width=6,
              steps=(GREEN, (0.25, RED))),
        lines("Bytes over the least", "Bytes that were sent over those that the rows themselves have: what headers, weights "
              "and indices cost. When it is bad: far above 1 calls have few rows, of small models above all.",
              [("sum(rate(moe_dispatch_bytes_total[$__rate_interval])) / "
                "sum(rate(moe_dispatch_least_bytes_total[$__rate_interval]))", "sent / least")], minimum=1, width=6),
    ])
    add(made, "Placement", [
        matrix("Placement map", "Which worker every layer:expert is routed to: 1 is a replica. When it is bad: an expert in "
               "one column alone has no spare replica; runbook, ReplicasMissing. Large models show their first layers.",
               f'label_join({named(of_leader("moe_expert_placement"), "name, layer, expert")}, "unit", ":", "layer", '
               f'"expert")', (BLUE, (1, GREEN)), row="unit", column="name", decimals=0),
        matrix("Replicas of every expert", "How many workers each expert is routed to. When it is bad: 0 is "
               "ExpertWithoutReplica in the runbook; hot experts may have more than the others.",
               f"max by (layer, expert) {of_leader('moe_expert_replicas')}", (RED, (1, YELLOW), (2, GREEN)), decimals=0),
        lines("Plans", "Age of the plan under way, and time of plans that were done, p95, by reason; 0: there was none. When "
              "it is bad: an age that only grows is PlanStalled in the runbook.",
              [(leading("moe_plan_age_seconds"), "under way"),
               (or_zero("max(histogram_quantile(0.95, sum by (le, reason) "
                        "(rate(moe_rebalance_seconds_bucket[$__rate_interval]))) >= 0)"), "done, p95")], unit="s"),
        lines("Bytes moved", "Weights that workers loaded for plans, per second. When it is bad: all the time means replicas "
              "that go to and fro; PlansCancelled in the runbook.",
              [("sum(rate(moe_rebalance_moved_bytes_total[$__rate_interval]))", "loaded")], unit="Bps"),
        lines("Since the last plan was done", "A cluster that changes nothing plans nothing. When it is bad: it grows while "
              "loads are uneven; runbook, RebalanceStalled.",
              [("time() - max(moe_rebalance_last_success_timestamp_seconds)", "last done")], unit="s"),
        lines("Imbalance of workers", "Maximum over mean of the workers' loads, averaged over layers: as it is, and as the "
              "last plan expected it. When it is bad: runbook, ImbalanceHigh; a gap that stays is RebalanceStalled.",
              [(leading("moe_placement_imbalance_seen"), "seen"), (leading("moe_placement_imbalance_planned"), "planned")],
              steps=(GREEN, (1.3, YELLOW), (2, RED)), minimum=None),
        lines("Replicas of an expert", "Fewest that an expert has, and wanted. When it is bad: runbook, ReplicasMissing.",
              [(leading("moe_replication_lowest"), "lowest"), (leading("moe_replication_wanted"), "wanted")]),
        lines("Moves of replicas", "What the router had done, per minute. When it is bad: refused is ReplicasRefused in the "
              "runbook, plans given up PlansCancelled.",
              [(f"sum(rate({metric}[$__rate_interval])) * 60", name) for metric, name in [
                  ("moe_replicas_loaded_total", "loaded"), ("moe_replicas_retired_total", "retired"),
                  ("moe_replicas_refused_total", "refused"), ("moe_rebalances_total", "plans for balance"),
                  ("moe_plans_cancelled_total", "plans given up")]]),
    ])
    add(made, "Faults and processes", [
        lines("Faults per minute", "Damaged frames, calls that came twice, failed canaries, messages that the router "
              "ignored. When it is bad: runbook, LinkDamage and CanaryFailures; doubled calls are harmless.",
              [(f"sum(rate({metric}[$__rate_interval])) * 60", name) for metric, name in [
                  (f"conclave_worker_link_malformed_total{{{mine}}}", "damaged frames"),
                  (f"conclave_worker_link_duplicates_total{{{mine}}}", "calls that came twice"),
                  (f"conclave_worker_canary_failures_total{{{mine}}}", "failed canaries"),
                  ("conclave_router_reports_ignored_total", "messages ignored")]]),
        lines("Resident memory", "Of every process. When it is bad: growth without an end; keep the log, and start the "
              "process again.", [('process_resident_memory_bytes{job=~"conclave-.*"}', "{{instance}}")], unit="bytes"),
        lines("CPU", "Cores that every process uses. When it is bad: at its quota, a process answers late.",
              [('rate(process_cpu_seconds_total{job=~"conclave-.*"}[$__rate_interval])', "{{instance}}")]),
        lines("File descriptors", "Open ones as a share of the limit. When it is bad: runbook, DescriptorsNearLimit.",
              [('process_open_fds{job=~"conclave-.*"} / process_max_fds{job=~"conclave-.*"}', "{{instance}}")],
              unit="percentunit", steps=(GREEN, (0.8, RED))),
        lines("Up time", "Since the start of every process. When it is bad: a line that falls to 0 is a process that was "
              "started again; its log, or the service manager's, says why.",
              [('time() - process_start_time_seconds{job=~"conclave-.*"}', "{{instance}}")], unit="s"),
        with_queries(titled(table.Panel().show_header(True), "Builds",
                            "Version and numeric mode of every process; a router's is that of its workers. "
                            "When it is bad: workers and frontends of different dtypes do not work together.", 8, 8),
                     [('max by (instance, version, dtype) (conclave_build_info{job=~"conclave-.*"})', "")], instant=True,
                     as_table=True),
    ])
    return made


def experts():
    workers = query_variable("instance", "Worker", 'label_values(moe_expert_tokens_total{worker!=""}, instance)')
    layers = query_variable("layer", "Layer", 'label_values(moe_expert_tokens_total{worker!=""}, layer)',
                            models.VariableSort.NUMERICAL_ASC)
    made = board("experts", "conclave / experts", "Which experts tokens take, by layer, modality, phase and worker.",
                 [workers, layers])

    def over_range(by, more=""):
        return f"sum by ({by}) (rate({TOKENS % more}[$__range]))"

    def fair(more=""):
        loads = over_range("layer, expert", more)
        return f"{loads} / on (layer) group_left () avg by (layer) ({loads})"

    def share(more=""):
        return f"{over_range('layer, expert', more)} / on (layer) group_left () {over_range('layer', more)}"

    text, image = ',modality="text"', ',modality="image"'
    of_layer = ',layer=~"$layer"'
    add(made, "Layers x experts, over the time that is shown", [
        matrix("Load over fair share", "Rows of an expert over the mean of its layer: 1 is fair. When it is bad: hot experts "
               "bound the throughput unless they have replicas on idle workers; conclave cluster replicate LAYER:EXPERT N, "
               "or rebalance.", fair(), HEAT),
        matrix("Rows per second", "Rows of an expert. When it is bad: an expert at 0 in a busy layer is never chosen: "
               "compare with what the checkpoint was trained on.", over_range("layer, expert"), (BLUE,), decimals=1),
    ])
    add(made, "Text and images, over the time that is shown", [
        matrix("Text: load over fair share", "As above, of text tokens alone. When it is bad: very uneven here and even for "
               "images, or the reverse, is specialization of the experts and no fault; placements follow the sum.",
               fair(text), HEAT, width=8),
        matrix("Images: load over fair share", "As above, of image rows alone. When it is bad: as for text; an expert that "
               "takes nearly all image rows gets hot when requests bring more pictures.", fair(image), HEAT, width=8),
        matrix("Preference", "Share of the layer's image rows that an expert takes, minus its share of the text rows: 0 "
               "prefers neither, positive is an expert of images. When it is bad: a sudden change without a new model means "
               "other inputs.", f"({share(image)}) - ({share(text)})",
               ("purple", (-0.2, "super-light-purple"), (-0.05, GREY), (0.05, "super-light-orange"), (0.2, "orange")),
               unit="percentunit", width=8),
    ])
    first = f"sum by (layer, expert) (rate({CHOSEN % 'top1'}[$__range]))"
    weights = "sum by (layer, expert) (rate(moe_expert_weight_sum_total[$__range]))"
    choices = f"sum by (layer, expert) (rate({CHOSEN % 'top.'}[$__range]))"
    add(made, "What the gates say, over the time that is shown", [
        matrix("First choices over fair share", "How often an expert is a row's first choice, over the mean of its layer, as "
               "frontends count it. When it is bad: hot here and not above is an expert that also takes fewer second choices; "
               "the sum of both is what loads the workers.", f"{first} / on (layer) group_left () avg by (layer) ({first})",
               HEAT),
        matrix("Weight of a choice", "Mean weight that the gate gives to an expert when it chooses it; two choices of a row "
               "share 1 where weights are renormalized. When it is bad: an expert with a low weight is chosen for want of a "
               "better one; it matters little to answers and as much to the load.", f"{weights} / {choices}",
               (BLUE, (0.25, "super-light-blue"), (0.5, GREEN), (0.75, YELLOW))),
    ])
    probable = "sum by (layer, expert) (rate(moe_gate_probability_sum_total[$__range]))"
    add(made, "Balance of the gates", [
        lines("Balance loss", "What training adds for every layer, of what is served: experts times the sum over experts of "
              "their share of first choices times their mean probability; 1 is balanced, the number of experts is everything "
              "to one. When it is bad: a layer that rises with the same model gets other inputs than it was trained for; "
              "hot experts follow: runbook, ImbalanceHigh.", [("layer:moe_balance_loss:rate5m", "layer {{layer}}")],
              minimum=1, width=12),
        matrix("Mean probability", "What the gate gives to an expert over all rows, chosen or not, over its fair share. When "
               "it is bad: an expert that is chosen often with a probability near 1 is preferred narrowly, and small changes "
               "of the input move its load.", f"{probable} / on (layer) group_left () avg by (layer) ({probable})", HEAT),
    ])
    add(made, "Over time", [
        lines("Imbalance by layer", "Rows of the most loaded expert over the layer's mean. This is the load's own; how "
              "evenly workers share it is on the dashboard of the cluster. When it is bad: runbook, ImbalanceHigh.",
              [(f"max by (layer) ({rate(TOKENS % of_layer, 'layer, expert')}) / "
                f"avg by (layer) ({rate(TOKENS % of_layer, 'layer, expert')})", "layer {{layer}}")],
              steps=(GREEN, (1.3, YELLOW), (2, RED)), minimum=1),
        number("Worst layer", "The highest of these imbalances now. When it is bad: Load over fair share shows which expert "
               "of which layer it is.",
               [(f"max(max by (layer) ({rate(TOKENS % of_layer, 'layer, expert')}) / "
                 f"avg by (layer) ({rate(TOKENS % of_layer, 'layer, expert')}))", "max / mean")], width=4,
               steps=(GREEN, (1.3, YELLOW), (2, RED)), decimals=2).height(8),
        lines("Rows by modality", "Text tokens and image rows, over all layers. When it is bad: nothing by itself; it "
              "explains changes of the loads.", [(rate(TOKENS % of_layer, "modality"), "{{modality}}")], stack=STACKED,
              width=6),
        lines("Rows by phase", "Rows of prompts and of generated tokens. When it is bad: nothing by itself; decode is what "
              "clients wait for at every token.", [(rate(TOKENS % of_layer, "phase"), "{{phase}}")], stack=STACKED, width=6),
        lines("Experts of layer $layer", "Share of every expert. When it is bad: a band that grows and stays is a hot "
              "expert; runbook, ImbalanceHigh.", [(rate(TOKENS % of_layer, "expert"), "{{expert}}")], stack=SHARES, width=12)
        .repeat("layer").repeat_direction("h"),
    ])
    unit = 'label_join({}, "unit", ":", "layer", "expert")'
    add(made, "Experts on workers", [
        matrix("Experts of every worker", "Rows per second of every layer:expert on every worker; an empty cell is a worker without "
               "that replica, or with one that gets no calls. When it is bad: a replica of a hot expert at 0 means that "
               "frontends have no link to its worker; runbook, LinksMissing.",
               unit.format(rate(TOKENS % of_layer, "instance, layer, expert")), (BLUE, (0.001, GREEN)), width=24, row="unit",
               column="instance", decimals=1, height=12),
        lines("Rows per second, by worker", "The sum of the experts of each worker. When it is bad: runbook, ImbalanceHigh.",
              [(rate(TOKENS % of_layer, "instance"), "{{instance}}")], width=24),
    ])
    return made


def serving():
    model = query_variable("model_name", "Model", "label_values(conclave_num_requests_running, model_name)")
    frontends = query_variable("instance", "Frontend",
                               'label_values(conclave_num_requests_running{model_name=~"$model_name"}, instance)')
    made = board("serving", "conclave / serving", "What clients get: latencies, throughput, queues, caches, errors.",
                 [model, frontends])
    mine = 'instance=~"$instance"'

    def total(metric, by="instance", more=""):
        return rate(f"{metric}{{{MODEL}{more}}}", by)

    def hits(name):
        return (f"sum(rate({name}_hits_total{{{MODEL}}}[$__rate_interval])) / "
                f"sum(rate({name}_queries_total{{{MODEL}}}[$__rate_interval]))")

    add(made, "Latency", [
        lines("Time to first token", "From submission to the first token. When it is bad: the row Where the time goes says "
              "whether it is the queue, the pictures or the prompt; runbook, TimeToFirstTokenBurnFast.",
              quantiles("conclave_time_to_first_token_seconds"), unit="s", steps=(GREEN, (2, RED))),
        lines("Time between tokens", "Between two tokens of a sequence. When it is bad: decode shares steps with long "
              "prompts (--prefill-chunk), or a worker is slow: Time per row on the dashboard of the cluster.",
              quantiles("conclave_inter_token_latency_seconds"), unit="s"),
        lines("Whole requests", "From submission to the last token. When it is bad: compare with the length of the answers "
              "below; long answers take long.", quantiles("conclave_e2e_request_latency_seconds"), unit="s"),
        lines("Late first tokens", "Share of the requests that waited more than 2 s; the objective is 1 %. When it is bad: "
              "runbook, TimeToFirstTokenBurnFast and TimeToFirstTokenBurnSlow.",
              [(f"""1 - sum by (model_name) (rate(conclave_time_to_first_token_seconds_bucket{{{MODEL},le=~"2|2\\\\.0"}}"""
                f"[{window}])) / sum by (model_name) (rate(conclave_time_to_first_token_seconds_count{{{MODEL}}}[{window}]))",
                f"{{{{model_name}}}} {window}") for window in ("5m", "1h")], unit="percentunit",
              steps=(GREEN, (0.01, YELLOW), (0.144, RED))),
        lines("Time per token of a request", "Mean of a request after its first token. When it is bad: as for Time between "
              "tokens.", quantiles("conclave_request_time_per_output_token_seconds"), unit="s"),
        lines("HTTP", "From the last byte of a request to the last of the answer, p95. When it is bad: far above Whole "
              "requests, clients read slowly.",
              [(f"histogram_quantile(0.95, sum by (le, handler) "
                f"(rate(conclave_http_request_duration_seconds_bucket{{{mine}}}[$__rate_interval])))", "{{handler}}")],
              unit="s"),
    ])
    add(made, "Throughput and queues", [
        lines("Tokens per second", "Generated tokens, prompt tokens that were computed, and those that the prefix cache had. "
              "When it is bad: it falls while requests wait: look at the workers' load.",
              [(f"sum(rate(conclave_generation_tokens_total{{{MODEL}}}[$__rate_interval]))", "generated"),
               (f"sum(rate(conclave_prompt_tokens_total{{{MODEL}}}[$__rate_interval])) - "
                f"sum(rate(conclave_prompt_tokens_cached_total{{{MODEL}}}[$__rate_interval]))", "prompt, computed"),
               (f"sum(rate(conclave_prompt_tokens_cached_total{{{MODEL}}}[$__rate_interval]))", "prompt, cached")]),
        lines("Requests", "Sequences in the batch, and those that wait for it. When it is bad: waiting ones that become more "
              "are QueueGrowing in the runbook.",
              [(f"conclave_num_requests_running{{{MODEL}}}", "{{instance}} running"),
               (f"conclave_num_requests_waiting{{{MODEL}}}", "{{instance}} waiting")]),
        lines("KV blocks in use", "Share of the blocks for keys and values that running sequences have. When it is bad: "
              "runbook, KVNearFull.", [(f"max by (instance) (conclave_kv_cache_usage_perc{{{MODEL}}})", "{{instance}}")],
              unit="percentunit", steps=(GREEN, (0.9, RED))),
        lines("Ended requests", "By why they ended. When it is bad: error is RequestsFailing in the runbook; abort are "
              "clients that left, often because it takes them too long.",
              [(total("conclave_request_success_total", "finished_reason"), "{{finished_reason}}")], unit="reqps",
              stack=STACKED),
        lines("Sequences set back", "Sequences that lost their KV blocks to others and start again. When it is bad: any that "
              "stay are KVNearFull in the runbook.", [(total("conclave_num_preemptions_total"), "{{instance}}")], unit="ops"),
        lines("Steps", "Engine steps by micro-batches, and the mean of tokens in one. When it is bad: few tokens in a step "
              "while requests wait means that KV memory or --max-num-seqs bounds the batch.",
              [(total("conclave_steps_total", "micro_batches"), "{{micro_batches}} parts, per second"),
               (f"{total('conclave_iteration_tokens_total_sum', 'model_name')} / "
                f"{total('conclave_iteration_tokens_total_count', 'model_name')}", "tokens in a step")]),
    ])
    add(made, "Where the time goes", [
        lines("Waiting to be scheduled", "When it is bad: runbook, QueueGrowing. It shows the time from submission until a "
              "sequence is in the batch.", quantiles("conclave_request_queue_time_seconds"), unit="s"),
        lines("Prefill", "From scheduling to the first token. When it is bad: long prompts; a prefix that requests share is "
              "computed once.", quantiles("conclave_request_prefill_time_seconds"), unit="s"),
        lines("Decode and inference", "From the first to the last token, and from scheduling to the last, p95. When it is "
              "bad: it grows with the answers; compare with Time between tokens.",
              [(quantile(0.95, "conclave_request_decode_time_seconds", MODEL), "decode"),
               (quantile(0.95, "conclave_request_inference_time_seconds", MODEL), "inference")], unit="s"),
        lines("Decoding a picture", "Decoding and resizing one image. When it is bad: large pictures; clients can make them "
              "smaller, and --image-decode-timeout bounds what one may cost.", quantiles("moe_image_preprocess_seconds"),
              unit="s"),
        lines("Encoding a picture", "Vision tower and projector on one image that the cache does not have. When it is bad: "
              "too few --threads, or other work on the machine.", quantiles("moe_vision_encode_seconds"), unit="s"),
        lines("Caches", "Share of prompt tokens and of pictures that were found. When it is bad: low is normal for requests "
              "that have nothing in common; a fall with the same clients means that KV memory is short.",
              [(hits("conclave_prefix_cache"), "prompt tokens"), (hits("conclave_mm_cache"), "pictures")],
              unit="percentunit"),
    ])
    add(made, "Requests", [
        lines("HTTP by status", "Answers by status; 499: the client left. When it is bad: 5xx is RequestsFailing in the "
              "runbook; 429 and 413 are limits that clients hit.",
              [(rate(f"conclave_http_requests_total{{{mine}}}", "handler, status"), "{{handler}} {{status}}")],
              unit="reqps"),
        lines("Server errors", "Share of the requests to /v1/ that got 5xx. When it is bad: runbook, RequestsFailing.",
              [(f"""(sum by (instance) (rate(conclave_http_requests_total{{{mine},handler=~"/v1/.*",status=~"5.."}}"""
                f"""[$__rate_interval])) or 0 * sum by (instance) (rate(conclave_http_requests_total{{{mine},"""
                f"""handler=~"/v1/.*"}}[$__rate_interval]))) / """
                f"""{rate(f'conclave_http_requests_total{{{mine},handler=~"/v1/.*"}}', 'instance')}""", "{{instance}}")],
              unit="percentunit", steps=(GREEN, (0.05, RED))),
        lines("gRPC", "Calls by code, and the p95 of their time; nothing without --grpc-listen. When it is bad: UNAVAILABLE "
              "and INTERNAL are what 503 and 500 are over HTTP.",
              [(rate(f"conclave_grpc_requests_total{{{mine}}}", "method, code"), "{{method}} {{code}}"),
               (f"histogram_quantile(0.95, sum by (le, method) "
                f"(rate(conclave_grpc_request_duration_seconds_bucket{{{mine}}}[$__rate_interval])))", "{{method}} p95, s")]),
        lines("Length of prompts", "Tokens of a prompt, the rows of pictures included. When it is bad: longer prompts than "
              "were planned for take KV memory.", quantiles("conclave_request_prompt_tokens")),
        lines("Length of answers", "Generated tokens of a request. When it is bad: answers at the limit of max_tokens are "
              "cut: length in Ended requests.", quantiles("conclave_request_generation_tokens")),
        lines("Pictures of another format", "Pictures whose data URI names another format than they have, per minute. When "
              "it is bad: they are taken for what they are; tell the client.",
              [(f"{rate(f'conclave_image_mime_mismatch_total{{{mine}}}', 'instance')} * 60", "{{instance}}")]),
        lines("Spans of traced requests", "What became of them; nothing without --otlp-endpoint. When it is bad: failed means "
              "that the collector is away or refuses them (the log says why), dropped that more are made than it takes: "
              "lower --trace-sample.",
              [(rate(f"conclave_trace_spans_total{{{mine}}}", "instance, result"), "{{instance}} {{result}}")]),
    ])
    return made


def texts() -> dict[pathlib.Path, str]:
    """The files as they should be."""
    made = {}
    for name, build in [("cluster", cluster), ("experts", experts), ("serving", serving)]:
        content = build().build()
        # Links and repeats refer to panels by number; given in order they are the same every time.
        for number_of_panel, panel in enumerate(content.panels, 1):
            panel.id_val = number_of_panel
        made[FOLDER / f"{name}.json"] = json.dumps(content, cls=JSONEncoder, indent=2, sort_keys=True) + "\n"
    return made


def main() -> int:
    if sys.argv[1:] not in ([], ["--check"]):
        print(__doc__, file=sys.stderr)
        return 2
    stale = [path for path, text in texts().items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        if sys.argv[1:]:
            print(f"deploy/grafana/dashboards/{path.name} is not what dashboards.py writes")
        else:
            path.write_text(texts()[path], encoding="utf-8")
    return 1 if stale and sys.argv[1:] else 0


if __name__ == "__main__":
    sys.exit(main())
