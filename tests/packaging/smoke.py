"""What an installed lapal_ext must do: run every op by its kernel, and pick the same rows as the torch reference.

    python tests/packaging/smoke.py           # every op native
    python tests/packaging/smoke.py --pure    # a package without kernels: every op by its reference

It needs nothing but the package. Run it as a file, so that `lapal_ext` is the installed package and not the one in this
repository. It prints one line of JSON, or the reason why it fails.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import lapal_ext

# Without typiclust and probcover, which need scikit-learn, an extra.
ACQUISITIONS = (
    "margin", "entropy", "least_confident", "variance", "gradient_norm", "bald", "badge", "bait",
    "bait_forward_backward", "coreset", "power_margin", "random", "uherding", "maxherding",
)  # fmt: skip
LINKS = {"bald": ("plugin", "mean_field", "mc")}


class OpsCalled(TorchDispatchMode):
    """Records which ops of lapal_ext are dispatched."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "lapal_ext":
            self.names.add(function._schema.name.partition("::")[2])
        return function(*args, **(kwargs or {}))


def picks():
    """Picks of every kind on one fixed problem: overlapping classes, features off centre, float32."""
    draw = torch.Generator().manual_seed(0)
    centres = torch.randn(6, 24, generator=draw)
    labels = torch.randint(6, (500,), generator=draw)
    features = 2 * (centres[labels] + 1.5 * torch.randn(500, 24, generator=draw)) + 3
    labelled, pool, points = features[:40], features[40:400], features[400:]
    model = lapal_ext.LastLayerLaplace.fit_map(labelled, labels[:40], num_classes=6)

    found = {}
    for name in ACQUISITIONS:
        for link in LINKS.get(name, ("plugin",)):
            seeded = torch.Generator().manual_seed(1)
            batch = lapal_ext.select_batch(
                model, pool, batch_size=8, acquisition=name, link=link, labelled=labelled, generator=seeded
            )
            found[f"{name} {link}"] = batch.indices.tolist()

    few = lapal_ext.select_batch(model, pool, batch_size=8, memory=4096)
    found["margin, logits in tiles"] = few.indices.tolist()
    few = lapal_ext.select_batch(model, pool, batch_size=8, labelled=labelled, memory=4096)
    found["uherding, no kernel values in memory"] = few.indices.tolist()

    selector = lapal_ext.SequentialSelector(model, pool)
    for _ in range(5):
        row = selector.ask()
        selector.tell(row, labels[40 + row])
        found.setdefault("one label at a time", []).append(int(row))

    # Called here, because updates call it only inside of ``absorb_labels``.
    inner = model.standardization.standardized(pool[:1])
    _, direction = lapal_ext.ops.rank_one_update(model.covariance[None], inner, torch.full((1,), 0.25))
    found["rank_one_update"] = [int(direction[0].abs().argmax())]

    batches = torch.stack([torch.randperm(len(pool), generator=draw)[:4] for _ in range(50)])
    guesses = selector.posterior.predict_proba(pool).argmax(dim=1)
    losses = lapal_ext.look_ahead(selector.posterior, pool, batches, guesses, eval_features=points)
    found["look_ahead"] = [int(losses.argmin())]
    losses = lapal_ext.expected_error_reduction(selector.posterior, pool, eval_features=points)
    found["expected_error_reduction"] = [int(losses.argmin())]
    return found


def picks_of_the_reference():
    """The same in a process that loads no kernels."""
    command = [sys.executable, __file__, "--picks"]
    environment = os.environ | {"LAPAL_EXT_BACKEND": "reference"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pure", action="store_true", help="expect no kernels")
    parser.add_argument("--picks", action="store_true", help="print the picks and nothing else")
    options = parser.parse_args()
    if options.picks:
        print(json.dumps(picks()))
        return

    info = lapal_ext.build_info()
    expected = "reference" if options.pure else "native"
    served = {name: lapal_ext.backend(name) for name in lapal_ext.ops.OPS}
    wrong = sorted(name for name, by in served.items() if by != expected)
    if wrong:
        sys.exit(f"expected {expected} ops, but these are not: {', '.join(wrong)} (reason: {info['reason'] or 'none'})")

    with OpsCalled() as called:
        found = picks()
    if called.names != set(served):
        sys.exit(f"these ops were never called: {', '.join(sorted(set(served) - called.names))}")
    reference = picks_of_the_reference()
    if found != reference:
        different = [f"{name}: {rows} and {reference[name]}" for name, rows in found.items() if rows != reference[name]]
        sys.exit("picks differ, native and reference: " + "; ".join(different))

    report = {
        "lapal_ext": lapal_ext.__version__,
        "file": lapal_ext.__file__,
        "torch": info["torch"],
        "instruction_set": info.get("instruction_set", "none"),
        "ops": len(served),
        "picks": sum(map(len, found.values())),
        "digest": hashlib.sha256(json.dumps(found).encode()).hexdigest()[:8],
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
