// Mini-batches of stochastic gradient descent with no Python between them: the steps of `Network.update`, in its order.
//
// Rows are samples, everything is contiguous, weights are (outputs, inputs). One thread: this is for networks whose step
// takes some microseconds. The sums run over vectors of 64 bytes, blocked so that a loaded vector is used several times.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

template <typename T>
struct Vector {
  typedef T type __attribute__((vector_size(64)));
  static constexpr int64_t size = 64 / sizeof(T);

  static type load(const T* from) {
    type v;
    std::memcpy(&v, from, 64);
    return v;
  }
  static void store(T* to, type v) { std::memcpy(to, &v, 64); }
  static T sum(type v) {
    T s = 0;
    for (int64_t i = 0; i < size; ++i) s += v[i];
    return s;
  }
};

template <typename T>
struct Layer {
  int64_t inputs, outputs, activation;
  T *weight, *bias, *weight_velocity, *bias_velocity;  // The velocities are null without momentum.
};

enum Activation { SIGMOID, TANH, RELU, IDENTITY };

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
  if (f == SIGMOID)
    for (int64_t i = 0; i < count; ++i) z[i] = 1 / (1 + exponential(-z[i]));
  if (f == TANH)
    for (int64_t i = 0; i < count; ++i) z[i] = std::tanh(z[i]);
  if (f == RELU)
    for (int64_t i = 0; i < count; ++i) z[i] = z[i] < 0 ? T(0) : z[i];
}

template <typename T>
T derivative(int64_t f, T a) {
  switch (f) {
    case SIGMOID: return a * (1 - a);
    case TANH: return 1 - a * a;
    case RELU: return a > 0;
    default: return 1;
  }
}

// out[n] = w · x[n] for S samples.
template <typename T, int S>
void dot(const T* w, const T* const* x, int64_t inputs, T* out) {
  using V = Vector<T>;
  typename V::type sums[S] = {};
  int64_t k = 0;
  for (; k + V::size <= inputs; k += V::size) {
    const auto wk = V::load(w + k);
    for (int n = 0; n < S; ++n) sums[n] += wk * V::load(x[n] + k);
  }
  for (int n = 0; n < S; ++n) {
    out[n] = V::sum(sums[n]);
    for (int64_t i = k; i < inputs; ++i) out[n] += w[i] * x[n][i];
  }
}

// w = keep · w + step · Σ_n delta[n] x[n], for V neighbouring vectors of inputs from k on.
template <typename T, int V>
void add_outer(T* w, const T* delta, const T* const* x, int64_t samples, int64_t k, T keep, T step) {
  using Vec = Vector<T>;
  typename Vec::type sums[V] = {};
  for (int64_t n = 0; n < samples; ++n)
    for (int v = 0; v < V; ++v) sums[v] += delta[n] * Vec::load(x[n] + k + v * Vec::size);
  for (int v = 0; v < V; ++v) {
    T* to = w + k + v * Vec::size;
    Vec::store(to, keep * Vec::load(to) + step * sums[v]);
  }
}

template <typename T>
void add_outer(T* w, const T* delta, const T* const* x, int64_t samples, int64_t inputs, T keep, T step) {
  using Vec = Vector<T>;
  int64_t k = 0;
  for (; k + 4 * Vec::size <= inputs; k += 4 * Vec::size) add_outer<T, 4>(w, delta, x, samples, k, keep, step);
  for (; k + Vec::size <= inputs; k += Vec::size) add_outer<T, 1>(w, delta, x, samples, k, keep, step);
  for (; k < inputs; ++k) {
    T sum = 0;
    for (int64_t n = 0; n < samples; ++n) sum += delta[n] * x[n][k];
    w[k] = keep * w[k] + step * sum;
  }
}

// z^l = w^l a^{l-1} + b^l and a^l = σ(z^l).
template <typename T>
void feedforward(const Layer<T>& layer, const T* const* x, int64_t samples, T* a) {
  for (int64_t j = 0; j < layer.outputs; ++j) {
    const T* w = layer.weight + j * layer.inputs;
    for (int64_t n = 0; n < samples;) {
      T z[10];
      int64_t block = 1;
      if (n + 10 <= samples) dot<T, 10>(w, x + n, layer.inputs, z), block = 10;
      else if (n + 4 <= samples) dot<T, 4>(w, x + n, layer.inputs, z), block = 4;
      else dot<T, 1>(w, x + n, layer.inputs, z);
      for (int64_t i = 0; i < block; ++i)
        a[(n + i) * layer.outputs + j] = z[i] + layer.bias[j];
      n += block;
    }
  }
  activate(layer.activation, a, samples * layer.outputs);
}

// BP2: δ^{l-1} = ((w^l)ᵀ δ^l) ⊙ σ′(z^{l-1}).
template <typename T>
void hidden_error(const Layer<T>& layer, const T* delta, int64_t samples, int64_t activation, const T* a, T* below) {
  std::fill(below, below + samples * layer.inputs, T(0));
  for (int64_t n = 0; n < samples; ++n)
    for (int64_t j = 0; j < layer.outputs; ++j) {
      const T d = delta[n * layer.outputs + j], *w = layer.weight + j * layer.inputs;
      T* to = below + n * layer.inputs;
      for (int64_t k = 0; k < layer.inputs; ++k) to[k] += d * w[k];
    }
  for (int64_t i = 0; i < samples * layer.inputs; ++i) below[i] *= derivative(activation, a[i]);
}

struct Step {
  double rate, momentum, weight_decay;
};

// BP3 and BP4, the mean over the samples, and the step: v = μ v + ∂C/∂w, w = w − η v.
template <typename T>
void descend(Layer<T>& layer, const T* delta, const T* const* x, int64_t samples, Step step, std::vector<T>& column) {
  const T rate = step.rate, momentum = step.momentum, decay = step.weight_decay, mean = T(1) / samples;
  for (int64_t j = 0; j < layer.outputs; ++j) {
    T sum = 0;
    for (int64_t n = 0; n < samples; ++n) sum += column[n] = delta[n * layer.outputs + j];
    T *w = layer.weight + j * layer.inputs, *b = layer.bias + j;
    if (layer.weight_velocity) {
      T *v = layer.weight_velocity + j * layer.inputs, *u = layer.bias_velocity + j;
      add_outer(v, column.data(), x, samples, layer.inputs, momentum, mean);
      for (int64_t k = 0; k < layer.inputs; ++k) w[k] -= rate * (v[k] += decay * w[k]);
      *b -= rate * (*u = momentum * *u + mean * sum);
    } else {
      add_outer(w, column.data(), x, samples, layer.inputs, 1 - rate * decay, -rate * mean);
      *b -= rate * mean * sum;
    }
  }
}

template <typename T>
void sgd(
    const T* x, const T* y, const int64_t* order, int64_t samples, int64_t batch_size, const double* rates,
    double momentum, double weight_decay, int64_t layer_count, const int64_t* sizes, const int64_t* activations,
    T* const* parameters, int64_t short_error) {
  std::vector<Layer<T>> layers;
  std::vector<std::vector<T>> a(layer_count), deltas(layer_count);
  for (int64_t l = 0; l < layer_count; ++l) {
    T* const* p = parameters + 4 * l;
    layers.push_back({sizes[l], sizes[l + 1], activations[l], p[0], p[1], p[2], p[3]});
    a[l].resize(batch_size * sizes[l + 1]);
    deltas[l].resize(batch_size * sizes[l + 1]);
  }
  std::vector<std::vector<const T*>> rows(layer_count, std::vector<const T*>(batch_size));
  for (int64_t l = 1; l < layer_count; ++l)
    for (int64_t n = 0; n < batch_size; ++n) rows[l][n] = a[l - 1].data() + n * sizes[l];
  std::vector<T> column(batch_size);
  const int64_t last = layer_count - 1, outputs = sizes[layer_count];

  for (int64_t start = 0, number = 0; start < samples; start += batch_size, ++number) {
    const int64_t n = std::min(batch_size, samples - start);
    // 1. Input: the rows of this mini-batch where they lie; those of the next one are fetched meanwhile.
    for (int64_t i = 0; i < n; ++i) rows[0][i] = x + order[start + i] * sizes[0];
    for (int64_t i = start + n; i < std::min(start + 2 * n, samples); ++i)
      for (int64_t k = 0; k < sizes[0]; k += Vector<T>::size) __builtin_prefetch(x + order[i] * sizes[0] + k);
    // 2. Feedforward.
    for (int64_t l = 0; l < layer_count; ++l) feedforward(layers[l], rows[l].data(), n, a[l].data());
    // 3. Output error (BP1) of the quadratic cost, δ^L = (a − y) ⊙ σ′(z), or of the cross-entropy, where σ′ cancels.
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < outputs; ++j) {
        const T out = a[last][i * outputs + j], error = out - y[order[start + i] * outputs + j];
        deltas[last][i * outputs + j] = short_error ? error : error * derivative(activations[last], out);
      }
    // 4. and 5. Backpropagate the error (BP2) through the weights as they were, then the step (BP3, BP4).
    for (int64_t l = last; l >= 0; --l) {
      if (l) hidden_error(layers[l], deltas[l].data(), n, activations[l - 1], a[l - 1].data(), deltas[l - 1].data());
      descend(layers[l], deltas[l].data(), rows[l].data(), n, {rates[number], momentum, weight_decay}, column);
    }
  }
}

}  // namespace

#define EXPORT_SGD(NAME, T)                                                                                           \
  extern "C" void NAME(                                                                                               \
      const T* x, const T* y, const int64_t* order, int64_t samples, int64_t batch_size, const double* rates,         \
      double momentum, double weight_decay, int64_t layer_count, const int64_t* sizes, const int64_t* activations,    \
      T* const* parameters, int64_t short_error) {                                                                    \
    sgd<T>(x, y, order, samples, batch_size, rates, momentum, weight_decay, layer_count, sizes, activations,          \
           parameters, short_error);                                                                                  \
  }

EXPORT_SGD(sgd_float32, float)
EXPORT_SGD(sgd_float64, double)
