//! How often an update waits for the device, makes tensors of numbers on the host, allocates tensors, and asks the system
//! for memory.
//!
//! A CPU has nothing to wait for, but the calls are the same on every device. The linker redirects those of libtorch's C
//! functions that read a tensor on the host, or make one from the host's numbers, to the counters here (`build.rs`). Only
//! plugins that are linked in are seen.

use std::ffi::c_void;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use advdmd::registry::Registry;
use advdmd_nn::memory;
use anyhow::{Context, Result};
use tch::Device;

use crate::report::Row;
use crate::worker::trainer;

static READS: AtomicU64 = AtomicU64::new(0);
static FROM_HOST: AtomicU64 = AtomicU64::new(0);

/// Defines `__wrap_<name>`, which counts and goes on to the function itself.
macro_rules! counted {
    ($counter:ident, $wrap:ident, $real:ident, ($($argument:ident: $type:ty),*) -> $result:ty) => {
        unsafe extern "C" {
            fn $real($($argument: $type),*) -> $result;
        }

        #[unsafe(no_mangle)]
        unsafe extern "C" fn $wrap($($argument: $type),*) -> $result {
            $counter.fetch_add(1, Ordering::Relaxed);
            // SAFETY: the caller's arguments, unchanged.
            unsafe { $real($($argument),*) }
        }
    };
}

counted!(READS, __wrap_at_copy_data, __real_at_copy_data, (tensor: *mut c_void, to: *mut c_void, count: usize, size: usize) -> ());
counted!(READS, __wrap_at_double_value_at_indexes, __real_at_double_value_at_indexes, (tensor: *mut c_void, indices: *mut i64, count: i32) -> f64);
counted!(READS, __wrap_at_int64_value_at_indexes, __real_at_int64_value_at_indexes, (tensor: *mut c_void, indices: *mut i64, count: i32) -> i64);
counted!(READS, __wrap_atg_equal, __real_atg_equal, (one: *mut c_void, other: *mut c_void) -> i32);
counted!(READS, __wrap_atg_is_nonzero, __real_atg_is_nonzero, (tensor: *mut c_void) -> i32);
counted!(READS, __wrap_atg_nonzero, __real_atg_nonzero, (out: *mut *mut c_void, tensor: *mut c_void) -> ());
counted!(FROM_HOST, __wrap_at_tensor_of_data, __real_at_tensor_of_data, (data: *const c_void, sizes: *const i64, count: usize, size: usize, kind: i32) -> *mut c_void);

/// Updates before those that are counted.
const WARM_UP: usize = 4;
const UPDATES: usize = 4;

/// Counts per update.
pub fn measure(folder: &Path, name: &str) -> Result<Vec<Row>> {
    memory::count_cpu();
    let mut trainer = trainer(folder, &Registry::linked()?)?;
    for _ in 0..WARM_UP {
        trainer.update()?;
    }
    let (before, faults) = (memory::read(Device::Cpu)?, page_faults()?);
    let counters = [("reads of the device", &READS), ("tensors made of numbers on the host", &FROM_HOST)];
    let at_first = counters.map(|(_, counter)| counter.load(Ordering::Relaxed));
    for _ in 0..UPDATES {
        trainer.update()?;
    }
    let (after, faults) = (memory::read(Device::Cpu)?, page_faults()? - faults);
    let per_update = |count: f64| count / UPDATES as f64;
    let mut rows: Vec<Row> = (counters.iter().zip(at_first))
        .map(|((what, counter), first)| {
            let count = counter.load(Ordering::Relaxed) - first;
            Row::exact(name, *what, per_update(count as f64), "per update")
        })
        .collect();
    let allocations = (after.allocations - before.allocations) as f64;
    rows.push(Row::exact(name, "tensor allocations", per_update(allocations), "per update"));
    let growth = after.current as f64 - before.current as f64;
    rows.push(Row::exact(name, "growth of tensor memory", per_update(growth) / 1024.0, "KiB per update"));
    rows.push(Row::exact(name, "pages mapped by the system", per_update(faults), "per update"));
    Ok(rows)
}

/// Pages that the system has mapped for this process so far without reading them from a disk.
fn page_faults() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // After the program's name, which may hold spaces: state, five ids, flags, minor faults.
    let fields = stat.rsplit_once(')').context("/proc/self/stat has no name")?.1;
    Ok(fields.split_whitespace().nth(7).context("/proc/self/stat is short")?.parse()?)
}
