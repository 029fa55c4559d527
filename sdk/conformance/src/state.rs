//! What belongs to the whole process and not to a plugin: libtorch's gradient mode, generator, default type and threads.

use advdmd_sdk::Result;
use advdmd_sdk::abi::take_switched_grad_mode;
use tch::{Kind, Tensor};

use crate::report::{Examiner, fail, ok};

/// libtorch's state before the component was made.
#[derive(Debug)]
pub(crate) struct State {
    default_dtype: Kind,
    threads: i32,
}

/// The type that libtorch gives to numbers of no type: integers, divided.
fn default_dtype() -> Kind {
    Tensor::from_slice(&[1_i64]).divide(&Tensor::from_slice(&[2_i64])).kind()
}

fn draw() -> Vec<f32> {
    let drawn = Tensor::rand([8], (Kind::Float, tch::Device::Cpu));
    Vec::try_from(drawn).unwrap_or_default()
}

impl State {
    pub(crate) fn now() -> Self {
        take_switched_grad_mode();
        Self { default_dtype: default_dtype(), threads: tch::get_num_threads() }
    }

    /// Calls `body`, which calls each method of the component, and looks at what it leaves behind.
    pub(crate) fn examine(&self, examiner: &mut Examiner, body: &mut dyn FnMut() -> Result<()>) {
        examiner.check("grad_mode", || {
            let earlier = take_switched_grad_mode();
            let without = tch::no_grad(&mut *body);
            let during = take_switched_grad_mode();
            without?;
            if earlier || during {
                return fail(
                    "libtorch's gradient mode as it was before the call",
                    "it switched",
                    "use `tch::no_grad(|| …)`, or hold `no_grad_guard` in a variable of the method; the host restores the mode, \
                     other programs do not",
                );
            }
            ok("as it was")
        });
        examiner.check("rng_state", || {
            tch::manual_seed(11);
            let untouched = draw();
            tch::manual_seed(11);
            body()?;
            if draw() != untouched {
                return fail(
                    "libtorch's global generator as it was: the numbers that follow a call are those of the seed",
                    "others",
                    "draw from a generator of your own, seeded with `RewardInit::seed` (crate rand): a resumed run must repeat",
                );
            }
            ok("untouched")
        });
        examiner.check("default_dtype", || {
            body()?;
            let (found, before) = (default_dtype(), self.default_dtype);
            if found != before {
                let advice = "give each new tensor its type, and leave libtorch's default alone";
                return fail(format!("libtorch's default type {before:?}"), format!("{found:?}"), advice);
            }
            ok(format!("{found:?}"))
        });
        examiner.check("threads", || {
            body()?;
            let (found, before) = (tch::get_num_threads(), self.threads);
            if found != before {
                tch::set_num_threads(before);
                let advice = "leave the number of threads to the host (`compute.threads`)";
                return fail(format!("{before} threads of libtorch"), found, advice);
            }
            ok(format!("{found}"))
        });
    }
}
