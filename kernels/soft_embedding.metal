// soft_embedding: the expected embedding of each row, from the few tokens with nearly all of its probability.
//
// One threadgroup per row. It first lists, in ascending order, the tokens with at least probability
// e^log_threshold (at most LIMIT). It reads only chunks whose peak reaches this. If the dropped mass is within
// the tolerance, it then sums their embedding rows from the table. Otherwise it writes zeros, and the caller,
// who reads dropped_mass, takes the dense product.
//
// in:  logits [R, V] bf16 | fp16 | fp32, log_normalizer [R], chunk_peaks [R, CHUNKS] fp32,
//      table [V, D] or packed uint32 [V, D * BITS / 32], scales, biases [V, D / GROUP] (any array when BITS is 0),
//      temperature, softcap, log_threshold, tolerance (scalars)
// out: embedding [R, D] of type T, dropped_mass [R] fp32
// template: T the model's type; bool SOFTCAP; int CHUNK, CHUNKS, SIMDGROUPS, LIMIT, D, BITS (4, 8; 0: not quantized), GROUP

constexpr uint LANES = 32;
constexpr uint THREADS = LANES * SIMDGROUPS;
constexpr uint PACK = BITS ? 32 / BITS : 4; // embedding values that a thread sums at a time
constexpr uint PACKS = D / PACK;

const uint row = threadgroup_position_in_grid.x;
const uint worker = thread_position_in_threadgroup.x;
const uint lane = thread_index_in_simdgroup;
const uint simdgroup = simdgroup_index_in_threadgroup;
const uint vocab = logits_shape[1];
const ulong begin = ulong(row) * vocab;
const float normalizer = log_normalizer[row];

threadgroup uint ids[LIMIT];
threadgroup float weights[LIMIT];
threadgroup uint found[SIMDGROUPS];
threadgroup float kept_masses[SIMDGROUPS];
threadgroup float weight_sums[SIMDGROUPS];

// --- list the likely tokens ---------------------------------------------------------------------------------

uint count = 0;
uint likely = 0;
float kept_mass = 0;
float weight_sum = 0;
for (uint i = 0; i < CHUNKS && count < LIMIT; i++) {
  // Each lane checks one of the next 32 chunks. The result is the same in every simdgroup.
  if (i % LANES == 0) {
    const uint ahead = i + lane;
    likely = ahead < CHUNKS && chunk_peaks[ulong(row) * CHUNKS + ahead] - normalizer >= log_threshold;
  }
  if (!metal::simd_shuffle(likely, ushort(i % LANES))) {
    continue;
  }
  const uint chunk_end = metal::min((i + 1) * CHUNK, vocab);
  for (uint start = i * CHUNK; start < chunk_end; start += THREADS) {
    const uint id = start + worker;
    const float logit = id < chunk_end ? float(logits[begin + id]) : -INFINITY;
    const float x = processed_logit<SOFTCAP>(logit, softcap, temperature);
    const bool keep = x - normalizer >= log_threshold;
    uint slot = count + metal::simd_prefix_exclusive_sum(uint(keep));
    const uint own = metal::simd_sum(uint(keep));
    if (lane == 0) {
      found[simdgroup] = own;
    }
    metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);
    for (uint other = 0; other < SIMDGROUPS; other++) {
      const uint theirs = found[other];
      slot += other < simdgroup ? theirs : 0;
      count += theirs;
    }
    if (keep && slot < LIMIT) {
      // The reference rounds processed logits to the model's type before its softmax.
      const float weight = metal::precise::exp(float(T(x)) - normalizer);
      ids[slot] = id;
      weights[slot] = weight;
      weight_sum += weight;
      kept_mass += metal::precise::exp(x - normalizer);
    }
    metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);
  }
}
count = metal::min(count, uint(LIMIT));

kept_mass = metal::simd_sum(kept_mass);
weight_sum = metal::simd_sum(weight_sum);
if (lane == 0) {
  kept_masses[simdgroup] = kept_mass;
  weight_sums[simdgroup] = weight_sum;
}
metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);
kept_mass = 0;
weight_sum = 0;
for (uint i = 0; i < SIMDGROUPS; i++) {
  kept_mass += kept_masses[i];
  weight_sum += weight_sums[i];
}
const float missing = metal::max(1 - kept_mass, 0.0f);
if (worker == 0) {
  dropped_mass[row] = missing;
}
const bool covered = missing <= tolerance;

// --- sum their embeddings ---------------------------------------------------------------------------------

// Rounding the logits changed their sum. The dropped mass counts as if it were not rounded.
const float scale = 1 / (weight_sum + missing);
for (uint pack = worker; pack < PACKS; pack += THREADS) {
  float sums[PACK];
  for (uint k = 0; k < PACK; k++) {
    sums[k] = 0;
  }
  for (uint i = 0; covered && i < count; i++) {
    const ulong id = ids[i];
    const float weight = weights[i];
    if (BITS) {
      const uint packed = uint(table[id * PACKS + pack]);
      const ulong group = id * (D / GROUP) + pack * PACK / GROUP;
      const float step = weight * float(scales[group]);
      const float bias = weight * float(biases[group]);
      for (uint k = 0; k < PACK; k++) {
        sums[k] += step * float((packed >> (k * BITS)) & ((1u << BITS) - 1)) + bias;
      }
    } else {
      for (uint k = 0; k < PACK; k++) {
        sums[k] += weight * float(table[id * D + pack * PACK + k]);
      }
    }
  }
  for (uint k = 0; k < PACK; k++) {
    embedding[ulong(row) * D + pack * PACK + k] = T(covered ? sums[k] * scale : 0.0f);
  }
}
