"""Runs a command for every pair of a folder that `heads pairs` made, two at a time.

    python each_pair.py PAIRS portrait.png -- pyrograph generate portrait \\
        --profile {profile} --reference {reference} -m runs/control --base runs/heads --seed {number} -o {output}

In the command {profile}, {reference}, {truth}, {face} and {photos} stand for files of the pair, {output} for a file of the given
name beside them, {number} for the number of the pair, {identity} for that of the person, and {other} for the profile of the next
person. With --people the command runs once for every person, by their first pair.

Where the command does not contain {output}, what it prints goes to that file: whole, and only if it succeeds.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor


def main():
    words = sys.argv[1:]
    if "--" not in words:
        sys.exit(__doc__)
    cut = words.index("--")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=pathlib.Path)
    parser.add_argument("name")
    parser.add_argument("--people", action="store_true", help="once for every person")
    parser.add_argument("--first", type=int, help="the first pairs alone")
    parser.add_argument("--jobs", type=int, default=2)
    asked, command = parser.parse_args(words[:cut]), words[cut + 1 :]
    rows = [json.loads(line) for line in open(asked.pairs / "pairs.jsonl")]
    people = {row["identity"]: row["profile"] for row in rows}
    order = sorted(people)
    jobs = []
    for number, row in enumerate(rows[: asked.first]):
        if asked.people and number > 0 and rows[number - 1]["identity"] == row["identity"]:
            continue
        values = {key: asked.pairs / row[key] for key in ("profile", "reference", "truth", "face", "photos") if row.get(key)}
        following = order[(order.index(row["identity"]) + 1) % len(order)]
        values |= {
            "output": (asked.pairs / row["output"]).with_name(asked.name),
            "other": asked.pairs / people[following],
            "number": number,
            "identity": row["identity"],
        }
        jobs.append(([word.format(**values) for word in command], values["output"]))
    prints = not any("{output}" in word for word in command)

    def run(job):
        words, output = job
        done = subprocess.run(words, capture_output=True)
        if prints and done.returncode == 0:
            part = output.with_name(output.name + ".part")
            part.write_bytes(done.stdout)
            part.replace(output)
        return words, done

    start, bad = time.time(), 0
    with ThreadPoolExecutor(asked.jobs) as pool:
        for words, done in pool.map(run, jobs):
            if done.returncode:
                bad += 1
                print(" ".join(words), done.stderr.decode(errors="replace").strip(), sep="\n", file=sys.stderr)
    print(f"{len(jobs) - bad} of {len(jobs)} in {time.time() - start:.1f} s")
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
