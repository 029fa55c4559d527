// How many bytes of tensors there are, on the CPU and on CUDA devices: libtorch has this in C++ only.
#include <malloc.h>

#include <atomic>
#include <cstdint>
#include <new>

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/alloc_cpu.h>

namespace {

std::atomic<int64_t> current{0};
std::atomic<int64_t> peak{0};
std::atomic<int64_t> allocations{0};

// libtorch's own CPU allocator, with a count of what it hands out.
struct CountingAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* data = c10::alloc_cpu(bytes);
    const auto size = static_cast<int64_t>(malloc_usable_size(data));
    const int64_t now = current.fetch_add(size, std::memory_order_relaxed) + size;
    int64_t highest = peak.load(std::memory_order_relaxed);
    while (now > highest && !peak.compare_exchange_weak(highest, now, std::memory_order_relaxed)) {
    }
    allocations.fetch_add(1, std::memory_order_relaxed);
    return {data, data, &release, c10::Device(c10::DeviceType::CPU)};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &release; }

  void copy_data(void* target, const void* source, std::size_t count) const override {
    default_copy_data(target, source, count);
  }

  static void release(void* data) {
    if (data == nullptr) return;
    current.fetch_sub(static_cast<int64_t>(malloc_usable_size(data)), std::memory_order_relaxed);
    c10::free_cpu(data);
  }
};

CountingAllocator counting;

c10::DeviceAllocator* cuda() {
  return dynamic_cast<c10::DeviceAllocator*>(c10::GetAllocator(c10::DeviceType::CUDA));
}

constexpr auto ALL = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);

}  // namespace

extern "C" {

struct AdvdmdMemory {
  int64_t current;
  int64_t peak;
  int64_t allocations;
};

// A value on the heap, where libtorch's C functions look for an optional argument and delete it.
uint64_t* advdmd_boxed(uint64_t value) noexcept { return new (std::nothrow) uint64_t(value); }

// Counts tensors made on the CPU from now on; those made before are never counted.
void advdmd_memory_count_cpu() { c10::SetCPUAllocator(&counting, /*priority=*/100); }

// Whether freed memory stays with the process, for the next tensors.
int32_t advdmd_memory_keep_freed() {
  // Some versions of the C library take no more than 32 MiB.
  const bool kept = mallopt(M_MMAP_THRESHOLD, 1 << 30) == 1 || mallopt(M_MMAP_THRESHOLD, 32 << 20) == 1;
  return mallopt(M_TRIM_THRESHOLD, -1) == 1 && kept;
}

// device: -1 for the CPU, else the CUDA device. Returns 0, or 1 where there is no such allocator.
int32_t advdmd_memory_read(int32_t device, AdvdmdMemory* out) noexcept {
  if (device < 0) {
    *out = {current.load(), peak.load(), allocations.load()};
    return 0;
  }
  try {
    c10::DeviceAllocator* allocator = cuda();
    if (allocator == nullptr) return 1;
    const auto stats = allocator->getDeviceStats(static_cast<c10::DeviceIndex>(device));
    *out = {stats.allocated_bytes[ALL].current, stats.allocated_bytes[ALL].peak, stats.allocation[ALL].allocated};
    return 0;
  } catch (...) {
    return 1;
  }
}

// Sets the peak to what there is now.
int32_t advdmd_memory_reset_peak(int32_t device) noexcept {
  if (device < 0) {
    peak.store(current.load());
    return 0;
  }
  try {
    c10::DeviceAllocator* allocator = cuda();
    if (allocator == nullptr) return 1;
    allocator->resetPeakStats(static_cast<c10::DeviceIndex>(device));
    return 0;
  } catch (...) {
    return 1;
  }
}
}
