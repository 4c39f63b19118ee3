#include "grid.h"

#include <algorithm>
#include <numeric>

#include "block.h"

namespace simt {
namespace {

constexpr unsigned kMostThreads = 1024, kMostX = 0x7fffffff, kMostYZ = 65535;
constexpr size_t kMostShared = 227 << 10;

// Takes a launch in place of running it: the kernel's address, x, y and z of grid and block, bytes of dynamic shared memory, and
// the arguments.
using Taker = void (*)(const void* kernel, const unsigned* shape, size_t shared_bytes, const void* const* arguments,
                       const size_t* sizes, size_t count);

// How the next launches run, and what the last one was.
struct Session {
  Taker taker = nullptr;
  uint64_t seed = 0;
  int64_t first = 0, last = INT64_MAX;  // the blocks that are run
  int64_t blocks = 0, threads = 0;
  std::string error;
};

Session& session() {
  static Session session;
  return session;
}

bool possible(const cudaLaunchConfig_t& by) {
  const dim3 g = by.gridDim, b = by.blockDim;
  return g.x && g.y && g.z && b.x && b.y && b.z && g.x <= kMostX && g.y <= kMostYZ && g.z <= kMostYZ &&
         uint64_t{b.x} * b.y * b.z <= kMostThreads && b.z <= 64 && by.dynamicSmemBytes <= kMostShared;
}

}  // namespace

cudaError_t launch(const cudaLaunchConfig_t& config, const Given& given, const std::function<void()>& kernel) {
  Session& by = session();
  if (!possible(config)) return cudaErrorInvalidConfiguration;
  const dim3 size = grid() = config.gridDim;
  if (by.taker) {
    const dim3 block = config.blockDim;
    const unsigned shape[] = {size.x, size.y, size.z, block.x, block.y, block.z};
    by.taker(given.kernel, shape, config.dynamicSmemBytes, given.arguments.data(), given.sizes.data(), given.sizes.size());
    return cudaSuccess;
  }
  by.blocks = int64_t{size.x} * size.y * size.z;
  by.threads = int64_t{config.blockDim.x} * config.blockDim.y * config.blockDim.z;
  const int64_t first = std::min(by.first, by.blocks), last = std::min(by.last, by.blocks);
  std::vector<int64_t> blocks(std::max<int64_t>(0, last - first));
  std::iota(blocks.begin(), blocks.end(), first);
  std::mt19937_64 generator(by.seed);
  if (by.seed) std::shuffle(blocks.begin(), blocks.end(), generator);
  for (const int64_t i : blocks) {
    const uint3 index{static_cast<unsigned>(i % size.x), static_cast<unsigned>(i / size.x % size.y),
                      static_cast<unsigned>(i / size.x / size.y)};
    by.error = block().run(config.blockDim, index, config.dynamicSmemBytes, kernel, by.seed ? &generator : nullptr);
    if (!by.error.empty()) return cudaErrorLaunchFailure;
  }
  return cudaSuccess;
}

}  // namespace simt

// For whoever loads the library.
extern "C" {
// seed 0: threads and blocks in order; else at random. Only blocks [first, last) run.
void simt_configure(uint64_t seed, int64_t first, int64_t last) {
  simt::session().seed = seed;
  simt::session().first = first;
  simt::session().last = last;
}
// From now on launches are handed to `taker`, or run again where it is null.
void simt_take(simt::Taker taker) { simt::session().taker = taker; }
const char* simt_error() { return simt::session().error.c_str(); }
int64_t simt_blocks() { return simt::session().blocks; }
int64_t simt_threads() { return simt::session().threads; }
}
