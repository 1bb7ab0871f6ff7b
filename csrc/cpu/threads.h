// Threads for work in pieces.
#pragma once

#include <cstdint>
#include <functional>

namespace dafast::cpu {

// Calls body() on the calling thread, and on up to `count` - 1 others that are free meanwhile. The
// body takes pieces until none is left; all pieces must be done for any number of calls. Rethrows
// the exception of a call.
//
// OpenMP's threads spin for milliseconds while they wait, and a region ends when all of its threads
// have run. These threads sleep after some 20 microseconds, and the calling thread does not wait
// for a thread that has not begun when no pieces are left. Both matter next to busy processes.
void on_threads(int64_t count, const std::function<void()>& body);

}  // namespace dafast::cpu
