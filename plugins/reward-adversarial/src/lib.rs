//! The reward `adversarial`: a discriminator on features of the diffusion model itself, trained beside the student, which
//! scores every state of the trajectory.
//!
//! Small convolutional [`heads`](Heads) read the image tokens after some transformer blocks of the fake-score network (or
//! the teacher) and give a logit at each place: is this what a real image, noised to the same sigma, looks like here?
//! The score is the mean of their sigmoids, in (0, 1). Only the heads learn; the network that makes the features is the
//! host's.

mod config;
mod head;
mod heads;
mod loss;
mod reward;

pub use config::Adversarial;
pub use head::Geometry;
pub use heads::Heads;
pub use loss::Loss;
pub use reward::AdversarialReward;

advdmd_sdk::register_reward!("adversarial", Adversarial);
advdmd_sdk::export_plugin!();
