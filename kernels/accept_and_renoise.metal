// accept_and_renoise: choose the positions that keep their token, renoise the others, and test if the row is done.
//
// One threadgroup per row, one thread per position. A position is accepted if the entropies of all positions
// before it in ascending order (ties: the lower position first) sum to at most the bound. Each thread sums
// them from threadgroup memory. At C <= 1024 that takes a few microseconds and needs no sorting network.
//
// in:  entropies [B, C] fp32; samples, argmaxes, noise, pins [B, C] int32 (pin -1: free); invalid [B, C] bool;
//      from the previous step: canvas, argmax [B, C], stable_steps, mean_entropy, done [B];
//      entropy_bound, confidence_threshold fp32, stability_threshold int32 (scalars)
// out: next_canvas, next_argmax [B, C] int32, accepted [B, C] bool, next_stable_steps int32, next_mean_entropy fp32,
//      next_done, row_invalid bool [B]
// template: int C, int SIMDGROUPS

const uint row = threadgroup_position_in_grid.y;
const uint position = thread_position_in_threadgroup.x;
const uint index = row * C + position;
const bool inside = position < C;
const bool frozen = done[row];
const int pin = inside ? pins[index] : -1;
const bool is_free = inside && pin < 0;

threadgroup float keys[C];
threadgroup float entropy_sums[SIMDGROUPS];
threadgroup uint free_counts[SIMDGROUPS];
threadgroup bool changes[SIMDGROUPS];
threadgroup bool invalids[SIMDGROUPS];

const float own = is_free ? float(entropies[index]) : INFINITY; // pinned positions come after all others
if (inside) {
  keys[position] = own;
}

// --- the row's argmax, and the sums that its stop test needs --------------------------------------------------

int guess = 0;
bool changed = false;
if (inside) {
  guess = pin >= 0 ? pin : frozen ? argmax[index] : argmaxes[index];
  changed = is_free && guess != argmax[index];
  next_argmax[index] = guess;
}
const float entropy_sum = metal::simd_sum(is_free ? own : 0.0f);
const uint free_count = metal::simd_sum(uint(is_free));
changed = metal::simd_any(changed);
const bool bad = metal::simd_any(inside && !frozen && invalid[index]);
if (thread_index_in_simdgroup == 0) {
  entropy_sums[simdgroup_index_in_threadgroup] = entropy_sum;
  free_counts[simdgroup_index_in_threadgroup] = free_count;
  changes[simdgroup_index_in_threadgroup] = changed;
  invalids[simdgroup_index_in_threadgroup] = bad;
}
metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);

if (inside) {
  float before = 0;
  for (uint other = 0; other < C; other++) {
    const float key = keys[other];
    before += key < own || (key == own && other < position) ? key : 0;
  }
  const bool keep = pin >= 0 || before <= entropy_bound;
  accepted[index] = keep;
  next_canvas[index] = pin >= 0 ? pin : frozen ? canvas[index] : keep ? samples[index] : noise[index];
}

if (position == 0) {
  float sum = 0;
  uint count = 0;
  bool any_change = false;
  bool any_bad = false;
  for (uint i = 0; i < SIMDGROUPS; i++) {
    sum += entropy_sums[i];
    count += free_counts[i];
    any_change |= changes[i];
    any_bad |= invalids[i];
  }
  const int stable = frozen ? stable_steps[row] : any_change ? 0 : stable_steps[row] + 1;
  const float mean = frozen ? mean_entropy[row] : count > 0 ? sum / count : 0;
  next_stable_steps[row] = stable;
  next_mean_entropy[row] = mean;
  next_done[row] = frozen || (stable >= stability_threshold && mean < confidence_threshold);
  row_invalid[row] = any_bad;
}
