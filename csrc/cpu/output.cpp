#include "output.h"

#include "caching_allocator.h"

// Of torch 2.11 and later; null in an older one, and then there is no cache.
extern "C" __attribute__((weak)) AOTITorchError torch_from_blob(
    void* data, int64_t dim, const int64_t* sizes, const int64_t* strides, int64_t offset,
    int32_t dtype, int32_t device_type, int32_t device_index, AtenTensorHandle* result,
    int32_t layout, const uint8_t* metadata, int64_t metadata_bytes,
    void (*deleter)(void* data, void* context), void* context);

namespace cnnkern {
namespace {

// glibc keeps a smaller one, as a rule. One of over 32 MiB it always gives back to the system.
constexpr int64_t kLarge = int64_t{4} << 20;

Ints dense_strides(const Ints& sizes, bool nhwc) {
  static constexpr int64_t kNhwc[] = {1, 3, 2, 0};
  Ints strides(sizes.size());
  int64_t stride = 1;
  for (size_t i = 0; i < sizes.size(); ++i) {
    const size_t d = nhwc ? size_t(kNhwc[i]) : sizes.size() - 1 - i;
    strides[d] = stride;
    stride *= sizes[d];
  }
  return strides;
}

}  // namespace

Tensor new_cpu_output(const Tensor& like, const Ints& sizes, bool nhwc,
                      std::optional<ScalarType> dtype) {
  int64_t count = 1;
  for (int64_t size : sizes) count *= size;
  if (count * int64_t(sizeof(double)) < kLarge || !torch_from_blob || !cache_is_on())
    return new_output(like, sizes, nhwc, dtype);
  const Tensor& typed = dtype ? new_output(like, {0}, false, dtype) : like;
  const int64_t bytes = count * int64_t(typed.element_size());
  if (bytes < kLarge) return new_output(like, sizes, nhwc, dtype);
  const Block block = allocate_block(size_t(bytes));
  if (!block.data) return new_output(like, sizes, nhwc, dtype);  // which says what is wrong
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  const Ints strides = dense_strides(sizes, nhwc);
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

}  // namespace cnnkern
