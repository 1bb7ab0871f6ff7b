// Loads, stores and sums blocks of float32 for kernels, from and to any of the dtypes. Included by
// the kernels files that each_isa.h compiles.

constexpr int kLanes = kPadding;  // blocks are padded to a multiple of this

inline int64_t whole(int64_t count) { return (count + kLanes - 1) / kLanes * kLanes; }

template <typename T>
inline void load_as(const void* data, int64_t at, int64_t stride, int64_t count, float* out) {
  const T* DAFAST_RESTRICT from = static_cast<const T*>(data) + at;
  float* DAFAST_RESTRICT to = out;
  if (stride == 1) {
    for (int64_t i = 0; i < count; ++i) to[i] = to_float(from[i]);
  } else {
    for (int64_t i = 0; i < count; ++i) to[i] = to_float(from[i * stride]);
  }
}

// `count` elements from `at` on, padded with zeros to whole(count): in place, or in `buffer`.
inline const float* load(const void* data, Dtype dtype, int64_t at, int64_t stride, int64_t count,
                         float* buffer) {
  if (dtype == Dtype::float32) {
    if (stride == 1 && count % kLanes == 0) return static_cast<const float*>(data) + at;
    load_as<float>(data, at, stride, count, buffer);
  } else if (dtype == Dtype::bfloat16) {
    load_as<bfloat16>(data, at, stride, count, buffer);
  } else {
    load_as<float16>(data, at, stride, count, buffer);
  }
  for (int64_t i = count; i < whole(count); ++i) buffer[i] = 0.0f;
  return buffer;
}

template <typename T>
inline void store_as(const float* values, int64_t count, void* data, int64_t at) {
  T* DAFAST_RESTRICT to = static_cast<T*>(data) + at;
  const float* DAFAST_RESTRICT from = values;
  for (int64_t i = 0; i < count; ++i) to[i] = from_float<T>(from[i]);
}

// Memory for `count` results, padded: their place in the tensor, or `buffer`.
inline float* place(void* data, Dtype dtype, int64_t at, int64_t count, float* buffer) {
  const bool direct = dtype == Dtype::float32 && count % kLanes == 0;
  return direct ? static_cast<float*>(data) + at : buffer;
}

// Copies results to the tensor if `place` returned the buffer.
inline void store(const float* values, int64_t count, void* data, Dtype dtype, int64_t at) {
  if (dtype == Dtype::float32) {
    if (static_cast<float*>(data) + at != values) store_as<float>(values, count, data, at);
  } else if (dtype == Dtype::bfloat16) {
    store_as<bfloat16>(values, count, data, at);
  } else {
    store_as<float16>(values, count, data, at);
  }
}

// A register of float32. (A compiler keeps an array of sums in memory.)
#if defined(DAFAST_IN_AVX512)
constexpr int kWide = 16;
#elif defined(DAFAST_IN_AVX2)
constexpr int kWide = 8;
#else
constexpr int kWide = 4;
#endif
#ifdef __GNUC__
typedef float Lanes __attribute__((vector_size(kWide * sizeof(float))));
#else
struct Lanes {
  float values[kWide];
  Lanes& operator+=(const Lanes& other) {
    for (int j = 0; j < kWide; ++j) values[j] += other.values[j];
    return *this;
  }
  Lanes operator*(const Lanes& other) const {
    Lanes out;
    for (int j = 0; j < kWide; ++j) out.values[j] = values[j] * other.values[j];
    return out;
  }
  Lanes operator-(const Lanes& other) const {
    Lanes out;
    for (int j = 0; j < kWide; ++j) out.values[j] = values[j] - other.values[j];
    return out;
  }
};
#endif

inline void get(const float* from, Lanes& lanes) { memcpy(&lanes, from, sizeof lanes); }
inline void put(const Lanes& lanes, float* to) { memcpy(to, &lanes, sizeof lanes); }

inline Lanes at(const float* from) {
  Lanes lanes;
  get(from, lanes);
  return lanes;
}

// The same value in every lane.
inline Lanes all(float value) {
  float values[kWide];
  for (int j = 0; j < kWide; ++j) values[j] = value;
  return at(values);
}

inline void add_to(float* sums, const Lanes& x) {
  Lanes sum = at(sums);
  sum += x;
  put(sum, sums);
}

// A sum of kLanes independent parts, always added in the same order.
constexpr int kRegisters = kLanes / kWide;

struct Sum {
  Lanes parts[kRegisters] = {};

  float total() const {
    float sums[kLanes];
    for (int k = 0; k < kRegisters; ++k) put(parts[k], sums + k * kWide);
    for (int width = kLanes / 2; width > 0; width /= 2) {
      for (int j = 0; j < width; ++j) sums[j] += sums[j + width];
    }
    return sums[0];
  }
};

// Sum of a padded block.
inline float sum_of(const float* values, int64_t count) {
  Sum sum;
  for (int64_t i = 0; i < count; i += kLanes) {
    for (int part = 0; part < kRegisters; ++part) {
      Lanes x;
      get(values + i + kWide * part, x);
      sum.parts[part] += x;
    }
  }
  return sum.total();
}

// Sum of the products of two padded blocks.
inline float sum_of_products(const float* a, const float* b, int64_t count) {
  Sum sum;
  for (int64_t i = 0; i < count; i += kLanes) {
    for (int part = 0; part < kRegisters; ++part) {
      Lanes x, y;
      get(a + i + kWide * part, x);
      get(b + i + kWide * part, y);
      sum.parts[part] += x * y;
    }
  }
  return sum.total();
}
