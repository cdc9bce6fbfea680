"""Compare graphc with every installed peer: same weights, same inputs, same number of threads, same run.

Each peer runs in a process of its own, since two OpenMP pools that spin in one process slow each other down.
The rounds take the peers in turns, one at a time. Outputs (and in training the first losses, where nothing is
random) are compared with graphc's before anything is timed; a peer that differs is left out, as is one that
fails or takes longer than --limit. FLOPs are those of the direct convolutions and products, two for each
multiply-accumulate, and three times the forward pass for training.

Examples:
    python benchmarks/cpu.py                                        the whole table, which takes long
    python benchmarks/cpu.py --quick --no-compile --markdown        small nets, about a minute
    python benchmarks/cpu.py --nets lenet resnet18 --modes inference --rounds 7 --json out.json
    python benchmarks/cpu.py --layers resnet50                      each distinct convolution alone

The peers come with: pip install -e '.[bench]'
"""

from __future__ import annotations

import argparse

import tables
from nets import NETS, convolutions
from rounds import Runs
from session import Case, common, finish, parser_for, run, save, say, usable
from worker import EMITTERS, TITLES, missing, versions

MODES = ("inference", "training")
LAYER_PEERS = ("graphc", "eager", "onnxruntime")


def cases(options: argparse.Namespace) -> list[Case]:
    """Return what is to be measured, a row each."""
    if options.layers:
        layers = convolutions(options.layers).items()
        row = {**common(options), "mode": "inference"}
        return [
            {**row, "net": str(conv), "batch": batch, "conv": conv.to_dict(), "count": count}
            for conv, count in layers
            for batch in options.batches or (1, 16)
        ]
    found = []
    for net in options.nets or (("mlp", "lenet", "resnet18") if options.quick else NETS):
        large = NETS[net].batch
        for mode in options.modes:
            batches = options.batches or ((1, large) if mode == "inference" else (large,))
            if options.quick and net not in ("mlp", "lenet"):
                batches = (1,) if mode == "inference" else ()
            row = {**common(options), "net": net, "mode": mode, "dropout": NETS[net].dropout}
            found += [{**row, "batch": batch} for batch in batches]
    return found


def runs_of(case: Case, chosen: list[str]) -> Runs:
    """Return the runs of the peers that have an implementation of the case."""
    left_out = set() if case["net"] in ("mlp", "lenet") else {"jax"}
    if case["mode"] == "training":
        left_out |= {"onnxruntime", "openvino", *EMITTERS}
    return {peer: (peer, case) for peer in chosen if peer not in left_out}


def choose_peers(options: argparse.Namespace) -> tuple[list[str], dict[str, str]]:
    """Return the peers to run, and why the others are not."""
    wanted = options.peers or (LAYER_PEERS if options.layers else set(TITLES) - set(EMITTERS))
    chosen, skipped = [], {}
    for peer in TITLES:
        lacking = missing(peer)
        if peer != "graphc" and peer not in wanted:
            continue
        if peer == "compile" and not options.compile:
            skipped[peer] = "left out by --no-compile"
        elif peer in EMITTERS and options.threads > 1:
            skipped[peer] = "its C has one thread, add --threads 1"
        elif lacking:
            skipped[peer] = f"not installed: {', '.join(lacking)}"
        else:
            chosen.append(peer)
    return chosen, skipped


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the options."""
    parser = parser_for(str(__doc__))
    parser.add_argument("--nets", nargs="+", choices=NETS, metavar="NET", help=f"of {', '.join(NETS)}")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES), metavar="MODE",
                        help=f"of {', '.join(MODES)}")  # fmt: skip
    parser.add_argument("--batches", nargs="+", type=int, metavar="N", help="in place of 1 and 16 (or 64)")
    parser.add_argument("--peers", nargs="+", choices=TITLES, metavar="PEER", help=f"of {', '.join(TITLES)}; "
                        f"the default is all but {' and '.join(EMITTERS)}")  # fmt: skip
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="leave torch.compile out")
    parser.add_argument("--layers", choices=NETS, metavar="NET", help="each distinct convolution of a net")
    parser.add_argument("--threads", type=int, default=usable(), help=f"of each peer (default {usable()})")
    options = parser.parse_args(arguments)
    return finish(parser, options, f"layers_{options.layers}" if options.layers else "cpu")


def main() -> None:
    """Measure, and print the table."""
    options = parse()
    chosen, skipped = choose_peers(options)
    for peer, why in skipped.items():
        say(f"{TITLES[peer]} skipped: {why}")
    setup = {"peers": chosen, "skipped": skipped}
    results = run(
        cases(options), lambda case: runs_of(case, chosen), tables.add_ratios, options, setup, versions()
    )
    results["geometric_means"] = tables.geometric_means(results["rows"])
    print(tables.text(results, markdown=options.markdown))
    save(results, options)


if __name__ == "__main__":
    main()
