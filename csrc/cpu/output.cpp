#include "output.h"

#include <algorithm>
#include <cstring>

#include "caching_allocator.h"

// Of torch 2.11 and later; null in an older one, and then there is no cache.
extern "C" __attribute__((weak)) AOTITorchError torch_from_blob(
    void* data, int64_t dim, const int64_t* sizes, const int64_t* strides, int64_t offset,
    int32_t dtype, int32_t device_type, int32_t device_index, AtenTensorHandle* result,
    int32_t layout, const uint8_t* metadata, int64_t metadata_bytes,
    void (*deleter)(void* data, void* context), void* context);

namespace cnnkern {
namespace {

using torch::stable::detail::from;
using torch::stable::detail::to;

// glibc keeps a smaller one, as a rule. One of over 32 MiB it always gives back to the system.
constexpr int64_t kLarge = int64_t{4} << 20;

Ints dense_strides(const Ints& sizes, bool nhwc) {
  static constexpr int64_t kNhwc[] = {1, 3, 2, 0};
  Ints strides(sizes.size());
  int64_t stride = 1;
  for (size_t i = 0; i < sizes.size(); ++i) {
    const size_t d = nhwc ? size_t(kNhwc[i]) : sizes.size() - 1 - i;
    strides[d] = stride;
    stride *= std::max<int64_t>(sizes[d], 1);
  }
  return strides;
}

// A new tensor of torch's own. torch::stable::empty, a call of the dispatcher, takes four times as
// long, more than the kernels of small problems.
Tensor torch_empty(const Tensor& like, const Ints& sizes, const Ints& strides,
                   std::optional<ScalarType> dtype) {
  int32_t type;
  if (dtype)
    type = to<int32_t>(from(*dtype));
  else
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &type));
  AtenTensorHandle tensor;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(int64_t(sizes.size()), sizes.data(),
                                                         strides.data(), type,
                                                         aoti_torch_device_type_cpu(), 0, &tensor));
  return Tensor(tensor);
}

// The same in a block of the cache, or nothing if there is none to be had.
std::optional<Tensor> cached_empty(const Tensor& like, const Ints& sizes, const Ints& strides,
                                   int64_t count, std::optional<ScalarType> dtype) {
  if (count * int64_t(sizeof(double)) < kLarge || !torch_from_blob || !cache_is_on()) return {};
  const Tensor& typed = dtype ? torch_empty(like, {0}, {1}, dtype) : like;
  const int64_t bytes = count * int64_t(typed.element_size());
  if (bytes < kLarge) return {};
  const Block block = allocate_block(size_t(bytes));
  if (!block.data) return {};
  constexpr int32_t kStrided = 0;
  AtenTensorHandle tensor;
  STABLE_TORCH_ERROR_CODE_CHECK(torch_from_blob(
      block.data, int64_t(sizes.size()), sizes.data(), strides.data(), 0,
      to<int32_t>(from(typed.scalar_type())), to<int32_t>(from(like.device().type())),
      like.device().index(), &tensor, kStrided, nullptr, 0,
      [](void* data, void* bytes) {
        free_block({data, reinterpret_cast<size_t>(bytes)});
      },
      reinterpret_cast<void*>(block.bytes)));
  return Tensor(tensor);
}

bool poisons = false;

}  // namespace

void poison_outputs(bool on) { poisons = on; }

Tensor new_cpu_output(const Tensor& like, const Ints& sizes, bool nhwc,
                      std::optional<ScalarType> dtype) {
  int64_t count = 1;
  for (int64_t size : sizes) count *= size;
  const Ints strides = dense_strides(sizes, nhwc);
  const std::optional<Tensor> cached = cached_empty(like, sizes, strides, count, dtype);
  const Tensor output = cached ? *cached : torch_empty(like, sizes, strides, dtype);
  if (poisons && count > 0)
    std::memset(output.data_ptr(), 0xff, size_t(count) * output.element_size());
  return output;
}

}  // namespace cnnkern
