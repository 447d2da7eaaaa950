"""Goal: the demo model answers every recorded question as recorded.

Method: sends each line of models/demo/samples/samples.jsonl (several turns with their history) through the HTTP API,
greedy, and compares the text. The recordings were made in f32; a line that differs is printed with the distance between
the two best logits at the first token that differs, which says whether rounding can explain it.
"""

import argparse
import sys

import conclave_process as conclave


def first_difference(tokens: list[dict], expected: str) -> str:
    """Where the generated tokens leave the recorded answer, and how narrow the choice was there."""
    text = ""
    for position, token in enumerate(tokens):
        text += token["token"]
        if not expected.startswith(text.lstrip()):
            best, second = token["top_logprobs"][:2]
            margin = best["logprob"] - second["logprob"]
            return f"token {position}: {best['token']!r} over {second['token']!r} by {margin:.4f}"
    return f"the answer ends after token {len(tokens)}"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dtype", required=True, choices=("f32", "bf16", "q8"))
    dtype = parser.parse_args().dtype

    samples = conclave.samples()
    different = []
    turns = 0
    with conclave.Server("--dtype", dtype) as server:
        for sample in samples:
            turns += bool(sample["history"])
            response = server.chat({"model": "demo", "messages": conclave.sample_messages(sample), "temperature": 0,
                                    "logprobs": True, "top_logprobs": 2})
            if response.status != 200:
                print(f"{sample['image']} {sample['question']!r}: {response}")
                return 1
            if response.content != sample["answer"]:
                tokens = response.json()["choices"][0]["logprobs"]["content"]
                different.append((sample, response.content, first_difference(tokens, sample["answer"])))

    for sample, answer, where in different:
        print(f"{sample['image']} | {sample['question']} | recorded {sample['answer']!r} | now {answer!r} | {where}")
    print(f"{dtype}: {len(samples) - len(different)} of {len(samples)} answers as recorded, {turns} with a history")
    # The set itself is part of what is claimed.
    if len(samples) < 80 or turns < 4:
        print("the recordings are not all there")
        return 1
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
