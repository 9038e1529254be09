// The logit that the sampler uses: softcapped, then divided by the temperature, in fp32. The order of operations
// is the reference's. -inf means "never" and stays -inf, although the softcap alone would raise it to -softcap.
template <bool SOFTCAP>
inline float processed_logit(float logit, float softcap, float temperature) {
  if (SOFTCAP && logit > -INFINITY) {
    logit = softcap * metal::precise::tanh(logit / softcap);
  }
  return logit / temperature;
}
