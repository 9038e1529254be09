// row_statistics: all statistics of each row of logits that a denoising step needs, from one pass.
//
// One threadgroup per row. The row has CHUNKS chunks of CHUNK tokens. Each simdgroup takes every SIMDGROUPS-th
// chunk and writes its softmax sums and argmax to threadgroup memory. The first simdgroup then combines the
// chunks, finds the one in which the cumulative mass passes the uniform, and reads that chunk again.
//
// in:  logits [R, V] bf16 | fp16 | fp32, uniforms [R], temperature, softcap (scalars)
// out: argmax, sample [R] int32; entropy, log_normalizer [R] fp32; invalid [R] bool; chunk_peaks [R, CHUNKS] fp32
// template: bool SOFTCAP, int CHUNK, int CHUNKS, int SIMDGROUPS

constexpr uint NONE = 0xffffffff;
constexpr uint LANES = 32;
constexpr uint READS = 4; // consecutive tokens that a lane reads at a time

const uint row = threadgroup_position_in_grid.x;
const uint lane = thread_index_in_simdgroup;
const uint simdgroup = simdgroup_index_in_threadgroup;
const uint vocab = logits_shape[1];
const ulong begin = ulong(row) * vocab;

threadgroup float peaks[CHUNKS];
threadgroup float masses[CHUNKS];
threadgroup float moments[CHUNKS];
threadgroup uint argmaxes[CHUNKS];
threadgroup bool bad[SIMDGROUPS];

// --- stream the row ---------------------------------------------------------------------------------------

bool saw_bad = false; // NaN or +inf
for (uint chunk = simdgroup; chunk < CHUNKS; chunk += SIMDGROUPS) {
  OnlineSoftmax seen;
  uint best = NONE;
  for (uint offset = READS * lane; offset < CHUNK; offset += READS * LANES) {
    const uint first = chunk * CHUNK + offset;
    float x[READS];
    float largest = -INFINITY;
    for (uint k = 0; k < READS; k++) {
      const float logit = first + k < vocab ? float(logits[begin + first + k]) : -INFINITY;
      saw_bad |= !(logit < INFINITY);
      x[k] = processed_logit<SOFTCAP>(logit, softcap, temperature);
      if (x[k] > seen.peak && x[k] > largest) { // strict, so that the lowest id wins
        best = first + k;
      }
      largest = metal::max(largest, x[k]);
    }
    if (largest > seen.peak) {
      seen.move_to(largest);
    }
    for (uint k = 0; k < READS; k++) {
      seen.add(x[k]);
    }
  }

  const float peak = metal::simd_max(seen.peak);
  best = metal::simd_min(seen.peak == peak ? best : NONE);
  seen.move_to(peak);
  const float mass = metal::simd_sum(seen.mass);
  const float moment = metal::simd_sum(seen.moment);
  if (lane == 0) {
    peaks[chunk] = peak;
    masses[chunk] = mass;
    moments[chunk] = moment;
    argmaxes[chunk] = best;
    chunk_peaks[ulong(row) * CHUNKS + chunk] = peak;
  }
}
saw_bad = metal::simd_any(saw_bad);
if (lane == 0) {
  bad[simdgroup] = saw_bad;
}
metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);
if (simdgroup > 0) {
  return;
}

// --- combine the chunks: each lane takes a run of consecutive chunks, which keeps their order ------------------

constexpr uint RUN = (CHUNKS + LANES - 1) / LANES;
const uint run_begin = metal::min(lane * RUN, uint(CHUNKS));
const uint run_end = metal::min(run_begin + RUN, uint(CHUNKS));

float peak = -INFINITY;
for (uint chunk = run_begin; chunk < run_end; chunk++) {
  peak = metal::max(peak, float(peaks[chunk]));
}
peak = metal::simd_max(peak);

float run_mass = 0;
float run_moment = 0;
uint best = NONE;
for (uint chunk = run_begin; chunk < run_end; chunk++) {
  OnlineSoftmax seen;
  seen.peak = peaks[chunk];
  seen.mass = masses[chunk];
  seen.moment = moments[chunk];
  if (seen.peak == peak && best == NONE) {
    best = argmaxes[chunk];
  }
  seen.move_to(peak);
  masses[chunk] = seen.mass; // now relative to the row's peak; only this lane reads it
  run_mass += seen.mass;
  run_moment += seen.moment;
}
best = metal::simd_min(best);
const float mass = metal::simd_sum(run_mass);
const float moment = metal::simd_sum(run_moment);
const float log_mass = metal::precise::log(mass);

bool row_bad = false;
for (uint i = 0; i < SIMDGROUPS; i++) {
  row_bad |= bad[i];
}
row_bad |= !metal::isfinite(peak); // no finite logit, or overflow in the division by the temperature
if (row_bad) {
  if (lane == 0) {
    argmax[row] = 0;
    sample[row] = 0;
    entropy[row] = NAN;
    log_normalizer[row] = NAN;
    invalid[row] = true;
  }
  return;
}

// --- the sample: the first chunk whose end passes the target, and in it the first token ------------------------
// Only chunks and tokens with mass count. If rounding puts the target above every sum, the last of them is chosen.

const float target = uniforms[row] * mass;
float before = metal::simd_prefix_exclusive_sum(run_mass);
uint chunk_found = NONE;
uint chunk_last = 0;
float before_found = 0;
float before_last = 0;
for (uint chunk = run_begin; chunk < run_end; chunk++) {
  const float own = masses[chunk];
  if (own > 0) {
    chunk_last = chunk;
    before_last = before;
    if (chunk_found == NONE && before + own > target) {
      chunk_found = chunk;
      before_found = before;
    }
  }
  before += own;
}
uint chosen = metal::simd_min(chunk_found);
if (chosen == NONE) {
  chosen = metal::simd_max(chunk_last);
  before_found = before_last;
}
before = metal::simd_shuffle(before_found, ushort(chosen / RUN));

uint id_found = NONE;
uint id_last = 0;
for (uint offset = READS * lane; offset < CHUNK; offset += READS * LANES) {
  const uint first = chosen * CHUNK + offset;
  float e[READS];
  float sum = 0;
  for (uint k = 0; k < READS; k++) {
    const float logit = first + k < vocab ? float(logits[begin + first + k]) : -INFINITY;
    e[k] = metal::precise::exp(processed_logit<SOFTCAP>(logit, softcap, temperature) - peak);
    sum += e[k];
  }
  float reached = before + metal::simd_prefix_exclusive_sum(sum);
  for (uint k = 0; k < READS; k++) {
    reached += e[k];
    if (e[k] > 0) {
      id_last = first + k;
      id_found = id_found == NONE && reached > target ? first + k : id_found;
    }
  }
  before += metal::simd_sum(sum);
}
const uint found = metal::simd_min(id_found);
const uint last = metal::simd_max(id_last);
if (lane == 0) {
  argmax[row] = int(best);
  sample[row] = int(found == NONE ? last : found);
  entropy[row] = log_mass - moment / mass;
  log_normalizer[row] = peak + log_mass;
  invalid[row] = false;
}
