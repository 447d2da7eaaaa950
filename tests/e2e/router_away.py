"""Goal: a router that is away for a minute is not missed, also when a worker dies meanwhile (F15 and G9 of
docs/design/failure-model.md): no request fails, no token changes, and what answers cost stays what it was.

Method: three workers, every expert on two; clients stream all the time. The router is killed, after a third of its absence a
worker too, and then the router comes back with its state. Prints what the time per token was before and meanwhile, and how
long it took until every expert had two replicas again.

    router_away.py [--seconds N]       how long it is away
"""

import argparse
import json
import sys
import time

import cluster as clusters
import conclave_process as conclave
import partition_test


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    args = parser.parse_args()
    bodies = partition_test.bodies()
    expected = partition_test.undisturbed(bodies)
    with clusters.Cluster(workers=3, frontends=1) as cluster:
        cluster.wait_for_replicas(2)
        streams = partition_test.Streams(cluster.frontends[0], bodies)
        try:
            settled = time.monotonic() + 10
            clusters.wait_until(lambda: time.monotonic() >= settled, "what is usual is known", 60)
            begin = time.monotonic()
            cluster.router.kill()
            clusters.wait_until(lambda: time.monotonic() >= begin + args.seconds / 3, "a third of it", args.seconds + 60)
            killed = time.monotonic()
            cluster.workers["w0"].kill()
            clusters.wait_until(lambda: time.monotonic() >= begin + args.seconds, "all of it", args.seconds + 60)
            end = time.monotonic()
            cluster.restart_router()
            clusters.wait_until(lambda: cluster.command("status").returncode == 0, "the router answers")
            cluster.wait_for_replicas(2)
            whole = time.monotonic()
            streams.wait_for(3)
        finally:
            streams.stop()
        mismatched = [index for index, answer in streams.answers if answer.key != expected[index]]
        report = {"fault": f"router away for {end - begin:.0f} s, a worker killed after {killed - begin:.0f} s",
                  "token_p99_ms_before": round(clusters.percentile(streams.gaps_ms(0, begin), 0.99), 1),
                  "token_p99_ms_away": round(clusters.percentile(streams.gaps_ms(begin, killed), 0.99), 1),
                  "token_p99_ms_after_the_kill": round(clusters.percentile(streams.gaps_ms(killed, end), 0.99), 1),
                  "masked_ms": round(max(streams.gaps_ms(killed, killed + 5))), "whole_again_ms": round((whole - end) * 1000),
                  "answers": len(streams.answers), "failed": len(streams.failures), "mismatched": len(mismatched)}
        print(json.dumps(report), flush=True)
        if streams.failures or mismatched:
            print("\n".join([*streams.failures[:5], cluster.logs()]))
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
