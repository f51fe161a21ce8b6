// The forward pass of a layer and the equations BP1 to BP4.
//
// Rows are samples, everything is contiguous, weights are (outputs, inputs). One thread: this is for layers that take
// some microseconds. The sums run over vectors of 64 bytes, blocked so that a loaded vector is used several times.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

namespace {

template <typename T, int BYTES>
struct Lanes {
  typedef T type __attribute__((vector_size(BYTES)));
};

// The sum over a vector, by halves.
template <typename T, int BYTES>
T sum_of(typename Lanes<T, BYTES>::type v) {
  if constexpr (BYTES == sizeof(T)) {
    return v[0];
  } else {
    typename Lanes<T, BYTES / 2>::type low, high;
    std::memcpy(&low, &v, BYTES / 2);
    std::memcpy(&high, reinterpret_cast<const char*>(&v) + BYTES / 2, BYTES / 2);
    return sum_of<T, BYTES / 2>(low + high);
  }
}

template <typename T>
struct Vector {
  using type = typename Lanes<T, 64>::type;
  static constexpr int64_t size = 64 / sizeof(T);

  static type load(const T* from) {
    type v;
    std::memcpy(&v, from, 64);
    return v;
  }
  static void store(T* to, type v) { std::memcpy(to, &v, 64); }
  static T sum(type v) { return sum_of<T, 64>(v); }

  // A row whose width is no multiple of size ends in a vector that laps over the one before: which of its numbers are
  // new. (A row of less than size has no vector.)
  using Mask = typename Lanes<std::conditional_t<sizeof(T) == 4, int32_t, int64_t>, 64>::type;
  static Mask last(int64_t width) {
    Mask mask;
    for (int64_t i = 0; i < size; ++i) mask[i] = i >= size - width % size ? -1 : 0;
    return mask;
  }
};

template <typename T>
struct Layer {
  int64_t inputs, outputs, activation;
  T *weight, *bias;                    // No bias: null.
  T *weight_velocity, *bias_velocity;  // No momentum: null. Where gradients are asked for, these.
};

// The codes of the activations (`code` in `activations.py`) and costs, which Python compares with its own.
#define ACTIVATIONS(CODE) CODE(sigmoid) CODE(tanh) CODE(relu) CODE(identity)
#define COSTS(CODE) CODE(quadratic) CODE(sigmoid_cross_entropy)
#define ENUMERATOR(name) name,
namespace activations {
enum : int64_t { ACTIVATIONS(ENUMERATOR) };
}
namespace costs {
enum : int64_t { COSTS(ENUMERATOR) };
}

// e^x for finite x as 2^n e^r with |r| ≤ ln(2)/2 and the Taylor polynomial of e^r, which the compiler turns into vectors.
template <typename T, typename Bits, int DEGREE, int MANTISSA, int LIMIT>
T exponential(T x) {
  x = std::min(std::max(x, T(-LIMIT)), T(LIMIT));  // in this order a NaN stays one
  const T n = std::nearbyint(x * T(1.4426950408889634)), r = x - n * T(0.6931471805599453);
  T p = 1;
  for (int i = DEGREE; i > 0; --i) p = 1 + p * r * (T(1) / i);
  const Bits power = (static_cast<Bits>(n) << MANTISSA);
  Bits bits;
  std::memcpy(&bits, &p, sizeof(T));
  bits += power;
  std::memcpy(&p, &bits, sizeof(T));
  return p;
}
inline float exponential(float x) { return exponential<float, int32_t, 7, 23, 87>(x); }
inline double exponential(double x) { return exponential<double, int64_t, 13, 52, 708>(x); }

template <typename T>
void activate(int64_t f, T* z, int64_t count) {
  if (f == activations::sigmoid)
    for (int64_t i = 0; i < count; ++i) z[i] = 1 / (1 + exponential(-z[i]));
  if (f == activations::tanh)
    for (int64_t i = 0; i < count; ++i) z[i] = std::tanh(z[i]);
  if (f == activations::relu)
    for (int64_t i = 0; i < count; ++i) z[i] = z[i] < 0 ? T(0) : z[i];
}

// x σ′(z) of a = σ(z).
template <typename T>
T times_derivative(int64_t f, T x, T a) {
  switch (f) {
    case activations::sigmoid: return x * (a * (1 - a));
    case activations::tanh: return x * (1 - a * a);
    case activations::relu: return a <= 0 ? T(0) : x;  // No product: as in torch, 0 where x is infinite, and x where a is NaN.
    default: return x;
  }
}

// out[n, j] = w[j] · x[n] for J neurons and S samples.
template <typename T, int J, int S>
void dot(const T* w, const T* const* x, int64_t inputs, int64_t outputs, T* out) {
  using Vec = Vector<T>;
  typename Vec::type sums[J][S] = {};
  int64_t k = 0;
  for (; k + Vec::size <= inputs; k += Vec::size) {
    typename Vec::type wk[J];
    for (int j = 0; j < J; ++j) wk[j] = Vec::load(w + j * inputs + k);
    for (int n = 0; n < S; ++n)
      for (int j = 0; j < J; ++j) sums[j][n] += wk[j] * Vec::load(x[n] + k);
  }
  if (k < inputs && inputs >= Vec::size) {
    const auto mask = Vec::last(inputs);
    const typename Vec::type zero = {};
    k = inputs - Vec::size;
    for (int n = 0; n < S; ++n) {
      const auto xn = mask ? Vec::load(x[n] + k) : zero;
      for (int j = 0; j < J; ++j) sums[j][n] += (mask ? Vec::load(w + j * inputs + k) : zero) * xn;
    }
    k = inputs;
  }
  for (int n = 0; n < S; ++n)
    for (int j = 0; j < J; ++j) {
      T sum = Vec::sum(sums[j][n]);
      for (int64_t i = k; i < inputs; ++i) sum += w[j * inputs + i] * x[n][i];
      out[n * outputs + j] = sum;
    }
}

template <typename T, int S>
void dot(const T* w, const T* const* x, int64_t inputs, int64_t outputs, T* out) {
  int64_t j = 0;
  for (; j + 2 <= outputs; j += 2) dot<T, 2, S>(w + j * inputs, x, inputs, outputs, out + j);
  for (; j < outputs; ++j) dot<T, 1, S>(w + j * inputs, x, inputs, outputs, out + j);
}

// w[j] = keep · w[j] + step · Σ_n delta[n, j] x[n] for J neurons and V neighbouring vectors of inputs from k on; where
// keep is 0, w is not read.
template <typename T, int J, int V>
void add_outer(
    T* w, const T* delta, const T* const* x, int64_t samples, int64_t inputs, int64_t outputs, int64_t k, T keep,
    T step, typename Vector<T>::Mask written) {
  using Vec = Vector<T>;
  typename Vec::type sums[J][V] = {};
  for (int64_t n = 0; n < samples; ++n)
    for (int v = 0; v < V; ++v) {
      const auto xn = Vec::load(x[n] + k + v * Vec::size);
      for (int j = 0; j < J; ++j) sums[j][v] += delta[n * outputs + j] * xn;
    }
  for (int j = 0; j < J; ++j)
    for (int v = 0; v < V; ++v) {
      T* to = w + j * inputs + k + v * Vec::size;
      const auto old = Vec::load(to);
      Vec::store(to, written ? (keep ? keep * old + step * sums[j][v] : step * sums[j][v]) : old);
    }
}

template <typename T, int J>
void add_outer(
    T* w, const T* delta, const T* const* x, int64_t samples, int64_t inputs, int64_t outputs, T keep, T step) {
  using Vec = Vector<T>;
  const typename Vec::Mask all = ~typename Vec::Mask{};
  const auto some = [&](auto vectors, int64_t k, typename Vec::Mask written) {
    add_outer<T, J, vectors>(w, delta, x, samples, inputs, outputs, k, keep, step, written);
  };
  int64_t k = 0;
  for (; k + 4 * Vec::size <= inputs; k += 4 * Vec::size) some(std::integral_constant<int, 4>{}, k, all);
  for (; k + Vec::size <= inputs; k += Vec::size) some(std::integral_constant<int, 1>{}, k, all);
  if (k < inputs && inputs >= Vec::size) {
    some(std::integral_constant<int, 1>{}, inputs - Vec::size, Vec::last(inputs));
    return;
  }
  for (; k < inputs; ++k)
    for (int j = 0; j < J; ++j) {
      T sum = 0;
      for (int64_t n = 0; n < samples; ++n) sum += delta[n * outputs + j] * x[n][k];
      T* to = w + j * inputs + k;
      *to = keep ? keep * *to + step * sum : step * sum;
    }
}

// BP4 and what is done with it: w = keep · w + step · Σ_n δ[n] x[n]ᵀ.
template <typename T>
void add_outer(
    T* w, const T* delta, const T* const* x, int64_t samples, int64_t inputs, int64_t outputs, T keep, T step) {
  int64_t j = 0;
  for (; j + 4 <= outputs; j += 4)
    add_outer<T, 4>(w + j * inputs, delta + j, x, samples, inputs, outputs, keep, step);
  for (; j < outputs; ++j) add_outer<T, 1>(w + j * inputs, delta + j, x, samples, inputs, outputs, keep, step);
}

// z^l = w^l a^{l-1} + b^l and a^l = σ(z^l).
template <typename T>
void feedforward(const Layer<T>& layer, const T* const* x, int64_t samples, T* a) {
  const int64_t inputs = layer.inputs, outputs = layer.outputs;
  int64_t n = 0;
  for (; n + 10 <= samples; n += 10) dot<T, 10>(layer.weight, x + n, inputs, outputs, a + n * outputs);
  for (; n + 4 <= samples; n += 4) dot<T, 4>(layer.weight, x + n, inputs, outputs, a + n * outputs);
  for (; n < samples; ++n) dot<T, 1>(layer.weight, x + n, inputs, outputs, a + n * outputs);
  if (layer.bias)
    for (n = 0; n < samples; ++n)
      for (int64_t j = 0; j < outputs; ++j) a[n * outputs + j] += layer.bias[j];
  activate(layer.activation, a, samples * outputs);
}

// out[n] = Σ_j delta[n, j] w[j] for S samples and V neighbouring vectors of inputs.
template <typename T, int S, int V>
void combine(const T* w, const T* delta, int64_t inputs, int64_t outputs, T* out) {
  using Vec = Vector<T>;
  typename Vec::type sums[S][V] = {};
  for (int64_t j = 0; j < outputs; ++j)
    for (int v = 0; v < V; ++v) {
      const auto wj = Vec::load(w + j * inputs + v * Vec::size);
      for (int n = 0; n < S; ++n) sums[n][v] += delta[n * outputs + j] * wj;
    }
  for (int n = 0; n < S; ++n)
    for (int v = 0; v < V; ++v) Vec::store(out + n * inputs + v * Vec::size, sums[n][v]);
}

template <typename T, int S>
void combine(const T* w, const T* delta, int64_t inputs, int64_t outputs, T* out) {
  using Vec = Vector<T>;
  int64_t k = 0;
  for (; k + 2 * Vec::size <= inputs; k += 2 * Vec::size) combine<T, S, 2>(w + k, delta, inputs, outputs, out + k);
  for (; k + Vec::size <= inputs; k += Vec::size) combine<T, S, 1>(w + k, delta, inputs, outputs, out + k);
  if (k < inputs && inputs >= Vec::size) {
    k = inputs - Vec::size;  // Some of these a second time.
    combine<T, S, 1>(w + k, delta, inputs, outputs, out + k);
    return;
  }
  for (; k < inputs; ++k)
    for (int n = 0; n < S; ++n) {
      T sum = 0;
      for (int64_t j = 0; j < outputs; ++j) sum += delta[n * outputs + j] * w[j * inputs + k];
      out[n * inputs + k] = sum;
    }
}

// The first half of BP2: ∂C/∂a^{l-1} = (w^l)ᵀ δ^l.
template <typename T>
void input_gradient(const T* w, const T* delta, int64_t samples, int64_t inputs, int64_t outputs, T* out) {
  int64_t n = 0;
  for (; n + 10 <= samples; n += 10) combine<T, 10>(w, delta + n * outputs, inputs, outputs, out + n * inputs);
  for (; n + 4 <= samples; n += 4) combine<T, 4>(w, delta + n * outputs, inputs, outputs, out + n * inputs);
  for (; n < samples; ++n) combine<T, 1>(w, delta + n * outputs, inputs, outputs, out + n * inputs);
}

// BP1 and the second half of BP2: δ^l = ∂C/∂a^l ⊙ σ′(z^l); a may be null where the activation is the identity.
template <typename T>
void output_error(int64_t activation, const T* grad, const T* a, int64_t count, T* delta) {
  for (int64_t i = 0; i < count; ++i) delta[i] = a ? times_derivative(activation, grad[i], a[i]) : grad[i];
}

// BP3: Σ_n δ[n]; of many samples by halves, or rounding errors would add up.
template <typename T>
void bias_gradient(const T* delta, int64_t samples, int64_t outputs, T* out) {
  if (samples > 64) {
    std::vector<T> second(outputs);
    const int64_t half = samples / 2;
    bias_gradient(delta, half, outputs, out);
    bias_gradient(delta + half * outputs, samples - half, outputs, second.data());
    for (int64_t j = 0; j < outputs; ++j) out[j] += second[j];
    return;
  }
  std::fill(out, out + outputs, T(0));
  for (int64_t n = 0; n < samples; ++n)
    for (int64_t j = 0; j < outputs; ++j) out[j] += delta[n * outputs + j];
}

}  // namespace
