// The products of a run of dense layers on vectors of kBytes. Included once for each instruction set, in a namespace that has
// kBytes, kHeight and Vector, with GPFAST_TARGET set; so there is no #pragma once.

#define GPFAST_LOOPS inline __attribute__((always_inline)) GPFAST_TARGET

template <typename T>
constexpr int64_t kLanes = kBytes / static_cast<int64_t>(sizeof(T));
template <typename T>
constexpr int64_t kPanel = 2 * kLanes<T>;  // columns of a tile

// c = a @ b for kRows rows and kVectors of columns, whose rows lie `step` apart in b; or what c holds and that. Each sum is taken
// in the order of k. What lies behind these columns of b is read next.
template <int kRows, int kVectors, typename T>
GPFAST_LOOPS void tile(Matrix<const T> a, const T* b, int64_t step, T* c, int64_t c_step, int64_t depth, bool add) {
  using V = typename Vector<T>::Type;
  V sums[kRows][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) sums[r][v] = V{};
  for (int64_t k = 0; k < depth; ++k) {
    V columns[kVectors];
    const T* row = b + k * step;
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      std::memcpy(&columns[v], row + v * kLanes<T>, sizeof(V));
      __builtin_prefetch(row + (kVectors + v) * kLanes<T>);
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const V x = *a(r, k) - V{};
  #pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) sums[r][v] = Vector<T>::fma(x, columns[v], sums[r][v]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      T* to = c + r * c_step + v * kLanes<T>;
      if (add) {
        V held;
        std::memcpy(&held, to, sizeof(V));
        sums[r][v] += held;
      }
      std::memcpy(to, &sums[r][v], sizeof(V));
    }
  }
}

// The rows that are left where kHeight does not divide them.
template <int kRows, int kVectors, typename T>
GPFAST_LOOPS void rest(int64_t rows, Matrix<const T> a, const T* b, int64_t step, T* c, int64_t c_step, int64_t depth, bool add) {
  if constexpr (kRows > 0) {
    if (rows == kRows) tile<kRows, kVectors>(a, b, step, c, c_step, depth, add);
    else rest<kRows - 1, kVectors>(rows, a, b, step, c, c_step, depth, add);
  }
}

// In sums of kDeep terms, which are added up, to what c holds where told: long sums would round more than those of the eager lines.
template <int kVectors, typename T>
GPFAST_LOOPS void panel(Matrix<const T> a, const T* b, int64_t step, T* c, int64_t c_step, int64_t rows, int64_t depth,
                        bool onto = false) {
  for (int64_t k = 0; k < depth; k += kDeep) {
    const int64_t deep = std::min(kDeep, depth - k);
    const bool add = onto || k > 0;
    const T* from = b + k * step;
    int64_t i = 0;
    for (; i + kHeight <= rows; i += kHeight)
      tile<kHeight, kVectors>({a(i, k), a.row, a.column}, from, step, c + i * c_step, c_step, deep, add);
    rest<kHeight - 1, kVectors>(rows - i, {a(i, k), a.row, a.column}, from, step, c + i * c_step, c_step, deep, add);
  }
}

// What a product lays out anew: a panel of b whose columns do not follow each other, or end early, and of c there.
template <typename T>
struct Scratch {
  std::vector<T> b, c;
  Scratch(int64_t depth, int64_t rows) : b(depth * kPanel<T>), c(rows * kPanel<T>) {}
};

// to (rows, columns) is `from` turned, which has its columns in rows, from_step apart.
template <typename T>
GPFAST_LOOPS void turn(const T* from, int64_t from_step, T* __restrict__ to, int64_t to_step, int64_t rows, int64_t columns) {
  constexpr int64_t kBlock = 4;
  int64_t i = 0;
  if constexpr (std::is_same_v<T, float>) {
    for (; i + kBlock <= rows; i += kBlock) {
      int64_t j = 0;
      for (; j + kBlock <= columns; j += kBlock) {
        __m128 block[kBlock];
        for (int r = 0; r < kBlock; ++r) block[r] = _mm_loadu_ps(from + (j + r) * from_step + i);
        _MM_TRANSPOSE4_PS(block[0], block[1], block[2], block[3]);
        for (int r = 0; r < kBlock; ++r) _mm_storeu_ps(to + (i + r) * to_step + j, block[r]);
      }
      for (; j < columns; ++j)
        for (int64_t r = i; r < i + kBlock; ++r) to[r * to_step + j] = from[j * from_step + r];
    }
  }
  for (; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) to[i * to_step + j] = from[j * from_step + i];
}

// Rows of a panel: b's, of which `width` elements follow there.
template <typename T>
GPFAST_LOOPS void pack(Matrix<const T> b, T* __restrict__ packed, int64_t depth, int64_t width) {
  constexpr int64_t kWidth = kPanel<T>;
  if (width < kWidth) std::fill(packed, packed + depth * kWidth, T(0));
  if (b.row == 1) return turn(b.at, b.column, packed, kWidth, depth, width);
  for (int64_t k = 0; k < depth; ++k)
    for (int64_t l = 0; l < width; ++l) packed[k * kWidth + l] = *b(k, l);
}

// c (rows, columns) = a (rows, depth) @ b (depth, columns), or what c holds and that; c by rows, c_step apart.
template <typename T>
GPFAST_LOOPS void multiply(Matrix<const T> a, Matrix<const T> b, T* c, int64_t c_step, int64_t rows, int64_t columns,
                           int64_t depth, Scratch<T>& scratch, bool onto = false) {
  constexpr int64_t kWidth = kPanel<T>;
  for (int64_t j = 0; j < columns; j += kWidth) {
    const int64_t width = std::min(kWidth, columns - j);
    const T* from = b(0, j);
    int64_t step = b.row;
    if (b.column != 1 || width < kWidth) {
      T* packed = scratch.b.data();
      pack({from, b.row, b.column}, packed, depth, width);
      from = packed;
      step = kWidth;
    }
    if (width == kWidth) {
      panel<2>(a, from, step, c + j, c_step, rows, depth, onto);
      continue;
    }
    T* part = scratch.c.data();
    for (int64_t i = 0; onto && i < rows; ++i) std::copy_n(c + i * c_step + j, width, part + i * kWidth);
    if (width > kLanes<T>) panel<2>(a, from, step, part, kWidth, rows, depth, onto);
    else panel<1>(a, from, step, part, kWidth, rows, depth, onto);
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t l = 0; l < width; ++l) c[i * c_step + j + l] = part[i * kWidth + l];
  }
}

// The same product, from its transpose: for an a of few rows, by rows, and a b whose columns are its rows in memory, which is then
// read as it lies. a is laid out anew, and c.
template <typename T>
GPFAST_LOOPS void multiply_turned(Matrix<const T> a, Matrix<const T> b, T* c, int64_t c_step, int64_t rows, int64_t columns,
                                  int64_t depth, Scratch<T>& scratch) {
  constexpr int64_t kWidth = kPanel<T>;
  for (int64_t i = 0; i < rows; i += kWidth) {
    const int64_t height = std::min(kWidth, rows - i);
    pack({a(i, 0), a.column, a.row}, scratch.b.data(), depth, height);
    const Matrix<const T> by_rows{b.at, b.column, b.row};
    if (height > kLanes<T>) panel<2>(by_rows, scratch.b.data(), kWidth, scratch.c.data(), kWidth, columns, depth);
    else panel<1>(by_rows, scratch.b.data(), kWidth, scratch.c.data(), kWidth, columns, depth);
    turn(scratch.c.data(), kWidth, c + i * c_step, c_step, height, columns);
  }
}

// What is padded of so many rows costs less than to lay b out anew.
template <typename T>
bool better_turned(int64_t rows) {
  return (kLanes<T> - rows % kLanes<T>) % kLanes<T> <= kLanes<T> / 2;
}

// A slope of zero gives zero, whatever the element. Both products first: what is chosen of is there, and loops vectorise.
template <Test kTest, typename T>
GPFAST_LOOPS void scale(T* __restrict__ z, const T* __restrict__ h, int64_t n, T lower, T upper, T on, T off) {
  for (int64_t j = 0; j < n; ++j) {
    const T high = on == 0 ? T(0) : on * z[j], low = off == 0 ? T(0) : off * z[j];
    z[j] = holds<kTest>(h[j], lower, upper) ? high : low;
  }
}

template <typename T>
GPFAST_LOOPS void decide(const Layer<T>& by, T* z, const T* h) {
  switch (by.test) {
    case Test::kAbove: return scale<Test::kAbove>(z, h, by.out, by.lower, by.upper, by.on, by.off);
    case Test::kBelow: return scale<Test::kBelow>(z, h, by.out, by.lower, by.upper, by.on, by.off);
    case Test::kBetween: return scale<Test::kBetween>(z, h, by.out, by.lower, by.upper, by.on, by.off);
    case Test::kWithin: return scale<Test::kWithin>(z, h, by.out, by.lower, by.upper, by.on, by.off);
  }
}

template <typename T>
GPFAST_LOOPS void times(T* __restrict__ z, const T* __restrict__ by, int64_t n) {
  for (int64_t j = 0; j < n; ++j) z[j] *= by[j];
}

template <typename T>
GPFAST_LOOPS void plus(T* __restrict__ z, const T* __restrict__ by, int64_t n) {
  for (int64_t j = 0; j < n; ++j) z[j] += by[j];
}

// Calls work(from, at, n) for pieces of what a smooth activation saved of rows: n numbers, which are in z at `at`.
template <typename T, typename F>
GPFAST_LOOPS void in_pieces(const Layer<T>& layer, int64_t begin, int64_t end, const F& work) {
  const bool one = layer.saved.row == layer.out;  // long row
  const int64_t n = one ? (end - begin) * layer.out : layer.out;
  for (int64_t i = begin; i < end; i += one ? end - begin : 1)
    for (int64_t j = 0; j < n; j += kPiece) work(layer.saved(i, 0) + j, i * layer.out + j, std::min(kPiece, n - j));
}

template <typename T>
GPFAST_LOOPS void scale_rows(const Layer<T>& layer, T* z, int64_t begin, int64_t end) {
  for (int64_t i = begin; layer.factor.at && i < end; ++i) times(z + i * layer.out, layer.factor(i, 0), layer.out);
}

// The adjoints' way through a smooth activation, which leaves its bend.
template <typename T>
GPFAST_LOOPS void bend_rows(const Layer<T>& layer, int64_t begin, int64_t end) {
  scale_rows(layer, layer.held, begin, end);
  in_pieces(layer, begin, end, [&](const T* from, int64_t at, int64_t n) GPFAST_TARGET {
    T slope[kPiece];
    derivatives(from, *layer.curve, slope, layer.bend + at, n);
    times(layer.bend + at, layer.held + at, n);
    times(layer.held + at, slope, n);
  });
}

// What lies between a product and the one above it, on rows of z.
template <typename T>
GPFAST_LOOPS void pass(const Layer<T>& layer, T* z, int64_t begin, int64_t end) {
  for (int64_t i = begin; layer.decider.at && i < end; ++i) decide(layer, z + i * layer.out, layer.decider(i, 0));
  if (layer.curve)
    in_pieces(layer, begin, end, [&](const T* from, int64_t at, int64_t n) GPFAST_TARGET {
      T slope[kPiece];
      derivatives(from, *layer.curve, slope, nullptr, n);
      times(z + at, slope, n);
    });
  scale_rows(layer, z, begin, end);
}

// Rows [begin, end) of all adjoints, from the last layer's, which are there and not gated yet.
template <typename T>
GPFAST_LOOPS void adjoint_rows(const Layers<T>& layers, T* out, int64_t begin, int64_t end) {
  Scratch<T> scratch(widest(layers), end - begin);
  for (size_t i = layers.size(); i-- > 0;) {
    const auto& layer = layers[i];
    if (layer.curve) bend_rows(layer, begin, end);
    else pass(layer, layer.held, begin, end);
    T* below = i > 0 ? layers[i - 1].held : out;
    multiply<T>({layer.held + begin * layer.out, layer.out, 1}, {layer.weight.at, layer.weight.column, layer.weight.row},
                below + begin * layer.in, layer.in, end - begin, layer.in, layer.out, scratch);
  }
}

// z += factor by
template <typename T>
GPFAST_LOOPS void plus_times(T* __restrict__ z, T factor, const T* __restrict__ by, int64_t n) {
  for (int64_t j = 0; j < n; ++j) z[j] += factor * by[j];
}

// What gradients are of: the tangents plus ratio x.
template <typename T>
GPFAST_LOOPS void meet_ratio(const Layers<T>& layers, int64_t begin, int64_t end) {
  for (const auto& layer : layers) {
    if (!layer.ratio || !layer.input.at) continue;
    for (int64_t i = begin; i < end; ++i)
      plus_times(const_cast<T*>(layer.tangent) + i * layer.in, layer.ratio[i], layer.input(i, 0), layer.in);
  }
}

// Rows of the tangents that the layers above read; last: of the result's too, or null.
template <typename T>
GPFAST_LOOPS void tangent_rows(const Layers<T>& layers, T* last, int64_t begin, int64_t end) {
  const int64_t rows = end - begin, most = widest(layers);
  Scratch<T> scratch(most, std::max(most, rows));
  for (size_t i = 0; i < layers.size(); ++i) {
    const auto& layer = layers[i];
    T* above = i + 1 < layers.size() ? const_cast<T*>(layers[i + 1].tangent) : last;
    if (!above) return;
    const Matrix<const T> tangent{layer.tangent + begin * layer.in, layer.in, 1};
    T* to = above + begin * layer.out;
    if (layer.weight.row == 1 && better_turned<T>(rows))
      multiply_turned(tangent, layer.weight, to, layer.out, rows, layer.out, layer.in, scratch);
    else
      multiply(tangent, layer.weight, to, layer.out, rows, layer.out, layer.in, scratch);
    if (layer.bend) times(layer.bend + begin * layer.out, to, rows * layer.out);
    pass(layer, above, begin, end);
  }
}

// Rows of all second adjoints, from where they begin; out: of the input's too, or null.
template <typename T>
GPFAST_LOOPS void second_rows(const Layers<T>& layers, T* out, int64_t begin, int64_t end) {
  Scratch<T> scratch(widest(layers), end - begin);
  for (size_t i = layers.size(); i-- > 0;) {
    const auto& layer = layers[i];
    if (!layer.second) continue;
    T* b = layer.second + begin * layer.out;
    if (layer.second != layer.bend) {
      pass(layer, layer.second, begin, end);
      if (layer.bend) plus(b, layer.bend + begin * layer.out, (end - begin) * layer.out);
    }
    T* below = i > 0 ? layers[i - 1].second : out;
    if (!below) return;
    multiply<T>({b, layer.out, 1}, {layer.weight.at, layer.weight.column, layer.weight.row}, below + begin * layer.in, layer.in,
                end - begin, layer.in, layer.out, scratch);
  }
}

// Over the rows, of columns [begin, end), or what the sums hold and that. by: a factor for each row, or null.
template <typename T>
GPFAST_LOOPS void sum_rows(const T* z, const T* by, int64_t step, T* sums, int64_t rows, int64_t begin, int64_t end, bool onto) {
  for (int64_t j = begin; j < end; j += kPanel<T>) {
    const int64_t width = std::min(kPanel<T>, end - j);
    for (int64_t i = 0; i < rows; i += kDeep) {
      T part[kPanel<T>] = {};
      for (int64_t k = i; k < std::min(rows, i + kDeep); ++k) {
        if (by) plus_times(part, by[k], z + k * step + j, width);
        else plus(part, z + k * step + j, width);
      }
      for (int64_t l = 0; l < width; ++l) sums[j + l] = onto || i > 0 ? sums[j + l] + part[l] : part[l];
    }
  }
}

// Of so many rows or columns, a thread's share, `part` of `parts`.
struct Share {
  int64_t begin, end;
  Share(int64_t all, int64_t part, int64_t parts) {
    const int64_t each = (all + parts - 1) / parts;
    begin = std::min(all, part * each), end = std::min(all, begin + each);
  }
};

// Of each gradient the rows in memory that are a thread's share, and of sums the columns; of tangents and adjoints, or where second
// adjoints are of those, which are added to the gradients. first: nothing was made of other rows.
template <typename T>
GPFAST_LOOPS void gradient_rows(const Layers<T>& layers, int64_t rows, int64_t part, int64_t parts, bool first) {
  Scratch<T> scratch(rows, widest(layers));
  for (const auto& layer : layers) {
    if (layer.sums) {
      const Share columns(layer.out, part, parts);
      const T* z = layer.second ? layer.second : layer.held;
      sum_rows(z, layer.ratio, layer.out, layer.sums, rows, columns.begin, columns.end, !first);
    }
    const int64_t height = layer.columns ? layer.out : layer.in, width = layer.columns ? layer.in : layer.out;
    const Share share(height, part, parts);
    if (!layer.gradient || share.begin == share.end) continue;
    const Matrix<const T> x = layer.second ? layer.input : Matrix<const T>{layer.tangent, layer.in, 1};
    const Matrix<const T> z{layer.second ? layer.second : layer.held, layer.out, 1};
    const auto &left = layer.columns ? z : x, &right = layer.columns ? x : z;
    multiply<T>({left(0, share.begin), 1, left.row}, right, layer.gradient + share.begin * width, width, share.end - share.begin,
                width, rows, scratch, layer.second || !first);
  }
}

#define GPFAST_DEFINE(T)                                                                                \
  GPFAST_TARGET void adjoints(const Layers<T>& layers, T* out, int64_t begin, int64_t end) {            \
    adjoint_rows(layers, out, begin, end);                                                              \
  }                                                                                                     \
  GPFAST_TARGET void tangents(const Layers<T>& layers, T* last, int64_t begin, int64_t end) {           \
    tangent_rows(layers, last, begin, end);                                                             \
    meet_ratio(layers, begin, end);                                                                     \
  }                                                                                                     \
  GPFAST_TARGET void seconds(const Layers<T>& layers, T* out, int64_t begin, int64_t end) {             \
    second_rows(layers, out, begin, end);                                                               \
  }                                                                                                     \
  GPFAST_TARGET void gradients_of(const Layers<T>& layers, int64_t rows, int64_t part, int64_t parts,   \
                                  bool first) {                                                         \
    gradient_rows(layers, rows, part, parts, first);                                                    \
  }
GPFAST_DEFINE(float)
GPFAST_DEFINE(double)
#undef GPFAST_DEFINE
#undef GPFAST_LOOPS
#undef GPFAST_TARGET
