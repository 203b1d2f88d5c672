"""What a search leaves: records as JSON, policies as JSON, and a page."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qnas_jax.haq.costs import Goal
from qnas_jax.haq.rivals import Found
from qnas_jax.nn.trace import Trace
from qnas_jax.report import policies as page
from qnas_jax.run import artefacts
from qnas_jax.search import allocation
from qnas_jax.space import COSTS
from qnas_jax.stages import quantizers
from qnas_jax.stages.scoring import Evaluate


def records(found: Sequence[Found], reward: Evaluate, test: Evaluate) -> list[dict[str, Any]]:
    """Returns a record of each policy that was found.

    `accuracy` is that of the test images, after the final training; `reward_accuracy` is what the
    search saw.
    """
    bits = np.stack([one.bits for one in found])
    accuracy, seen = test(bits).accuracy, reward(bits).accuracy
    return [
        {
            "device": one.goal.device,
            "cost_name": one.goal.cost_name,
            "budget": one.goal.choices.budget,
            "budget_setting": float(one.goal.title),
            "method": one.method,
            "seed": one.seed,
            "accuracy": round(float(accuracy[number]), 4),
            "reward_accuracy": round(float(seen[number]), 4),
            "cost": float(allocation.costs_of(one.goal.choices.cost, one.bits)),
            "bits": one.bits.tolist(),
            "evaluations": one.evaluations,
            "seconds": one.seconds,
        }
        for number, one in enumerate(found)
    ]


def transfers(goals: Sequence[Goal], found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns what the agents' policies for one device cost on the others.

    Only devices with the same cost are compared, and budgets with the same title. Costs are means
    over the seeds.
    """
    by_goal = {goal[:3]: [] for goal in goals}
    for record in found:
        if record["method"] == "haq":
            title = f"{record['budget_setting']:g}"
            by_goal[record["device"], record["cost_name"], title].append(record["bits"])
    rows = []
    for own in goals:
        for other in goals:
            if own[1:3] == other[1:3] and by_goal[own[:3]]:
                policies = np.array(by_goal[own[:3]])
                costs = allocation.costs_of(other.choices.cost, policies)
                row = {"found_for": own.device, "on": other.device, "cost_name": own.cost_name}
                budget = float(own.title)
                rows.append({**row, "budget_setting": budget, "cost": float(np.mean(costs))})
    return rows


def policy_json(traced: Trace, bits: Sequence[Sequence[int]], quantizer: str) -> dict[str, Any]:
    """Returns a policy as its file has it.

    With shared weights, `w_bits` are the bits of each convolution's weights. Else `layers` are the
    convolutions with the bits of their weights and of what they read, and `units` all units with
    those of their weights and of their output, as `nn.with_policy` takes them.
    """
    values: list[Any] = np.asarray(bits).tolist()
    names = [conv.name for conv in traced.convs]
    if quantizer == "kmeans":
        w_bits = [w for w, _ in values]
        return {"quantizer": quantizer, "w_bits": dict(zip(names, w_bits, strict=True))}
    by_unit = quantizers.unit_policy(traced, np.asarray(bits))
    return {
        "quantizer": quantizer,
        "layers": dict(zip(names, values, strict=True)),
        "units": {name: [int(w), int(a)] for name, (w, a) in by_unit.items()},
    }


def write_results(
    workdir: pathlib.Path,
    begun: Any,
    stage: Any,
    found: Sequence[Found],
    original: float,
    reward: Evaluate,
    test: Evaluate,
    trained: Mapping[str, Any],
) -> dict[str, Any]:
    """Writes `haq/results.json`, the policies and the page; returns the results.

    Args:
      workdir: The folder of the run.
      begun: The run.
      stage: The stage of agents and rivals.
      found: What the methods found.
      original: Accuracy in float on the images of the rewards.
      reward: Scores policies as the search does.
      test: Scores policies on the test images.
      trained: The networks that were trained to the end, by name.
    """
    metric = begun.problem.task.metric
    held = records(found, reward, test)
    teacher = page.metrics_of(workdir / "teacher", metric)
    results = {
        "metric": metric.name,
        "quantizer": begun.config.haq.quantizer,
        "fp32": teacher["fp32"],
        "int8": teacher["quantized"],
        "reward_fp32": round(original, 4),
        "records": held,
        "transfers": transfers(begun.goals, held),
        "networks": {
            name: page.metrics_of(one.stage.folder, metric) for name, one in trained.items()
        },
        "seconds": {"network": begun.network.stage.seconds, "haq": round(stage.seconds, 1)},
        "seed": begun.config.seed,
    }
    for record in held:
        name = "-".join(
            (record["device"], record["cost_name"], f"{record['budget_setting']:g}",
             record["method"], str(record["seed"]))
        )  # fmt: skip
        path = workdir / "haq" / "policies" / f"{name}.json"
        artefacts.write_json(
            path, policy_json(begun.traced, record["bits"], begun.config.haq.quantizer)
        )
    artefacts.write_json(workdir / "haq" / "results.json", results)
    artefacts.write_json(workdir / "config.json", begun.config)
    page.write(workdir, metric.title, results, begun.traced.convs, begun.goals)
    return results


def as_text(results: Mapping[str, Any]) -> str:
    """The policies of a run, a line each, for a terminal."""
    lines = [
        f"{results['metric']} in float {results['fp32']:.2f}, INT8 {results['int8']:.2f}",
        f"{'device':12} {'cost':>16} {'budget':>10} {'method':>10}  seeds  "
        f"{results['metric']:>8}  spread  evaluations",
    ]
    for (device, name, bits, method), rows in page.grouped(results["records"]).items():
        scores = [row["accuracy"] for row in rows]
        cost = COSTS[name]
        spent = np.mean([row["cost"] for row in rows]) / cost.per_shown_unit
        tried = np.mean([row["evaluations"] for row in rows])
        lines.append(
            f"{device:12} {spent:10.4g} {cost.shown_unit:>5} {bits:>10g} {method:>10}  "
            f"{len(rows):5}  {np.mean(scores):8.2f}  {np.std(scores):6.2f}  {tried:11.0f}"
        )
    return "\n".join(lines)
