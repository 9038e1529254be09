// A running softmax: the largest x (peak), the sum of e^(x - peak) (mass), and the sum of e^(x - peak) (x - peak)
// (moment). Mass and moment give the entropy, log(mass) - moment / mass, without reading the logits again.
struct OnlineSoftmax {
  float peak;
  float mass;
  float moment;

  OnlineSoftmax() : peak(-INFINITY), mass(0), moment(0) {}

  // The same sums relative to a peak at least as large. An empty softmax stays empty: -inf - -inf is NaN.
  void move_to(float new_peak) {
    if (peak == -INFINITY) {
      peak = new_peak;
      return;
    }
    float shift = peak - new_peak;
    float scale = metal::precise::exp(shift);
    moment = scale * (moment + mass * shift);
    mass *= scale;
    peak = new_peak;
  }

  // Adds x, which is not above the peak. -inf adds nothing: 0 * -inf is NaN.
  void add(float x) {
    if (x > -INFINITY) {
      float e = metal::precise::exp(x - peak);
      mass += e;
      moment += e * (x - peak);
    }
  }
};
