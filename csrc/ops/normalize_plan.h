#pragma once
// The host's part of the CUDA kernels of the norms: which kernels a call takes, how they share out a block, and what their
// workspace holds.
#include <algorithm>

#include "ops/cuda_sums.h"
#include "ops/normalize_launch.h"

namespace gpfast {

constexpr int kHeld = 4;          // vectors of each tensor that a thread holds
constexpr int kBlocks = 512;      // that keep a GPU busy: parts are as few as that allows
constexpr int kLeastVectors = 4;  // of a thread that makes a part of a sum
constexpr int kMostVectors = 16;
constexpr int kLeastColumns = 8;  // threads side by side: a line of memory
constexpr int kMostRows = 8;      // of a thread of a block that has every row
// How many times as long as what a block holds a group may be for one block to read it twice. Reasoned, not measured: a block
// reads what it holds in about a microsecond, and its group twice in little more time than the two launches take that it saves,
// up to kLeastTimes; the longer groups are, the more of them must be at work for all of a GPU to be.
constexpr int kLeastTimes = 8, kMostTimes = 64;
constexpr int kGroupsForATime = 2;

// How runs are shared out: each in `chunks` of `chunk` elements, each of `lanes` threads.
struct Runs {
  int64_t count, length, chunks, chunk;
  int lanes;
};

// How rows of channels are shared out: tiles of `columns` threads, with a vector each, times chunks of rows.
struct Columns {
  int64_t channels, tiles, chunks, chunk;
  int columns;
};

// Where the sums of a group lie: `depth` channels of samples x chunks parts; the steps from one to the next.
struct Sources {
  int64_t depth, samples, chunks;
  int64_t of_sample_of_groups, of_group, of_channel, of_sample, of_chunk, of_sum;
  int lanes, channel_lanes;  // threads of a group; of them, those that are of different channels
};

// width: elements of a vector; sums and coefficients: numbers of a group.
class NormPlan {
 public:
  NormPlan(const NormCall& call, int width, int sums, int coefficients)
      : block(simplest(call.block)), width_(width), of_group_(sums) {
    const auto& b = block;
    channels = b.groups * b.depth;
    statistics = b.order == BlockOrder::batch ? b.groups : b.samples * b.groups;
    numel = b.samples * channels * b.length;
    parameters = (call.of_weight != nullptr) + (call.of_bias != nullptr);
    rows = b.order == BlockOrder::pixels && b.length == 1;
    pixels = b.order == BlockOrder::pixels && !rows;
    const int64_t times = parts_of(b.depth * b.length, int64_t{kThreads} * kHeld * width);
    const bool run = rows || b.order == BlockOrder::planes;
    // Gradients of parameters need sums of channels: those are the group's own, or each thread has channels of its own.
    held = times <= 1 && run && (!parameters || (rows ? b.groups : b.depth) == 1);
    twice = times > 1 && run && (!parameters || rows || b.depth == 1) &&
            times <= std::clamp<int64_t>(statistics / kGroupsForATime, kLeastTimes, kMostTimes);
    if (held) {
      plan_held();
      return;
    }
    plan_columns();
    if (!twice || (rows && parameters)) made = statistics * coefficients;
    if (twice) return;
    if (!pixels) plan_runs();
    plan_sources();
  }

  // Whether every place where a thread begins is a whole number of vectors away from where its tensor does.
  bool divisible() const {
    const auto& b = block;
    if (held || twice || (rows && b.groups > 1)) return b.depth * b.length % width_ == 0;
    return b.order == BlockOrder::pixels ? channels % width_ == 0 : b.length % width_ == 0;
  }
  // The workspace: sums, coefficients, parts of each parameter's gradient.
  int64_t workspace() const { return sums + made + parameters * parts * channels; }

  const NormBlock block;
  int64_t channels, statistics, numel;
  int parameters;
  bool rows, pixels;
  bool held, twice;       // a group is a block's, which reads it once, or twice
  bool complete = false;  // a block of `all` has every row: its part of a parameter's gradient is the whole
  int64_t sums = 0, made = 0, parts = 0;  // numbers, numbers, (parts, channels)
  // held
  int lanes = 0;
  int64_t blocks = 0;
  // else
  Runs runs{};                 // of the sums, but for pixels
  Columns of_sample{}, all{};  // of the sums of pixels; of the lines of rows and pixels
  Sources sources{};

 private:
  // The same block, told so that no run has one element.
  static NormBlock simplest(NormBlock b) {
    if (b.order == BlockOrder::batch && b.length == 1) return {1, b.groups, 1, b.samples, BlockOrder::pixels};
    if (b.order == BlockOrder::batch && b.samples == 1) return {1, b.groups, 1, b.length, BlockOrder::planes};
    if (b.order == BlockOrder::planes && b.length == 1) return {b.samples, b.groups, b.depth, 1, BlockOrder::pixels};
    return b;
  }

  // Threads for a run: few, each with several vectors, but enough for the accesses of a warp to lie together.
  int lanes_of_run(int64_t n) const {
    const int64_t vectors = parts_of(n, width_);
    return std::max(lanes_for(vectors, 8), lanes_for(parts_of(vectors, kHeld), kThreads));
  }

  void plan_held() {
    lanes = lanes_of_run(block.depth * block.length);
    blocks = std::min<int64_t>(parts_of(statistics, kThreads / lanes), parameters && rows ? kBlocks : INT32_MAX);
    parts = rows ? blocks : block.samples;
  }

  void plan_runs() {
    runs.length = rows ? block.depth : block.length;
    runs.count = runs.length ? numel / runs.length : 0;
    runs.lanes = lanes_of_run(runs.length);
    const int64_t vector = int64_t{runs.lanes} * width_, wanted = parts_of(kBlocks, std::max<int64_t>(1, runs.count));
    const int64_t vectors = std::clamp<int64_t>(parts_of(runs.length, vector * wanted), kLeastVectors, kMostVectors);
    runs.chunk = vector * vectors;
    runs.chunks = parts_of(runs.length, runs.chunk);
    sums = runs.count * runs.chunks * of_group_;
  }

  void plan_columns() {
    const auto& b = block;
    parts = b.order == BlockOrder::batch ? 1 : b.samples;
    if (b.order != BlockOrder::pixels) return;
    if (pixels) {
      of_sample = in_chunks(b.length, parts_of(kBlocks, std::max<int64_t>(1, b.samples * tiles(columns()))));
      sums = b.samples * of_sample.chunks * of_group_ * channels;
    }
    all = in_chunks(b.samples * b.length, rows && parameters ? parts_of(kBlocks, tiles(columns())) : INT64_MAX);
    if (rows) parts = all.chunks;
    if (rows && parameters && numel > 0) plan_complete();
  }

  void plan_complete() {
    int few = columns();
    while (few > kLeastColumns && tiles(few) < kBlocks && kThreads / few < block.samples) few /= 2;
    complete = block.samples <= int64_t{kThreads / few} * kMostRows;
    if (!complete) return;
    all = {channels, tiles(few), 1, block.samples, few};
    parts = 0;
  }

  int columns() const { return lanes_for(parts_of(channels, width_), kThreads); }
  int64_t tiles(int columns) const { return std::max<int64_t>(1, parts_of(channels, int64_t{columns} * width_)); }

  // `n` rows of channels in at most `most` chunks, of a few rows a thread where that leaves enough blocks.
  Columns in_chunks(int64_t n, int64_t most) const {
    const int64_t slots = kThreads / columns();
    const bool enough = tiles(columns()) * parts_of(n, slots * kLeastVectors) >= kBlocks;
    const int64_t chunk = std::max(slots * (enough ? kLeastVectors : 1), parts_of(n, most));
    return {channels, tiles(columns()), parts_of(n, chunk), chunk, columns()};
  }

  void plan_sources() {
    const auto& b = block;
    if (pixels) {
      const int64_t chunk = of_group_ * channels;
      sources = {b.depth, 1, of_sample.chunks, of_sample.chunks * chunk, b.depth, 1, 0, chunk, channels};
    } else {
      const int64_t run = runs.chunks * of_group_, depth = rows ? 1 : b.depth;
      const bool batch = b.order == BlockOrder::batch;
      sources = {depth, batch ? b.samples : 1, runs.chunks, batch ? 0 : b.groups * depth * run, depth * run, run,
                 batch ? b.groups * run : 0, of_group_, 1};
    }
    sources.channel_lanes = lanes_for(sources.depth, kThreads);
    const int64_t members = parts_of(sources.samples * sources.chunks, 4);  // a few sums a thread
    sources.lanes = sources.channel_lanes * lanes_for(members, kThreads / sources.channel_lanes);
  }

  const int width_, of_group_;
};

}  // namespace gpfast
