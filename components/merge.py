"""``python3 -m components.merge``: put the shards of ``degrade`` together."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from components.contract import Exchange
from prefrestore import artifacts, cli
from prefrestore.data.pairing import merge_pairs


def main(arguments: Sequence[str]) -> None:
    """Merge the list of artifacts ``parts`` into ``pairs``."""
    parser = argparse.ArgumentParser(prog="components.merge", allow_abbrev=False)
    parser.add_argument("--executor-input", required=True)
    exchange = Exchange.parse(parser.parse_args(arguments).executor_input)
    pairs = exchange.output("pairs")
    with artifacts.replacing(pairs) as folder:
        artifacts.write_manifest(folder, merge_pairs(exchange.inputs("parts"), folder))
    exchange.metadata["pairs"] = {"digest": artifacts.digest(pairs), "stage": "degrade"}
    exchange.write()


if __name__ == "__main__":
    sys.exit(cli.guard(lambda: main(sys.argv[1:])))
