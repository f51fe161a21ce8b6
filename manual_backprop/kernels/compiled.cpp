// What Python calls: the passes of a layer, the cost of a network with its gradients, and mini-batches of stochastic
// gradient descent with no Python between them, the steps of `Network.update` in its order.
#include <string>

#include "layer.h"

namespace {

template <typename T>
std::vector<const T*> rows_of(const T* x, int64_t samples, int64_t inputs) {
  std::vector<const T*> rows(samples);
  for (int64_t n = 0; n < samples; ++n) rows[n] = x + n * inputs;
  return rows;
}

// A layer by itself: a = σ(w x + b).
template <typename T>
void layer_forward(
    const T* x, const T* w, const T* b, T* a, int64_t samples, int64_t inputs, int64_t outputs, int64_t activation) {
  const Layer<T> layer{inputs, outputs, activation, const_cast<T*>(w), const_cast<T*>(b), nullptr, nullptr};
  feedforward(layer, rows_of(x, samples, inputs).data(), samples, a);
}

// Its gradients by BP1 to BP4; those that are null are not asked for.
template <typename T>
void layer_backward(
    const T* grad, const T* x, const T* w, const T* a, T* grad_x, T* grad_w, T* grad_b, int64_t samples,
    int64_t inputs, int64_t outputs, int64_t activation) {
  std::vector<T> delta(samples * outputs);
  output_error(activation, grad, a, samples * outputs, delta.data());
  if (grad_x) input_gradient(w, delta.data(), samples, inputs, outputs, grad_x);
  if (grad_b) bias_gradient(delta.data(), samples, outputs, grad_b);
  if (grad_w) {
    const auto rows = rows_of(x, samples, inputs);
    add_outer(grad_w, delta.data(), rows.data(), samples, inputs, outputs, T(0), T(1));
  }
}

template <typename T>
struct Network {
  std::vector<Layer<T>> layers;
  std::vector<std::vector<T>> a, deltas;
  std::vector<std::vector<const T*>> rows;  // What comes into each layer; the first is the caller's to fill.

  Network(int64_t count, const int64_t* sizes, const int64_t* activations, T* const* parameters, int64_t samples)
      : a(count), deltas(count), rows(count, std::vector<const T*>(samples)) {
    for (int64_t l = 0; l < count; ++l) {
      T* const* p = parameters + 4 * l;
      layers.push_back({sizes[l], sizes[l + 1], activations[l], p[0], p[1], p[2], p[3]});
      a[l].resize(samples * sizes[l + 1]);
      deltas[l].resize(samples * sizes[l + 1]);
      if (l) rows[l] = rows_of(a[l - 1].data(), samples, sizes[l]);
    }
  }

  // 2. Feedforward.
  void forward(int64_t n) {
    for (size_t l = 0; l < layers.size(); ++l) feedforward(layers[l], rows[l].data(), n, a[l].data());
  }

  // 4. and 5. Backpropagate the error (BP2) through the weights as they are, and then use it (BP3, BP4).
  template <typename Use>
  void backward(int64_t n, Use use) {
    for (size_t l = layers.size(); l-- > 0;) {
      Layer<T>& layer = layers[l];
      if (l) {
        T* below = deltas[l - 1].data();
        input_gradient(layer.weight, deltas[l].data(), n, layer.inputs, layer.outputs, below);
        output_error(layers[l - 1].activation, below, a[l - 1].data(), n * layer.inputs, below);
      }
      use(layer, deltas[l].data(), rows[l].data());
    }
  }
};

// Σ_x C: of the quadratic cost of a, or of the cross-entropy of σ(z) where a = z. `delta`: scale · ∂C/∂a ⊙ σ′(z).
template <typename T>
double cost(const T* a, const T* y, int64_t count, int64_t activation, int64_t kind, T scale, T* delta) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (kind == costs::sigmoid_cross_entropy) {
      sum += (1 - y[i]) * a[i] + std::max(-a[i], T(0)) + std::log1p(std::exp(-std::abs(a[i])));
      delta[i] = scale * (1 / (1 + exponential(-a[i])) - y[i]);
    } else {
      sum += (a[i] - y[i]) * (a[i] - y[i]) / 2;
      delta[i] = times_derivative(activation, scale * (a[i] - y[i]), a[i]);
    }
  }
  return sum;
}

// The cost of a network, times scale, and its gradients, written where the velocities are; not those that are null.
template <typename T>
void network_cost(
    const T* x, const T* y, int64_t samples, int64_t count, const int64_t* sizes, const int64_t* activations,
    T* const* parameters, int64_t kind, double scale, T* value, T* grad_x) {
  Network<T> network(count, sizes, activations, parameters, samples);
  network.rows[0] = rows_of(x, samples, sizes[0]);
  network.forward(samples);
  T* delta = network.deltas.back().data();
  const T* a = network.a.back().data();
  *value = scale * cost<T>(a, y, samples * sizes[count], activations[count - 1], kind, scale, delta);
  network.backward(samples, [&](Layer<T>& layer, const T* delta, const T* const* inputs) {
    if (layer.bias_velocity) bias_gradient(delta, samples, layer.outputs, layer.bias_velocity);
    if (layer.weight_velocity)
      add_outer(layer.weight_velocity, delta, inputs, samples, layer.inputs, layer.outputs, T(0), T(1));
  });
  const Layer<T>& first = network.layers[0];
  if (grad_x) input_gradient(first.weight, network.deltas[0].data(), samples, first.inputs, first.outputs, grad_x);
}

struct Step {
  double rate, momentum, weight_decay;
};

// The gradients, the mean over the samples, and the step: v = μ v + ∂C/∂w, w = w − η v. `sums`: for BP3.
template <typename T>
void descend(Layer<T>& layer, const T* delta, const T* const* x, int64_t samples, Step step, std::vector<T>& sums) {
  const T rate = step.rate, momentum = step.momentum, decay = step.weight_decay, mean = T(1) / samples;
  const int64_t inputs = layer.inputs, outputs = layer.outputs;
  sums.resize(outputs);
  bias_gradient(delta, samples, outputs, sums.data());
  if (layer.weight_velocity) {
    T *v = layer.weight_velocity, *u = layer.bias_velocity;
    add_outer(v, delta, x, samples, inputs, outputs, momentum, mean);
    for (int64_t k = 0; k < inputs * outputs; ++k) layer.weight[k] -= rate * (v[k] += decay * layer.weight[k]);
    for (int64_t j = 0; j < outputs; ++j) layer.bias[j] -= rate * (u[j] = momentum * u[j] + mean * sums[j]);
  } else {
    add_outer(layer.weight, delta, x, samples, inputs, outputs, 1 - rate * decay, -rate * mean);
    for (int64_t j = 0; j < outputs; ++j) layer.bias[j] -= rate * mean * sums[j];
  }
}

template <typename T>
void sgd(
    const T* x, const T* y, const int64_t* order, int64_t samples, int64_t batch_size, const double* rates,
    double momentum, double weight_decay, int64_t count, const int64_t* sizes, const int64_t* activations,
    T* const* parameters, int64_t kind) {
  Network<T> network(count, sizes, activations, parameters, batch_size);
  std::vector<T> sums;
  const int64_t inputs = sizes[0], outputs = sizes[count], activation = activations[count - 1];

  for (int64_t start = 0, number = 0; start < samples; start += batch_size, ++number) {
    const int64_t n = std::min(batch_size, samples - start);
    const Step step{rates[number], momentum, weight_decay};
    // 1. Input: the rows of this mini-batch where they lie; those of the next one are fetched meanwhile.
    for (int64_t i = 0; i < n; ++i) network.rows[0][i] = x + order[start + i] * inputs;
    for (int64_t i = start + n; i < std::min(start + 2 * n, samples); ++i)
      for (int64_t k = 0; k < inputs; k += Vector<T>::size) __builtin_prefetch(x + order[i] * inputs + k);
    network.forward(n);
    // 3. Output error (BP1) of the quadratic cost, δ^L = (a − y) ⊙ σ′(z), or of the cross-entropy, where σ′ cancels.
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < outputs; ++j) {
        const T out = network.a.back()[i * outputs + j], error = out - y[order[start + i] * outputs + j];
        network.deltas.back()[i * outputs + j] = kind == costs::sigmoid_cross_entropy ? error : times_derivative(activation, error, out);
      }
    network.backward(n, [&](Layer<T>& layer, const T* delta, const T* const* rows) {
      descend(layer, delta, rows, n, step, sums);
    });
  }
}

// A row of the table: a name, the kinds of the arguments (p: pointer, n: int64_t, d: double), the address.
template <typename... Arguments>
std::string row(const std::string& name, void (*function)(Arguments...)) {
  const char kinds[] = {(std::is_pointer_v<Arguments> ? 'p' : std::is_floating_point_v<Arguments> ? 'd' : 'n')..., 0};
  return "function " + name + " " + kinds + " " + std::to_string(reinterpret_cast<std::uintptr_t>(function)) + "\n";
}

template <typename T>
std::string rows(const std::string& dtype) {
  return row("layer_forward " + dtype, layer_forward<T>) + row("layer_backward " + dtype, layer_backward<T>) +
         row("network_cost " + dtype, network_cost<T>) + row("sgd " + dtype, sgd<T>);
}

}  // namespace

// What Python may call, and by which codes: `cpp.py` compares it with its own before it calls anything.
extern "C" const char* table() {
#define ACTIVATION_CODE(name) + "activation " #name " " + std::to_string(activations::name) + "\n"
#define COST_CODE(name) + "cost " #name " " + std::to_string(costs::name) + "\n"
  static const std::string text =
      rows<float>("float32") + rows<double>("float64") ACTIVATIONS(ACTIVATION_CODE) COSTS(COST_CODE);
  return text.c_str();
}
