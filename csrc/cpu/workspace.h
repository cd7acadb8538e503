// Scratch memory of the calling thread, 64-byte aligned, kept between calls.
#pragma once
#include <cstddef>

namespace cnnkern {

// What one work item needs; what a whole call shares; what the calls of a network hand on.
enum class Scratch { kItem, kCall, kNetwork };

// At least `bytes`; valid until the thread asks for the same kind again. Throws std::bad_alloc.
void* thread_workspace(Scratch kind, size_t bytes);

}  // namespace cnnkern
