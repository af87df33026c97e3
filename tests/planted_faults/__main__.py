"""Plants each fault of the table in a copy of this tree, and runs the quick tests that should find it.

    python -m tests.planted_faults                    all of them: a quarter of an hour
    python -m tests.planted_faults -k badge           those whose file or text has the word
    python -m tests.planted_faults --kind reference   those of one kind

For each it prints the test that found it, or NOT FOUND. It fails if one was not found.
"""

import argparse
import sys

from tests.planted_faults.copy import Copy
from tests.planted_faults.table import FAULTS, KINDS


def one_line(text: str) -> str:
    return " ".join(text.split()) or "nothing"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("-k", default="", metavar="WORD", help="only faults whose file or text has this word")
    parser.add_argument("--kind", choices=KINDS, help="only faults of this kind")
    options = parser.parse_args()
    chosen = [
        fault
        for fault in FAULTS
        if options.k in " ".join((fault.file, fault.old, fault.new)) and options.kind in (None, fault.kind)
    ]
    if not chosen:
        sys.exit("no fault is chosen")
    copy = Copy()
    if any(fault.kind == "CPU kernel" for fault in chosen):
        copy.build()
    missed = 0
    for number, fault in enumerate(chosen, 1):
        found = copy.find(fault)
        missed += found is None
        print(f"{number}/{len(chosen)} {fault.kind}, {fault.file}: {one_line(fault.old)} -> {one_line(fault.new)}")
        print(f"    {'NOT FOUND' if found is None else f'found by {found}'}", flush=True)
    print(f"{len(chosen) - missed} of {len(chosen)} faults were found")
    sys.exit(missed > 0)


if __name__ == "__main__":
    main()
