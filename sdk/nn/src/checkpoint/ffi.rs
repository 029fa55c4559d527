//! The autograd node of `checkpoint.cpp`.

use std::ffi::{c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};

use advdmd_sdk::{Error, Result};
use tch::Tensor;

/// Libtorch may run and release it on the thread of a device.
type Block = Box<dyn Fn(&[Tensor]) -> Result<Vec<Tensor>> + Send>;

/// `at::Tensor*`, which is what tch's handles are.
type Handle = *mut c_void;

unsafe extern "C" {
    fn advdmd_checkpoint(
        state: *mut c_void,
        run: unsafe extern "C" fn(*mut c_void, *const Handle, usize, *mut Handle, usize, *mut c_char, usize) -> c_int,
        drop: unsafe extern "C" fn(*mut c_void),
        tensors: *const Handle,
        count: usize,
        inputs: usize,
        out: *mut Handle,
        outputs: usize,
        message: *mut c_char,
        capacity: usize,
    ) -> c_int;
}

/// Bytes of an error's text.
const MESSAGE: usize = 1024;

pub(super) fn checkpoint(inputs: &[&Tensor], trained: &[Tensor], outputs: usize, block: Block) -> Result<Vec<Tensor>> {
    let mut tensors: Vec<Tensor> = inputs.iter().map(|tensor| tensor.shallow_clone()).collect();
    tensors.extend(trained.iter().map(Tensor::shallow_clone));
    let handles: Vec<Handle> = tensors.iter_mut().map(|tensor| tensor.as_mut_ptr().cast()).collect();
    let mut out: Vec<Handle> = vec![std::ptr::null_mut(); outputs];
    let mut message: [c_char; MESSAGE] = [0; MESSAGE];
    let state = Box::into_raw(Box::new(block));
    // SAFETY: the node owns `state` from here on and frees it with `release`, also when it fails; the handles are valid
    // for the call, the places hold `outputs` handles and `MESSAGE` bytes. libtorch may run the block on the thread of a
    // device: the thread that called `backward` waits meanwhile, so that the block is used by one thread at a time.
    let code = unsafe {
        advdmd_checkpoint(
            state.cast(),
            run,
            release,
            handles.as_ptr(),
            handles.len(),
            inputs.len(),
            out.as_mut_ptr(),
            outputs,
            message.as_mut_ptr(),
            MESSAGE,
        )
    };
    if code != 0 {
        let bytes: Vec<u8> = message.iter().map(|&c| c.cast_unsigned()).take_while(|&c| c != 0).collect();
        return Err(Error::failed(String::from_utf8_lossy(&bytes)));
    }
    // SAFETY: after success every place holds a new `at::Tensor*`, which is ours.
    Ok(out.into_iter().map(|handle| unsafe { Tensor::from_ptr(handle.cast()) }).collect())
}

unsafe extern "C" fn run(
    state: *mut c_void,
    inputs: *const Handle,
    count: usize,
    out: *mut Handle,
    outputs: usize,
    message: *mut c_char,
    capacity: usize,
) -> c_int {
    let result = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: `state` is the block that `checkpoint` gave away and that is not yet released.
        let block = unsafe { &*state.cast::<Block>() };
        // SAFETY: the node passes `count` valid handles; each is cloned, so that it stays the node's.
        let inputs: Vec<Tensor> =
            (0..count).map(|i| unsafe { Tensor::clone_from_ptr((*inputs.add(i)).cast()) }).collect();
        block(&inputs)
    }));
    let error = match result {
        Ok(Ok(tensors)) if tensors.len() == outputs => {
            for (place, mut tensor) in tensors.into_iter().enumerate() {
                // SAFETY: `out` has `outputs` places; the handle goes over to the node.
                unsafe { out.add(place).write(tensor.as_mut_ptr().cast()) };
                std::mem::forget(tensor);
            }
            return 0;
        }
        Ok(Ok(tensors)) => format!("a checkpointed block gave {} tensors instead of {outputs}", tensors.len()),
        Ok(Err(error)) => error.to_string(),
        Err(panic) => {
            let text = panic.downcast_ref::<&str>().copied().or(panic.downcast_ref::<String>().map(String::as_str));
            format!("a checkpointed block panicked: {}", text.unwrap_or("without words"))
        }
    };
    let mut end = error.len().min(capacity - 1);
    while !error.is_char_boundary(end) {
        end -= 1;
    }
    // SAFETY: `message` has `capacity` bytes, of which `end + 1` are written.
    unsafe {
        std::ptr::copy_nonoverlapping(error.as_ptr(), message.cast(), end);
        message.add(end).write(0);
    }
    1
}

unsafe extern "C" fn release(state: *mut c_void) {
    // SAFETY: the node releases its block once.
    let block = unsafe { Box::from_raw(state.cast::<Block>()) };
    // What a destructor has to say has no way out through C++.
    let _ = catch_unwind(AssertUnwindSafe(|| drop(block)));
}
