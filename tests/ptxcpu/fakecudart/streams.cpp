// Streams, events, and the capture of a stream's work into a graph. Streams are synchronous: work
// runs when it is submitted, or when the graph that recorded it is launched.
#include "streams.h"
#include <algorithm>
#include <chrono>
#include <memory>
#include <thread>

namespace {

struct Graph {
  std::vector<Work> nodes;
};

// How much of each stream's work comes before a point: what an event stands for.
typedef std::map<cudaStream_t, size_t> Clock;

struct Capture {
  unsigned long long id;
  cudaStreamCaptureMode mode;
  cudaStream_t origin;
  std::thread::id thread;
  Graph* graph = new Graph;  // the caller's, once the capture has ended
  std::map<cudaStream_t, Clock> streams;
  bool invalid = false;
};
typedef std::shared_ptr<Capture> CapturePointer;

struct Event {
  double milliseconds = 0;
  std::weak_ptr<Capture> capture;  // that it was last recorded in
  Clock clock;
};

std::map<cudaStream_t, CapturePointer> captures;  // guarded by the registry's mutex
std::map<cudaStream_t, bool> non_blocking;
thread_local cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;

bool is_legacy(cudaStream_t s) { return !s || s == cudaStreamLegacy; }

CapturePointer capture_of(cudaStream_t s) {
  auto found = captures.find(s);
  return found == captures.end() ? nullptr : found->second;
}

cudaError_t invalidate(const CapturePointer& c, cudaError_t e, const std::string& message) {
  if (c) c->invalid = true;
  return set_error(e, message);
}

cudaError_t unsupported(const CapturePointer& c, const char* what) {
  return invalidate(c, cudaErrorStreamCaptureUnsupported,
                    std::string(what) + " is not permitted when a stream is capturing");
}

// The capture that work in the legacy stream would have to wait for: one with a blocking stream.
CapturePointer blocking_capture() {
  for (auto& [stream, capture] : captures)
    if (!non_blocking[stream]) return capture;
  return nullptr;
}

cudaError_t implicit(const CapturePointer& c) {
  return invalidate(c, cudaErrorStreamCaptureImplicit,
                    "the legacy stream would depend on a capturing stream");
}

// Adds to a capture; false: the stream is not capturing.
bool record(cudaStream_t s, const Work& work, cudaError_t& result) {
  const CapturePointer c = capture_of(s);
  if (!c) return false;
  result = c->invalid ? set_error(cudaErrorStreamCaptureInvalidated) : cudaSuccess;
  if (!c->invalid) c->graph->nodes.push_back(work), ++c->streams[s][s];
  return true;
}

void merge(Clock& to, const Clock& from) {
  for (auto& [stream, count] : from) to[stream] = std::max(to[stream], count);
}

bool is_joined(Capture& c) {
  for (auto& [stream, clock] : c.streams)
    if (c.streams[c.origin][stream] < clock[stream]) return false;
  return true;
}

}  // namespace

cudaError_t submit(cudaStream_t s, const Work& work) {
  {
    Lock lock(registry().mutex);
    cudaError_t result;
    if (record(s, work, result)) return result;
    if (is_legacy(s))
      if (const CapturePointer c = blocking_capture()) return implicit(c);
  }
  return work();
}

cudaError_t refuse_if_unsafe(const char* what) {
  Lock lock(registry().mutex);
  for (auto& [stream, c] : captures) {
    const bool own =
        c->thread == std::this_thread::get_id() && c->mode != cudaStreamCaptureModeRelaxed;
    const bool other =
        thread_mode == cudaStreamCaptureModeGlobal && c->mode == cudaStreamCaptureModeGlobal;
    if (thread_mode != cudaStreamCaptureModeRelaxed && (own || other)) return unsupported(c, what);
  }
  return cudaSuccess;
}

cudaError_t refuse_in_legacy_stream(const char* what) {
  {
    Lock lock(registry().mutex);
    if (const CapturePointer c = blocking_capture()) return implicit(c);
  }
  return refuse_if_unsafe(what);
}

static cudaError_t synchronize(const CapturePointer& c, const char* what) {
  return c ? unsupported(c, what) : take_error();
}

// ---------------------------------------------------------------- streams
static cudaError_t new_stream(cudaStream_t* s, unsigned flags) {
  Lock lock(registry().mutex);
  static uintptr_t handle = 0x1000;
  *s = (cudaStream_t)(handle += 16);
  non_blocking[*s] = flags & cudaStreamNonBlocking;
  return cudaSuccess;
}
EXPORT cudaError_t cudaStreamCreate(cudaStream_t* s) { return new_stream(s, 0); }
EXPORT cudaError_t cudaStreamCreateWithFlags(cudaStream_t* s, unsigned f) {
  return new_stream(s, f);
}
EXPORT cudaError_t cudaStreamCreateWithPriority(cudaStream_t* s, unsigned f, int) {
  return new_stream(s, f);
}
EXPORT cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
EXPORT cudaError_t cudaStreamSynchronize(cudaStream_t s) {
  Lock lock(registry().mutex);
  return synchronize(capture_of(s), "cudaStreamSynchronize");
}
EXPORT cudaError_t cudaStreamQuery(cudaStream_t s) {
  Lock lock(registry().mutex);
  return synchronize(capture_of(s), "cudaStreamQuery");
}
EXPORT cudaError_t cudaDeviceSynchronize() {
  if (cudaError_t e = refuse_if_unsafe("cudaDeviceSynchronize")) return e;
  Lock lock(registry().mutex);
  return take_error();
}
EXPORT cudaError_t cudaStreamGetPriority(cudaStream_t, int* p) {
  *p = 0;
  return cudaSuccess;
}
EXPORT cudaError_t cudaStreamGetFlags(cudaStream_t s, unsigned* f) {
  Lock lock(registry().mutex);
  *f = non_blocking[s] ? cudaStreamNonBlocking : cudaStreamDefault;
  return cudaSuccess;
}
EXPORT cudaError_t cudaLaunchHostFunc(cudaStream_t s, cudaHostFn_t function, void* data) {
  return submit(s, [=] {
    function(data);
    return take_error();
  });
}

// ---------------------------------------------------------------- events
static cudaError_t new_event(cudaEvent_t* e) {
  *e = (cudaEvent_t) new Event;
  return cudaSuccess;
}
EXPORT cudaError_t cudaEventCreate(cudaEvent_t* e) { return new_event(e); }
EXPORT cudaError_t cudaEventCreateWithFlags(cudaEvent_t* e, unsigned) { return new_event(e); }
EXPORT cudaError_t cudaEventDestroy(cudaEvent_t e) {
  delete (Event*)e;
  return cudaSuccess;
}
EXPORT cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t s) {
  Lock lock(registry().mutex);
  Event& e = *(Event*)event;
  const CapturePointer c = capture_of(s);
  e.capture = c;
  if (c) e.clock = c->streams[s];
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  e.milliseconds = std::chrono::duration<double, std::milli>(now).count();
  return cudaSuccess;
}
EXPORT cudaError_t cudaEventRecordWithFlags(cudaEvent_t e, cudaStream_t s, unsigned) {
  return cudaEventRecord(e, s);
}
static cudaError_t ask(cudaEvent_t event, const char* what) {
  Lock lock(registry().mutex);
  if (const CapturePointer c = ((Event*)event)->capture.lock())
    return invalidate(c, cudaErrorCapturedEvent, std::string(what) + " of a captured event");
  if (cudaError_t e = refuse_if_unsafe(what)) return e;
  return take_error();
}
EXPORT cudaError_t cudaEventQuery(cudaEvent_t e) { return ask(e, "cudaEventQuery"); }
EXPORT cudaError_t cudaEventSynchronize(cudaEvent_t e) { return ask(e, "cudaEventSynchronize"); }
// Host time, which says nothing about a device; never zero, because callers divide by it.
EXPORT cudaError_t cudaEventElapsedTime(float* t, cudaEvent_t a, cudaEvent_t b) {
  *t = (float)std::max(1e-3, ((Event*)b)->milliseconds - ((Event*)a)->milliseconds);
  return cudaSuccess;
}
// A stream that waits for a captured event joins the capture.
EXPORT cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t event, unsigned) {
  Lock lock(registry().mutex);
  Event& e = *(Event*)event;
  const CapturePointer own = capture_of(s), other = e.capture.lock();
  if (!own && !other) return cudaSuccess;
  if (!other)
    return invalidate(own, cudaErrorStreamCaptureIsolation, "waits for an event outside of it");
  if (is_legacy(s)) return implicit(other);
  if (own && own != other)
    return invalidate(own, cudaErrorStreamCaptureMerge, "two captures cannot be merged");
  captures[s] = other;
  merge(other->streams[s], e.clock);
  return cudaSuccess;
}

// ---------------------------------------------------------------- capture
EXPORT cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode mode) {
  Lock lock(registry().mutex);
  static unsigned long long id = 0;
  if (is_legacy(s)) return unsupported(nullptr, "capturing the legacy stream");
  if (capture_of(s)) return set_error(cudaErrorIllegalState, "the stream is capturing already");
  Capture c;
  c.id = ++id, c.mode = mode, c.origin = s, c.thread = std::this_thread::get_id();
  c.streams[s];
  captures[s] = std::make_shared<Capture>(c);
  return cudaSuccess;
}
EXPORT cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t* graph) {
  Lock lock(registry().mutex);
  *graph = nullptr;
  const CapturePointer c = capture_of(s);
  if (!c) return set_error(cudaErrorIllegalState, "the stream is not capturing");
  if (c->mode != cudaStreamCaptureModeRelaxed && c->thread != std::this_thread::get_id())
    return set_error(cudaErrorStreamCaptureWrongThread, "begun by another thread");
  if (s != c->origin)
    return invalidate(c, cudaErrorStreamCaptureUnmatched, "not the stream that began the capture");
  for (auto& stream : c->streams) captures.erase(stream.first);
  cudaError_t e = cudaSuccess;
  if (c->invalid)
    e = set_error(cudaErrorStreamCaptureInvalidated, "invalidated by an earlier error");
  else if (!is_joined(*c))
    e = set_error(cudaErrorStreamCaptureUnjoined, "a forked stream was not joined");
  if (e)
    delete c->graph;
  else
    *graph = (cudaGraph_t)c->graph;
  return e;
}
EXPORT cudaError_t cudaStreamIsCapturing(cudaStream_t s, cudaStreamCaptureStatus* status) {
  return ptxcpu_capture_info(s, status, nullptr, nullptr);
}
EXPORT cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  std::swap(*mode, thread_mode);
  return cudaSuccess;
}
cudaError_t ptxcpu_capture_info(cudaStream_t s, cudaStreamCaptureStatus* status,
                                unsigned long long* id, cudaGraph_t* graph) {
  Lock lock(registry().mutex);
  if (is_legacy(s))
    if (const CapturePointer c = blocking_capture()) return implicit(c);
  const CapturePointer c = capture_of(s);
  *status = !c           ? cudaStreamCaptureStatusNone
            : c->invalid ? cudaStreamCaptureStatusInvalidated
                         : cudaStreamCaptureStatusActive;
  if (c && id) *id = c->id;
  if (c && graph) *graph = (cudaGraph_t)c->graph;
  return cudaSuccess;
}

// ---------------------------------------------------------------- graphs: their nodes in the order
// of capture, which every dependency agrees with
EXPORT cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* e, cudaGraph_t graph,
                                                 unsigned long long) {
  *e = (cudaGraphExec_t) new Graph(*(Graph*)graph);
  return cudaSuccess;
}
EXPORT cudaError_t cudaGraphInstantiate(cudaGraphExec_t* e, cudaGraph_t graph,
                                        unsigned long long flags) {
  return cudaGraphInstantiateWithFlags(e, graph, flags);
}
EXPORT cudaError_t cudaGraphLaunch(cudaGraphExec_t e, cudaStream_t s) {
  for (const Work& node : ((Graph*)e)->nodes)
    if (cudaError_t error = submit(s, node)) return error;
  return cudaSuccess;
}
EXPORT cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* count) {
  std::vector<Work>& all = ((Graph*)graph)->nodes;
  for (size_t i = 0; nodes && i < std::min(*count, all.size()); i++)
    nodes[i] = (cudaGraphNode_t)&all[i];
  *count = all.size();
  return cudaSuccess;
}
EXPORT cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete (Graph*)graph;
  return cudaSuccess;
}
EXPORT cudaError_t cudaGraphExecDestroy(cudaGraphExec_t e) {
  delete (Graph*)e;
  return cudaSuccess;
}
