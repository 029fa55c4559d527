//! A backbone whose answers are looked at: a wrong shape or type would broadcast its way into every weight.
//!
//! Shapes and types are known without waiting for the device, so this costs nothing that can be measured.

use std::path::Path;

use advdmd_sdk::{
    Backbone, BackboneSpec, Conditioning, Denoiser, Error, OriginalModule, Prediction, Request, Result, SaveOptions,
    Sources, Tuning,
};
use tch::{Kind, Tensor};

/// A plugin's backbone, and what to call it in errors.
pub struct Checked {
    inner: Box<dyn Backbone>,
    name: String,
}

/// A denoiser of a [`Checked`] backbone.
struct CheckedDenoiser {
    inner: Box<dyn Denoiser>,
    name: String,
}

impl Checked {
    /// Looks at the answers of `inner`, the backbone of that type.
    pub fn new(inner: Box<dyn Backbone>, name: &str) -> Self {
        Self { inner, name: format!("backbone `{name}`") }
    }

    fn named<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|error| error.context(&self.name))
    }
}

impl Backbone for Checked {
    fn spec(&self) -> BackboneSpec {
        self.inner.spec()
    }

    fn encode_text(&self, prompts: &[&str]) -> Result<Conditioning> {
        self.named(self.inner.encode_text(prompts).and_then(|text| {
            let count = prompts.len() as i64;
            for (what, tensor) in [("context", Some(&text.context)), ("pooled", text.pooled.as_ref())] {
                let Some(tensor) = tensor else { continue };
                rows(what, tensor, count)?;
                floating(what, tensor)?;
            }
            if let Some(mask) = &text.mask {
                rows("mask", mask, count)?;
                let kind = mask.f_kind()?;
                if kind != Kind::Bool {
                    return Err(Error::invalid(format!("mask: expected booleans, found {kind:?}")));
                }
            }
            Ok(text)
        }))
    }

    fn encode_images(&self, images: &Tensor) -> Result<Tensor> {
        self.named(self.inner.encode_images(images).and_then(|latents| {
            maps("latents", &latents, images.size()[0], None)?;
            Ok(latents)
        }))
    }

    fn decode_latents(&self, latents: &Tensor) -> Result<Tensor> {
        self.named(self.inner.decode_latents(latents).and_then(|images| {
            maps("images", &images, latents.size()[0], Some(3))?;
            Ok(images)
        }))
    }

    fn save(&self, folder: &Path, parameters: &[(String, Tensor)], options: &SaveOptions) -> Result<()> {
        self.named(self.inner.save(folder, parameters, options))
    }

    fn original_modules(&self) -> Vec<OriginalModule> {
        self.inner.original_modules()
    }

    fn sources(&self) -> Result<Option<Sources>> {
        self.named(self.inner.sources())
    }

    fn release_encoders(&self) -> Result<()> {
        self.named(self.inner.release_encoders())
    }

    fn denoiser(&self, tuning: &Tuning, seed: u64) -> Result<Box<dyn Denoiser>> {
        let inner = self.named(self.inner.denoiser(tuning, seed))?;
        Ok(Box::new(CheckedDenoiser { inner, name: self.name.clone() }))
    }
}

impl Denoiser for CheckedDenoiser {
    fn predict(
        &self,
        x: &Tensor,
        sigma: &Tensor,
        conditioning: &Conditioning,
        request: Request<'_>,
    ) -> Result<Prediction> {
        let made = self.inner.predict(x, sigma, conditioning, request).and_then(|prediction| {
            match (&prediction.velocity, request.velocity) {
                (Some(velocity), true) => {
                    if velocity.size() != x.size() {
                        return Err(Error::shape("velocity", format!("{:?}", x.size()), &velocity.size()));
                    }
                    let kind = velocity.f_kind()?;
                    if kind != Kind::Float {
                        return Err(Error::invalid(format!("velocity: expected float32, found {kind:?}")));
                    }
                }
                (None, true) => return Err(Error::invalid("gave no velocity")),
                (_, false) => {}
            }
            let (found, expected) = (prediction.features.len(), request.taps.len());
            if found != expected {
                return Err(Error::invalid(format!("gave features of {found} blocks, {expected} were asked for")));
            }
            for (feature, tap) in prediction.features.iter().zip(request.taps) {
                maps(&format!("features of block {tap}"), feature, x.size()[0], None)?;
            }
            Ok(prediction)
        });
        made.map_err(|error| error.context(&self.name))
    }

    fn parameters(&self) -> Vec<(String, Tensor)> {
        self.inner.parameters()
    }
}

fn rows(what: &str, tensor: &Tensor, expected: i64) -> Result<()> {
    let size = tensor.size();
    if size.first() == Some(&expected) { Ok(()) } else { Err(Error::shape(what, format!("[{expected}, ...]"), &size)) }
}

/// Checks for `[rows, channels, h, w]`, of floating-point numbers.
fn maps(what: &str, tensor: &Tensor, rows: i64, channels: Option<i64>) -> Result<()> {
    let size = tensor.size();
    if size.len() != 4 || size[0] != rows || channels.is_some_and(|channels| size[1] != channels) {
        let channels = channels.map_or("*".to_owned(), |channels| channels.to_string());
        return Err(Error::shape(what, format!("[{rows}, {channels}, *, *]"), &size));
    }
    floating(what, tensor)
}

/// Refuses numbers that are not floating-point, of which no gradient or average can be made.
///
/// # Errors
/// Says which they are.
pub fn floating(what: &str, tensor: &Tensor) -> Result<()> {
    let kind = tensor.f_kind()?;
    if matches!(kind, Kind::Float | Kind::Double | Kind::Half | Kind::BFloat16) {
        return Ok(());
    }
    Err(Error::invalid(format!("gave {what} of type {kind:?}: expected floating-point numbers")))
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    /// Gives zeros of a shape and type, whatever it is asked.
    struct Wrong {
        velocity: Vec<i64>,
        kind: Kind,
        features: Vec<Vec<i64>>,
    }

    impl Denoiser for Wrong {
        fn predict(&self, _: &Tensor, _: &Tensor, _: &Conditioning, _: Request<'_>) -> Result<Prediction> {
            let zeros = |size: &[i64]| Tensor::zeros(size, (self.kind, Device::Cpu));
            let features = self.features.iter().map(|size| zeros(size)).collect();
            Ok(Prediction { velocity: Some(zeros(&self.velocity)), features })
        }

        fn parameters(&self) -> Vec<(String, Tensor)> {
            Vec::new()
        }
    }

    fn said(velocity: &[i64], kind: Kind, features: &[&[i64]]) -> String {
        let features = features.iter().map(|size| size.to_vec()).collect();
        let inner = Box::new(Wrong { velocity: velocity.to_vec(), kind, features });
        let checked = CheckedDenoiser { inner, name: "backbone `wrong`".to_owned() };
        let x = Tensor::zeros([2, 4, 8, 8], (Kind::Float, Device::Cpu));
        let sigma = Tensor::zeros([2], (Kind::Float, Device::Cpu));
        let text =
            Conditioning { context: Tensor::zeros([2, 1, 1], (Kind::Float, Device::Cpu)), pooled: None, mask: None };
        let answer = checked.predict(&x, &sigma, &text, Request { velocity: true, taps: &[1] });
        answer.map_or_else(|error| error.to_string(), |_| "well".to_owned())
    }

    #[test]
    fn what_would_broadcast_is_refused() {
        let (right, map) = ([2, 4, 8, 8], [2, 16, 4, 4]);
        assert_eq!(said(&right, Kind::Float, &[&map]), "well");
        let message = "backbone `wrong`: velocity: expected shape [2, 4, 8, 8], found [1, 4, 8, 8]";
        assert_eq!(said(&[1, 4, 8, 8], Kind::Float, &[&map]), message);
        let message = "backbone `wrong`: velocity: expected float32, found BFloat16";
        assert_eq!(said(&right, Kind::BFloat16, &[&map]), message);
        let message = "backbone `wrong`: gave features of 0 blocks, 1 were asked for";
        assert_eq!(said(&right, Kind::Float, &[]), message);
        let message = "backbone `wrong`: features of block 1: expected shape [2, *, *, *], found [2, 16]";
        assert_eq!(said(&right, Kind::Float, &[&[2, 16]]), message);
    }
}
