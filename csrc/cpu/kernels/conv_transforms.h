// Winograd's transforms of F(4, 3) along one side, for a vector of channels at once: the points are 0, +-p, +-q and
// infinity.
#pragma once

#include "vec.h"

namespace dove::cpu::DOVE_ISA {
namespace {

constexpr float kP = 0.625f, kQ = 1.5f;
constexpr float kP2 = kP * kP, kQ2 = kQ * kQ;

// Six inputs to their values at the six points.
inline void transform_input(const Vec d[6], Vec v[6]) {
  const Vec even_p = d[4] - kQ2 * d[2], odd_p = kP * (d[3] - kQ2 * d[1]);
  const Vec even_q = d[4] - kP2 * d[2], odd_q = kQ * (d[3] - kP2 * d[1]);
  v[0] = kP2 * kQ2 * d[0] - (kP2 + kQ2) * d[2] + d[4];
  v[1] = even_p + odd_p;
  v[2] = even_p - odd_p;
  v[3] = even_q + odd_q;
  v[4] = even_q - odd_q;
  v[5] = kP2 * kQ2 * d[1] - (kP2 + kQ2) * d[3] + d[5];
}

// Products at the six points to four outputs.
inline void transform_output(const Vec m[6], Vec y[4]) {
  const Vec even_p = m[1] + m[2], odd_p = m[1] - m[2];
  const Vec even_q = m[3] + m[4], odd_q = m[3] - m[4];
  y[0] = m[0] + even_p + even_q;
  y[1] = kP * odd_p + kQ * odd_q;
  y[2] = kP2 * even_p + kQ2 * even_q;
  y[3] = (kP * kP2) * odd_p + (kQ * kQ2) * odd_q + m[5];
}

// Three weights to their values at the six points, divided by what makes the products come out right.
inline void transform_weight(const double w[3], double u[6]) {
  constexpr double p = kP, q = kQ, p2 = p * p, q2 = q * q;
  const double at_p = 1 / (2 * p2 * (p2 - q2)), at_q = 1 / (2 * q2 * (q2 - p2));
  u[0] = w[0] / (p2 * q2);
  u[1] = at_p * (w[0] + p * w[1] + p2 * w[2]);
  u[2] = at_p * (w[0] - p * w[1] + p2 * w[2]);
  u[3] = at_q * (w[0] + q * w[1] + q2 * w[2]);
  u[4] = at_q * (w[0] - q * w[1] + q2 * w[2]);
  u[5] = w[2];
}

}  // namespace
}  // namespace dove::cpu::DOVE_ISA
