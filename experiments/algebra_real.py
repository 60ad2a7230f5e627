"""Algebra, collusion, seed search, output privacy, inversion and a judge on real faces."""

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import algebra_summary
import jax
import jax.numpy as jnp
import numpy as np
import report

from facemix_jax import _runtime, attacks, models, runs
from facemix_jax._types import HostArray
from facemix_jax.attacks import algebraic, collusion, groups, inversion, judge, output, weak_keys
from facemix_jax.attacks.base import by_group, truth_by_group


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Attacks a trained FaceMix network on test images of CelebA.

    Command: ``python experiments/algebra_real.py --workdir WORKDIR``, where WORKDIR holds a
    network of ``facemix train`` on CelebA with the defence facemix. Shuffled mixtures, grouping
    granted. Without the extra ``judge`` the judge's part is left out.

    Run time: about 4 minutes on two CPU cores for the network below.

    Expected for ResNet-18 at width 16, 109x89, cut 1, M = 8: members lie in the row space to
    within 1e-7, other pictures are 0.4 away or more; each known picture gives its column, and
    with all but one known the last one is exact; matched |correlation| with 7 / 4 / 1 of 8 rows
    .93 / .80 / .67; balanced accuracy read from the responses within 1 point of the owner's.

    Attributes:
        workdir: of the trained network.
        data_dir: folder with the images; None for where training found them.
        num_groups: groups attacked.
        output_images: test images whose responses are read; whole groups.
        optimized: images inverted by optimisation.
        judged_pairs: pairs of the same person and of different ones for the judge's own accuracy.
        steps: of the decoder.
        seed: of secrets and attacks.
        output: JSON file.
    """

    workdir: Path
    data_dir: str | None = None
    num_groups: int = 16
    output_images: int = 2048
    optimized: int = 16
    judged_pairs: int = 150
    steps: int = 300
    seed: int = 0
    output: Path = Path(__file__).parent / "results" / "algebra_real.json"


def main(config: Config) -> None:
    """Runs the parts that the JSON file lacks, and writes each into it."""
    run = runs.load(config.workdir, data_dir=config.data_dir)
    target = attacks.Target(
        model=run.model, defense=run.defense, variables=run.variables, source=run.source
    )
    rows = attacks.recorded_rows(target, config.num_groups)
    rng_key = jax.random.key(config.seed)
    recording = attacks.record(target, rows, rng_key=jax.random.fold_in(rng_key, 0), shuffled=True)
    effort = attacks.AttackConfig(num_groups=config.num_groups, steps=config.steps)
    cells = report.Cells(
        config.output,
        config,
        images={"data": report.images_of(run.config.data)},
        summarize=algebra_summary.summarize,
    )
    which = report.run_hash(run)

    def part(name: str, measure: Callable[[], Any]) -> None:
        if not cells.has(which, part=name):
            began = time.perf_counter()
            found = measure()
            seconds = round(time.perf_counter() - began, 1)
            cells.add({"part": name, "found": found, "run_hash": which, "seconds": seconds})

    def figures(attack: attacks.Attack) -> Any:
        return report.figures(attack.run(target, recording, rng_key, effort).figures)

    about = {
        "dataset": f"{run.source.name} test split, first {len(rows)} images",
        "run": {**dataclasses.asdict(run.config), "data": None, "steps": run.step},
    }
    part("about", lambda: about)
    for attack in (
        algebraic.SPAN,
        algebraic.REUSED_KEY,
        algebraic.INTERSECTION,
        weak_keys.WEAK_RANDOMNESS,
    ):
        part(attack.name, functools.partial(figures, attack))
    part("certificates", lambda: certificates(target, recording))
    part("known_plaintext", lambda: known_plaintext(recording))
    part("collusion", lambda: collusion_curve(recording))
    part("seed_search", lambda: seed_search(target, recording))
    part("output", lambda: output_privacy(target, config.output_images, rng_key))
    part("inversion", functools.partial(figures, inversion.INVERSION))
    part("inversion_by_optimization", lambda: optimized(target, recording, config.optimized))
    if judge.JUDGE.unsuitable(target) is None:
        recogniser = judge.dlib_recogniser()
        part("judge_verification", lambda: verification(target, recogniser, config.judged_pairs))

        def judged(at: attacks.Target) -> Any:
            seen = attacks.record(at, rows, rng_key=jax.random.fold_in(rng_key, 1))
            found, _ = judge.judge_recording(at, seen, recogniser, rng_key=rng_key, config=effort)
            return report.figures(found.figures)

        part("judge_cut_0", lambda: judged(at_the_image(target)))
        part(f"judge_cut_{target.model.spec.cut}", lambda: judged(target))
    cells.save()


def certificates(target: attacks.Target, recording: attacks.Recording) -> dict[str, Any]:
    """Residuals of members, of altered members, of other pictures; Gram of right and wrong ones."""
    mixtures = by_group(recording.view.mixtures, recording)
    members = truth_by_group(groups.activations(target, recording.images), recording)
    brighter = np.clip(recording.images.astype(np.int16) + 2, 0, 255).astype(np.uint8)
    altered = truth_by_group(groups.activations(target, brighter), recording)
    others = groups.auxiliary_activations(target, 1000)
    wrong = np.array(members)
    wrong[:, 0] = others[: len(wrong)]
    pairs = list(zip(mixtures, members, altered, wrong, strict=True))
    return {
        "span_residual_members_largest": max(
            float(algebraic.span_residuals(c, x).max()) for c, x, _, _ in pairs
        ),
        "span_residual_members_two_grey_levels_brighter_largest": max(
            float(algebraic.span_residuals(c, a).max()) for c, _, a, _ in pairs
        ),
        "span_residual_others_smallest": min(
            float(algebraic.span_residuals(c, others).min()) for c, _, _, _ in pairs
        ),
        "others": len(others) * len(pairs),
        "gram_residual_group_largest": max(algebraic.gram_residual(c, x) for c, x, _, _ in pairs),
        "gram_residual_one_member_wrong_smallest": min(
            algebraic.gram_residual(c, w) for c, _, _, w in pairs
        ),
    }


def known_plaintext(recording: attacks.Recording) -> list[dict[str, Any]]:
    """|Correlation| of the unknown pictures, with and without separation of what is left."""
    mixtures = by_group(recording.view.mixtures, recording)
    truth = truth_by_group(recording.activations, recording)
    curve = []
    for number in range(1, mixtures.shape[1]):
        pairs = list(zip(mixtures, truth, strict=True))
        columns = [algebraic.known_columns(c, x[:number]) for c, x in pairs]
        rest = [algebraic.without_known(c, a) for (c, _), a in zip(pairs, columns, strict=True)]
        unknown = truth[:, number:]
        found = algebraic.recover_unknown(
            mixtures, truth[:, :number], rng_key=jax.random.key(number)
        )
        curve.append(
            {
                "known": number,
                "algebra_alone": round(collusion.mean_matched(rest, unknown), 4),
                "with_separation": round(collusion.mean_matched(found, unknown), 4),
                "no_attack": round(collusion.mean_matched(mixtures, unknown), 4),
            }
        )
    return curve


def collusion_curve(recording: attacks.Recording) -> list[dict[str, Any]]:
    """Matched |correlation| for every number of rows held."""
    mixtures = by_group(recording.view.mixtures, recording)
    truth = truth_by_group(recording.activations, recording)
    curve = []
    for rows in range(1, mixtures.shape[1] + 1):
        found = collusion.separate_rows(mixtures, rows, rng_key=jax.random.key(rows))
        curve.append(
            {
                "rows": rows,
                "attacker": round(collusion.mean_matched(found, truth), 4),
                "no_attack": round(collusion.mean_matched(mixtures[:, :rows], truth), 4),
            }
        )
    return curve


def seed_search(target: attacks.Target, recording: attacks.Recording) -> dict[str, Any]:
    """Speed for one request of one group, and how clearly right and wrong seeds differ."""
    group_size = target.defense.group_size
    images = recording.activations[:group_size]
    secret = target.defense.init(jax.random.key(3000), group_size, True)
    sent = target.defense.protect(secret, images)[None]
    weak_keys.search_seeds(target.defense, sent, num_seeds=4096)  # compiles
    began = time.perf_counter()
    inside = weak_keys.search_seeds(target.defense, sent, num_seeds=1 << 14)
    speed = (1 << 14) / (time.perf_counter() - began)
    outside = weak_keys.search_seeds(target.defense, sent, first_seed=1 << 14, num_seeds=1 << 14)
    return {
        "seeds_tried": 1 << 14,
        "found": bool(inside.found[0]) and int(inside.seed[0]) == 3000,
        "outstanding_inside": round(float(inside.outstanding[0]), 3),
        "found_outside": bool(outside.found[0]),
        "outstanding_outside": round(float(outside.outstanding[0]), 3),
        "seeds_per_second": round(speed),
        "hours_for_2_to_32": round((1 << 32) / speed / 3600, 1),
    }


def output_privacy(target: attacks.Target, count: int, rng_key: Any) -> dict[str, Any]:
    """Balanced accuracy over many requests of 16 groups each."""
    rows = target.source.splits[target.split][:count]
    size = 16 * target.defense.group_size
    answers: list[tuple[HostArray, ...]] = []
    for index, start in enumerate(range(0, len(rows) // size * size, size)):
        record_key, attack_key = jax.random.split(jax.random.fold_in(rng_key, 100 + index))
        recording = attacks.record(
            target, rows[start : start + size], rng_key=record_key, shuffled=True
        )
        attacker, floor = output.read_responses(target, recording, rng_key=attack_key)
        answers.append((attacker, floor, np.asarray(recording.owner_logits), recording.attributes))
    attacker, floor, owner, labels = (np.concatenate(x) for x in zip(*answers, strict=True))
    return {
        "images": len(labels),
        "attacker": round(output.balanced(attacker, labels), 4),
        "floor": round(output.balanced(floor, labels), 4),
        "owner": round(output.balanced(owner, labels), 4),
        "same_answer_as_owner": round(float((attacker.argmax(-1) == owner.argmax(-1)).mean()), 4),
    }


def optimized(
    target: attacks.Target, recording: attacks.Recording, count: int
) -> dict[str, dict[str, float]]:
    """Image scores of inversion by optimisation, of the attacker and of the owner."""
    truth = truth_by_group(recording.activations, recording)
    sources = groups.unmix(target, recording, rng_key=jax.random.key(0)).sources
    found = groups.in_order(sources, groups.match(sources, truth))
    images = (recording.images[:count] / np.float32(255)).astype(np.float32)
    scores = {}
    for who, rows in (("attacker", found), ("owner", np.asarray(recording.owner_activations))):
        made = inversion.invert_by_optimization(
            target.model, target.variables["pre"], jnp.asarray(rows[:count])
        )
        scores[who] = {
            name: round(value, 4) for name, value in inversion.image_scores(made, images).items()
        }
    return scores


def at_the_image(target: attacks.Target) -> attacks.Target:
    """The same defence on the images themselves; main's weights do not matter there."""
    model = models.build(
        models.ModelConfig(cut=0, width=8),
        image_size=target.source.image_size,
        num_attributes=len(target.source.attribute_names),
    )
    return dataclasses.replace(target, model=model, variables=model.init(jax.random.key(0)))


def verification(
    target: attacks.Target, recogniser: judge.Recogniser, count: int
) -> dict[str, Any]:
    """The judge's own accuracy: two images of one person against images of two people."""
    rows = target.source.splits[target.split]
    people = target.source.identities[rows]
    pairs = [rows[people == person][:2] for person in np.unique(people)]
    chosen = np.array([pair for pair in pairs if len(pair) == 2][:count])
    first, second = (
        recogniser(images, images)
        for images in (np.asarray(target.source.images(c)) for c in chosen.T)
    )
    same = np.linalg.norm(first - second, axis=1)
    other = np.linalg.norm(first - np.roll(second, 1, axis=0), axis=1)
    accept, refuse = (same < judge.THRESHOLD).mean(), (other >= judge.THRESHOLD).mean()
    return {
        "pairs_of_each_kind": len(chosen),
        "accuracy": round(float(accept + refuse) / 2, 4),
        "same_person_accepted": round(float(accept), 4),
        "other_person_refused": round(float(refuse), 4),
    }


if __name__ == "__main__":
    _runtime.configure()
    report.script(main, Config)
