#pragma once
// The names of dtypes between .cpp files, compiled with torch's headers, and .cu files, compiled without them.

namespace gpfast {
enum class Dtype { kHalf, kBFloat16, kFloat, kDouble };
}
