"""Goal: whatever a network does to the frames between frontends and workers, no request fails and no token changes.

Method: three workers (every expert on two) answer clients over each channel, while failpoints on the frontend lose, delay,
hold, reorder, double, flip and cut calls and replies, each by its seed (libs/transport/include/conclave/transport/
chaos_channel.h). Every answer's tokens and the bits of their log probabilities must be those of one undisturbed process. The
points' own counts show that each fault was there, and the counters of frontend and workers that it had the effect that it
should: a timeout, a refusal by the parser, a duplicate dropped.

    chaos_matrix.py [--seed S] [--channels grpc,ucx] [--answers N]     N: at least so many answers per mix and channel
"""

import argparse
import dataclasses
import json
import pathlib
import re
import sys
import tempfile
import time

import cluster as clusters
import conclave_process as conclave
import exactness_matrix

CHANNELS = {"grpc": (["--channel", "grpc"], {}), "ucx": (["--channel", "ucx"], {})}
# How long a mix may take until all of it has happened.
MIX_TIMEOUT_S = 60
QUESTIONS = 12


@dataclasses.dataclass
class Mix:
    """Faults as (point, action, chance); `effects` are counters of which each must grow."""
    name: str
    faults: list[tuple[str, str, float]]
    effects: list[str]

    def setting(self, seed: int) -> str:
        points = [f"{point}={action}@prob={chance},seed={seed + index}"
                  for index, (point, action, chance) in enumerate(self.faults)]
        return ";".join([*points, "l.overtaken=note", "l.late_reply=note", "l.bad_frame=note"])


LOSS = [("l.call", "drop", 0.02), ("l.reply", "drop", 0.02)]
LATE = [("l.call", "delay:1-30", 0.05), ("l.reply", "delay:1-30", 0.05),
        ("l.call", "stall:20-80", 0.004), ("l.reply", "stall:20-80", 0.004)]
ORDER = [("l.call", "reorder:15", 0.1), ("l.reply", "reorder:15", 0.1)]
TWICE = [("l.call_frame", "dup", 0.2), ("l.reply_frame", "dup", 0.2)]
# Three damaged frames within 10 s end the link, so it is rarer.
DAMAGE = [("l.call_frame", "flip:any", 0.01), ("l.reply_frame", "flip:any", 0.01),
          ("l.call_frame", "truncate:any", 0.003), ("l.reply_frame", "truncate:any", 0.003)]


def rarer(faults: list[tuple[str, str, float]]) -> list[tuple[str, str, float]]:
    return [(point, action, chance / 3) for point, action, chance in faults]


MIXES = [Mix("lost", LOSS, ["resent"]),
         Mix("late", LATE, ["resent"]),
         Mix("out of order", ORDER, ["l.overtaken"]),
         Mix("twice", TWICE, ["l.late_reply", "worker duplicates"]),
         Mix("damaged", DAMAGE, ["l.bad_frame", "worker refusals", "resent"]),
         Mix("all of it", [*rarer(LOSS), *rarer(LATE), *rarer(ORDER), *TWICE, *rarer(DAMAGE)],
             ["l.late_reply", "worker duplicates", "resent"])]


def metrics(process) -> str:
    return conclave.http_request(process.ready["admin"], "GET", "/metrics").body.decode()


def sum_of(page: str, name: str) -> float:
    """Over all label values; `name` is a pattern."""
    return sum(float(value) for value in re.findall(rf"^{name} (\S+)$", page, re.MULTILINE))


class Cell:
    """A mix on a running cluster."""

    def __init__(self, cluster: clusters.Cluster, mix: Mix, seed: int):
        self.cluster, self.mix, self.seed = cluster, mix, seed
        self.frontend = cluster.frontends[0]
        self.before = self.effects()
        clusters.arm(self.frontend, mix.setting(seed))

    def effects(self) -> dict[str, float]:
        page = metrics(self.frontend)
        workers = [metrics(worker) for worker in self.cluster.workers.values()]
        event = r'moe_dispatch_calls_total\{event="(?:retry|hedge|link_lost)"\}'
        refused = r'conclave_worker_calls_total\{result="refused"\}|conclave_worker_link_malformed_total'
        return {"resent": sum_of(page, event),
                "worker duplicates": sum(sum_of(text, "conclave_worker_link_duplicates_total") for text in workers),
                "worker refusals": sum(sum_of(text, f"(?:{refused})") for text in workers)}

    def counts(self) -> dict[str, float]:
        """How often each fault has struck, and its effects."""
        report = conclave.http_request(self.frontend.ready["admin"], "GET", "/debug/failpoints").body.decode()
        lines = [line.split() for line in report.splitlines()]
        faults = {f"{point} {action}": float(line[1]) for (point, action, _), line in zip(self.mix.faults, lines)}
        notes = {name: float(count) for name, count in lines[len(self.mix.faults):]}
        return {**faults, **notes, **{name: value - self.before[name] for name, value in self.effects().items()}}

    def missing(self) -> list[str]:
        counts = self.counts()
        wanted = [*(f"{point} {action}" for point, action, _ in self.mix.faults), *self.mix.effects]
        return [name for name in wanted if counts[name] == 0]

    def run(self, bodies: list[dict], expected: list[str], num_answers: int) -> list[str]:
        """What went wrong."""
        load = clusters.Load([self.frontend], bodies)
        missing = ["everything"]
        try:
            deadline = time.monotonic() + MIX_TIMEOUT_S
            while time.monotonic() < deadline:
                load.wait_for(4, timeout=MIX_TIMEOUT_S)
                missing = self.missing()
                if not missing and len(load.answers) >= num_answers:
                    break
        finally:
            load.stop()
        counts = {name: int(value) for name, value in self.counts().items()}
        clusters.arm(self.frontend, "")
        mismatched = [index for index, key in load.answers if key != expected[index]]
        print(f"    {len(load.answers)} answers, {len(load.failures)} failed, {len(mismatched)} mismatched; {counts}",
              flush=True)
        wrong = [f"question {index} has other tokens or log probabilities" for index in mismatched]
        wrong += load.failures
        wrong += [f"{name}: expected it to happen within {MIX_TIMEOUT_S} s, found none" for name in missing]
        return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--channels", default=",".join(CHANNELS))
    parser.add_argument("--answers", type=int, default=16)
    parser.add_argument("--mixes", default=",".join(mix.name for mix in MIXES))
    args = parser.parse_args()
    if not json.loads(conclave.run("version", "--json").stdout).get("failpoints"):
        print("skipped: this build has no failpoints")
        return 77
    mixes = [mix for mix in MIXES if mix.name in args.mixes.split(",")]
    begin, num_wrong = time.monotonic(), 0
    with tempfile.TemporaryDirectory(prefix="conclave-chaos-") as folder:
        model = pathlib.Path(folder) / exactness_matrix.MODEL
        made = conclave.run("synth", "--like", "tiny", str(model))
        if made.returncode != 0:
            raise AssertionError(made.stderr)
        bodies = [exactness_matrix.body_of(exactness_matrix.MODEL, index) for index in range(QUESTIONS)]
        with conclave.Server("--threads", "1", model=model) as server:
            expected = [clusters.answer_key(server.chat(body)) for body in bodies]
        for channel in args.channels.split(","):
            channel_args, env = CHANNELS[channel]
            # The first mix is there from the start, by the variable; later ones come and go while the process runs.
            variables = {**env, "CONCLAVE_FAILPOINTS": mixes[0].setting(args.seed)}
            with clusters.Cluster(workers=3, frontends=0, model=model, args=channel_args, env=env or None,
                                  frontend_args=["--payload-crc"]) as cluster:
                cluster.env = variables
                cluster.add_frontend()
                cluster.wait_for_replicas(2)
                clusters.wait_until(cluster.is_ready, "every expert is served")
                first = conclave.http_request(cluster.frontends[0].ready["admin"], "GET", "/debug/failpoints")
                if not first.body.decode().startswith(mixes[0].faults[0][0] + " "):
                    raise AssertionError(f"the variable CONCLAVE_FAILPOINTS is not heeded: {first}")
                for index, mix in enumerate(mixes):
                    print(f"  {channel}, {mix.name}", flush=True)
                    wrong = Cell(cluster, mix, args.seed + 100 * index).run(bodies, expected, args.answers)
                    num_wrong += len(wrong)
                    if wrong:
                        print("\n".join(["FAILED", *wrong[:5], cluster.logs()]), flush=True)
    print(f"{time.monotonic() - begin:.0f} s, seed {args.seed}, {num_wrong} wrong")
    return 1 if num_wrong else 0


if __name__ == "__main__":
    sys.exit(main())
