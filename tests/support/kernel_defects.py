"""Defects that tests of kernels must catch: a piece of a kernel's source, and a mistake that replaces it."""

from collections.abc import Callable

BARRIER = "metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);"

DEFECTS: dict[str, dict[str, tuple[str, str]]] = {
    "row_statistics": {
        "no barrier": (BARRIER, ""),
        "one token too many": ("first + k < vocab", "first + k <= vocab"),
        "one token too few": ("first + k < vocab", "first + k + 1 < vocab"),
        "simd width 16": ("LANES = 32", "LANES = 16"),
        "simd width 64": ("LANES = 32", "LANES = 64"),
        "tie goes to the lane's last": (
            "x[k] > seen.peak && x[k] > largest",
            "x[k] >= seen.peak && x[k] >= largest",
        ),
        "tie goes to the last lane": (
            "simd_min(seen.peak == peak ? best : NONE)",
            "simd_max(seen.peak == peak && best != NONE ? best : 0)",
        ),
        "tie goes to the last run": (
            "best = metal::simd_min(best);",
            "best = metal::simd_max(best == NONE ? 0 : best);",
        ),
        "tie goes to the run's last chunk": ("seen.peak == peak && best == NONE", "seen.peak == peak"),
        "unwritten normalizer": ("log_normalizer[row] = peak + log_mass;", ""),
        "unwritten chunk peaks": ("chunk_peaks[ulong(row) * CHUNKS + chunk] = peak;", ""),
        "sums not moved to the new peak": ("mass *= scale;", ""),
        "chunks not moved to the row's peak": ("seen.move_to(peak);\n  masses", "masses"),
        "moment not moved": ("moment = scale * (moment + mass * shift);", "moment *= scale;"),
        "temperature forgotten": ("return logit / temperature;", "return logit;"),
        "softcap lifts -inf": ("SOFTCAP && logit > -INFINITY", "SOFTCAP"),
        "the sample's chunk starts at 0": ("metal::simd_shuffle(before_found, ushort(chosen / RUN))", "0"),
        "a target that is just reached": ("reached > target", "reached >= target"),
        "samples without mass": ("if (e[k] > 0) {", "{"),
        "+inf passes": ("saw_bad |= !(logit < INFINITY);", "saw_bad |= logit != logit;"),
        "nan passes": ("saw_bad |= !(logit < INFINITY);", "saw_bad |= logit == INFINITY;"),
    },
    "accept_and_renoise": {
        "no barrier": (BARRIER, ""),
        "one position too many": ("other < C;", "other <= C;"),
        "one position too few": ("other < C;", "other + 1 < C;"),
        "first simdgroup only": ("i < SIMDGROUPS", "i < 1"),
        "tie goes to the highest": ("other < position", "other > position"),
        "bound not reached": ("before <= entropy_bound", "before < entropy_bound"),
        "pins lost from the budget": ("is_free = inside && pin < 0", "is_free = inside"),
        "pins lost from the canvas": ("= pin >= 0 ? pin : frozen ? canvas", "= frozen ? canvas"),
        "pins lost from the argmax": ("guess = pin >= 0 ? pin : frozen", "guess = frozen"),
        "pinned ones change the argmax": ("changed = is_free && guess", "changed = argmaxes[index]"),
        "done rows move on": ("frozen = done[row]", "frozen = false"),
        "threads beyond the canvas write": ("if (inside) {\n  float before", "{\n  float before"),
        "mean at the threshold": ("mean < confidence_threshold", "mean <= confidence_threshold"),
        "unwritten flag": ("row_invalid[row] = any_bad;", ""),
        "flag of the first position only": ("invalid[index])", "invalid[index] && position == 0)"),
    },
    "soft_embedding": {
        "no barrier before the slots": (f"{BARRIER}\n    for (uint other", "for (uint other"),
        "no barrier after the slots": (f"{BARRIER}\n  }}\n}}", "}\n}"),
        "no barrier before the totals": (f"{BARRIER}\nkept_mass = 0;", "kept_mass = 0;"),
        "one token too many": ("id < chunk_end", "id <= chunk_end"),
        "one slot too many": ("slot < LIMIT", "slot <= LIMIT"),
        "slots of the first simdgroup": ("slot += other < simdgroup ? theirs : 0;", ""),
        "likely chunks skipped": ("ahead] - normalizer >= log_threshold", "ahead] - normalizer >= -0.5f"),
        "looks ahead once only": ("const uint ahead = i + lane;", "const uint ahead = lane;"),
        "first packs only": (
            "pack < PACKS; pack += THREADS",
            "pack < metal::min(PACKS, THREADS); pack += THREADS",
        ),
        "threshold off by 0.2 nats": (
            "x - normalizer >= log_threshold",
            "x - normalizer >= log_threshold + 0.2f",
        ),
        "group of the wrong pack": ("pack * PACK / GROUP", "pack / GROUP"),
        "nibbles in the wrong order": ("packed >> (k * BITS)", "packed >> (32 - BITS - k * BITS)"),
        "bias forgotten": ("+ bias;", ";"),
        "what was left out is not reported": ("dropped_mass[row] = missing;", "dropped_mass[row] = 0;"),
        "unwritten dropped_mass": ("dropped_mass[row] = missing;", ""),
        "rows not covered are summed": ("covered = missing <= tolerance", "covered = true"),
        "logits not rounded": ("float(T(x))", "x"),
        "shares not renormalised after rounding": ("1 / (weight_sum + missing)", "1"),
    },
}

PLANTED = [(kernel, defect) for kernel, defects in DEFECTS.items() for defect in defects]


def planted(kernel: str, defect: str) -> dict[str, Callable[[str], str]]:
    """Return `edits` for `plug_in_emulator` that plant this defect in the kernel's source."""
    old, new = DEFECTS[kernel][defect]
    return {kernel: lambda source: source.replace(old, new)}
