//! Activation checkpointing: what a block keeps for the backward pass is computed again instead.

mod ffi;

use advdmd_sdk::Result;
use tch::Tensor;

/// `block(inputs)`, of which autograd keeps the inputs alone: the backward pass runs `block` a second time.
///
/// The gradients are those of plain autograd: `block` must compute the same both times. `trained` are the tensors inside
/// `block` that may need a gradient; one that is not listed gets none. `block` gives `outputs` tensors. Without a
/// gradient to come this is a plain call. Chen et al., arXiv:1604.06174.
///
/// # Errors
/// Those of `block`; in the backward pass they come out of `backward` as libtorch's.
pub fn checkpoint<F>(inputs: &[&Tensor], trained: &[Tensor], outputs: usize, block: F) -> Result<Vec<Tensor>>
where
    F: Fn(&[Tensor]) -> Result<Vec<Tensor>> + Send + 'static,
{
    ffi::checkpoint(inputs, trained, outputs, Box::new(block))
}

#[cfg(test)]
mod tests {
    use advdmd_sdk::Error;
    use tch::{Device, Kind, Tensor};

    use super::checkpoint;

    const F32: (Kind, Device) = (Kind::Float, Device::Cpu);

    /// `tanh(x W) y` and `x + y`, with the gradients of W, x and y.
    fn gradients(checkpointed: bool, by_name: bool) -> Vec<Tensor> {
        tch::manual_seed(3);
        let leaf = |shape: &[i64]| Tensor::randn(shape, F32).set_requires_grad(true);
        let (w, x, y) = (leaf(&[4, 4]), leaf(&[2, 4]), leaf(&[2, 4]));
        let inside = w.shallow_clone();
        let block = move |t: &[Tensor]| Ok(vec![t[0].f_matmul(&inside)?.f_tanh()?.f_mul(&t[1])?, t[0].f_add(&t[1])?]);
        let (twice, y_in) = (&x * 2.0, y.sin());
        let out = if checkpointed {
            checkpoint(&[&twice, &y_in], &[w.shallow_clone()], 2, block).unwrap()
        } else {
            block(&[twice, y_in]).unwrap()
        };
        let loss = (&out[0] * &out[1]).sum(Kind::Float) + out[0].square().sum(Kind::Float);
        if by_name {
            return Tensor::f_run_backward(&[loss], &[&w, &x, &y], false, false).unwrap();
        }
        loss.backward();
        vec![w.grad(), x.grad(), y.grad()]
    }

    #[test]
    fn gradients_are_those_of_plain_autograd() {
        for by_name in [false, true] {
            let plain = gradients(false, by_name);
            for (found, expected) in gradients(true, by_name).iter().zip(&plain) {
                assert!(found.equal(expected) && expected.abs().max().double_value(&[]) > 0.1);
            }
        }
    }

    #[test]
    fn outputs_that_nobody_reads_and_inputs_without_gradient_are_no_obstacle() {
        let x = Tensor::ones([2], F32).set_requires_grad(true);
        let constant = Tensor::full([2], 3.0, F32);
        let block = |t: &[Tensor]| Ok(vec![t[0].f_mul(&t[1])?, t[0].f_sin()?]);
        let out = checkpoint(&[&x, &constant], &[], 2, block).unwrap();
        out[0].sum(Kind::Float).backward();
        assert_eq!(x.grad(), constant);
        let out = tch::no_grad(|| checkpoint(&[&x, &constant], &[], 2, block).unwrap());
        assert!(!out[0].requires_grad());
    }

    #[test]
    fn errors_and_panics_of_the_block_come_out_as_errors() {
        let x = Tensor::ones([2], F32).set_requires_grad(true);
        let error = checkpoint(&[&x], &[], 1, |_| Err(Error::failed("no such block"))).unwrap_err();
        assert!(error.to_string().contains("no such block"), "{error}");
        let error = checkpoint(&[&x], &[], 1, |_| panic!("a panic")).unwrap_err();
        assert!(error.to_string().contains("a panic"), "{error}");
        assert!(checkpoint(&[&x], &[], 2, |t| Ok(vec![t[0].shallow_clone()])).is_err());
        // The first call goes well, the second, in the backward pass, does not.
        let calls = std::cell::Cell::new(0);
        let block = move |t: &[Tensor]| {
            calls.set(calls.get() + 1);
            if calls.get() > 1 { Err(Error::failed("the second time")) } else { Ok(vec![t[0].f_sin()?]) }
        };
        let out = checkpoint(&[&x], &[], 1, block).unwrap();
        let error = out[0].sum(Kind::Float).f_backward().unwrap_err().to_string();
        assert!(error.contains("the second time"), "{error}");
    }
}
