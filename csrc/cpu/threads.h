// Threads for work in pieces.
#pragma once

#include <cstdint>
#include <functional>

namespace dafast::cpu {

// Calls body() on the calling thread, and on up to `count` - 1 others that are free meanwhile. The
// body takes pieces until there are none; that all pieces are done must not depend on the number of
// calls. Rethrows what a call throws.
//
// OpenMP's threads spin for milliseconds where they wait, and a region ends when all of its threads
// have run. These sleep after some 20 microseconds, and a thread that has not begun when the calling
// one finds no more pieces is not waited for: both matter next to other busy processes.
void on_threads(int64_t count, const std::function<void()>& body);

}  // namespace dafast::cpu
