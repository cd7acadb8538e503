// How the rest of the fake runtime submits work to a stream, which may be capturing.
#pragma once
#include <functional>
#include "registry.h"

typedef std::function<cudaError_t()> Work;

// Runs the work, or records it where the stream is capturing.
cudaError_t submit(cudaStream_t, const Work&);

// For calls that wait for the device or change it: an error, which also ends the capture, while one
// is under way that forbids them.
cudaError_t refuse_if_unsafe(const char* what);
cudaError_t refuse_in_legacy_stream(const char* what);

extern "C" cudaError_t ptxcpu_capture_info(cudaStream_t, cudaStreamCaptureStatus*,
                                           unsigned long long* id, cudaGraph_t*);
