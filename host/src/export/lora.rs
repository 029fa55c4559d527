//! A `LoRA` apart from its network, and what its file formats share.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use advdmd_nn::Weights;
use serde::Deserialize;
use serde_json::{Map, Value as Json, json};
use tch::{Device, Kind, Tensor};

use crate::{Error, Result};

/// Low-rank updates `B A alpha / rank` of linear layers, all of one rank and alpha, on the CPU.
#[derive(Debug)]
pub struct Lora {
    /// Rank of each update.
    pub rank: i64,
    /// Its scale, times the rank.
    pub alpha: f64,
    /// The factors, by the path of the layer in diffusers' module.
    pub layers: BTreeMap<String, Factors>,
}

/// The update of one layer.
#[derive(Debug)]
pub struct Factors {
    /// A `[rank, inputs]`.
    pub a: Tensor,
    /// B `[outputs, rank]`.
    pub b: Tensor,
}

/// What stands in front of a layer's path in the names of a denoiser's parameters, as in diffusers' files.
pub const PREFIX: &str = "transformer.";

impl Lora {
    /// The update that a denoiser's parameters are, or their averages.
    ///
    /// # Errors
    /// A name that is no half of a `LoRA`; halves that do not fit together.
    pub fn of_parameters(parameters: &[(String, Tensor)], alpha: f64) -> Result<Self> {
        let cpu = |(name, tensor): &(String, Tensor)| Ok((name.clone(), tensor.f_detach()?.f_to(Device::Cpu)?));
        Self::of_pairs(&parameters.iter().map(cpu).collect::<Result<_>>()?, PREFIX, alpha)
    }

    /// From `<prefix><layer>.lora_A.weight` and `lora_B.weight`.
    ///
    /// # Errors
    /// As [`Lora::of_parameters`].
    pub fn of_pairs(weights: &Weights, prefix: &str, alpha: f64) -> Result<Self> {
        let mut layers = BTreeMap::new();
        let mut ranks = Vec::new();
        for (name, a) in weights.iter() {
            let layer = |suffix| name.strip_prefix(prefix)?.strip_suffix(suffix);
            if let Some(path) = layer(".lora_B.weight")
                && weights.get(&format!("{prefix}{path}.lora_A.weight")).is_some()
            {
                continue;
            }
            let pair = layer(".lora_A.weight")
                .and_then(|path| Some((path, weights.get(&format!("{prefix}{path}.lora_B.weight"))?)));
            let Some((path, b)) = pair else {
                let expected = format!("{prefix}LAYER.lora_A.weight and lora_B.weight");
                return Err(Error::failed(format!("{name}: expected {expected}, found it alone")));
            };
            let (a_shape, b_shape) = (a.size(), b.size());
            if a_shape.len() != 2 || b_shape.len() != 2 || a_shape[0] != b_shape[1] {
                let expected = "expected [rank, inputs] and [outputs, rank]";
                return Err(Error::failed(format!("{path}: {expected}, found {a_shape:?} and {b_shape:?}")));
            }
            ranks.push(a_shape[0]);
            layers.insert(path.to_owned(), Factors { a: a.shallow_clone(), b: b.shallow_clone() });
        }
        ranks.sort_unstable();
        ranks.dedup();
        match ranks[..] {
            [rank] => Ok(Self { rank, alpha, layers }),
            [] => Err(Error::failed(format!("no tensor is called {prefix}LAYER.lora_A.weight"))),
            _ => Err(Error::failed(format!("expected one rank for all layers, found {ranks:?}"))),
        }
    }

    /// The tensors as `<prefix><layer>.lora_A.weight` and `lora_B.weight`.
    #[must_use]
    pub fn pairs(&self, prefix: &str) -> Weights {
        let pairs = self.layers.iter().flat_map(|(path, Factors { a, b })| {
            let named = |factor: &str, tensor: &Tensor| {
                (format!("{prefix}{path}.lora_{factor}.weight"), tensor.shallow_clone())
            };
            [named("A", a), named("B", b)]
        });
        pairs.collect()
    }

    /// The same with numbers of another type.
    ///
    /// # Errors
    /// libtorch's.
    pub fn to_kind(&self, kind: Kind) -> Result<Self> {
        let layer = |(path, Factors { a, b }): (&String, &Factors)| {
            Ok((path.clone(), Factors { a: a.f_to_kind(kind)?, b: b.f_to_kind(kind)? }))
        };
        let layers = self.layers.iter().map(layer).collect::<Result<_>>()?;
        Ok(Self { rank: self.rank, alpha: self.alpha, layers })
    }

    /// Refuses a `found` that is not exactly this one, its alpha but for the rounding of float32. The numbers may be of
    /// different types.
    ///
    /// # Errors
    /// The first difference: names the layer.
    pub fn check_same(&self, found: &Self) -> Result<()> {
        let differ = |what: &str, expected: &dyn Display, found: &dyn Display| {
            Err(Error::failed(format!("read back, {what} is not what was written: expected {expected}, found {found}")))
        };
        if found.rank != self.rank {
            return differ("the rank", &self.rank, &found.rank);
        }
        if (found.alpha - self.alpha).abs() > 1e-6 * self.alpha.abs() {
            return differ("alpha", &self.alpha, &found.alpha);
        }
        if let Some(layer) = found.layers.keys().find(|layer| !self.layers.contains_key(*layer)) {
            return differ(layer, &"no such layer", &"one");
        }
        for (layer, own) in &self.layers {
            let Some(other) = found.layers.get(layer) else {
                return differ(layer, &"a layer", &"none");
            };
            for (factor, own, other) in [("A", &own.a, &other.a), ("B", &own.b, &other.b)] {
                let what = format!("lora_{factor} of {layer}");
                if own.size() != other.size() {
                    return differ(&what, &format!("{:?}", own.size()), &format!("{:?}", other.size()));
                }
                let [own, other] = [own.f_to_kind(Kind::Double)?, other.f_to_kind(Kind::Double)?];
                if !own.f_equal(&other)? {
                    let off = own.f_sub(&other)?.f_abs()?.f_max()?.f_double_value(&[])?;
                    return differ(&what, &"the same numbers", &format!("some that are off by {off:.1e}"));
                }
            }
        }
        Ok(())
    }

    /// The keyword arguments of PEFT's `LoraConfig` that make this `LoRA`.
    #[must_use]
    pub fn peft_config(&self) -> Map<String, Json> {
        // PEFT declares an integer, and takes what has a fraction as it is.
        let alpha = if self.alpha.fract() == 0.0 { json!(self.alpha as i64) } else { json!(self.alpha) };
        let config = json!({
            "alpha_pattern": {},
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "lora_alpha": alpha,
            "lora_dropout": 0.0,
            "peft_type": "LORA",
            "r": self.rank,
            "rank_pattern": {},
            "target_modules": self.layers.keys().collect::<Vec<_>>(),
            "use_dora": false,
            "use_rslora": false,
        });
        config.as_object().cloned().unwrap_or_default()
    }
}

/// A file's tensors, on the CPU, as they are stored.
///
/// # Errors
/// A file that cannot be read; names it.
pub fn tensors(path: &Path) -> Result<Weights> {
    Ok(Weights::load(path, None, Device::Cpu)?)
}

/// The texts in the header of a safetensors file.
///
/// # Errors
/// A file that cannot be read or is no safetensors file; names it.
pub fn metadata(path: &Path) -> Result<BTreeMap<String, String>> {
    #[derive(Deserialize)]
    struct Header {
        #[serde(rename = "__metadata__", default)]
        metadata: BTreeMap<String, String>,
    }
    let read = || {
        let mut file = File::open(path)?;
        let mut length = [0; 8];
        file.read_exact(&mut length)?;
        let mut header = Vec::new();
        file.take(u64::from_le_bytes(length)).read_to_end(&mut header)?;
        Ok(header)
    };
    let header = read().map_err(Error::file("read", path))?;
    let Header { metadata } = serde_json::from_slice(&header).map_err(|error| Error::content(path, error))?;
    Ok(metadata)
}

/// The number at `key` of a JSON object.
///
/// # Errors
/// None there: names the file and the key.
pub fn number(path: &Path, config: &Json, key: &str) -> Result<f64> {
    config[key].as_f64().ok_or_else(|| Error::content(path, format!("expected a number at {key:?}")))
}

#[cfg(test)]
pub mod tests {
    use super::super::{diffusers, peft};
    use super::*;

    /// Random factors of rank 2 for layers of 5 inputs and 3 outputs.
    pub fn random(layers: &[String], alpha: f64) -> Lora {
        let factors = |name: &String| {
            let draw = |shape: [i64; 2]| Tensor::randn(shape, (Kind::Float, Device::Cpu));
            (name.clone(), Factors { a: draw([2, 5]), b: draw([3, 2]) })
        };
        Lora { rank: 2, alpha, layers: layers.iter().map(factors).collect() }
    }

    #[track_caller]
    pub fn assert_same(found: &Lora, expected: &Lora) {
        assert_eq!(found.rank, expected.rank);
        assert!((found.alpha - expected.alpha).abs() < 1e-6, "{} {}", found.alpha, expected.alpha);
        assert_eq!(found.layers.keys().collect::<Vec<_>>(), expected.layers.keys().collect::<Vec<_>>());
        for (name, Factors { a, b }) in &expected.layers {
            assert!(found.layers[name].a.equal(a) && found.layers[name].b.equal(b), "{name}");
        }
    }

    fn layers() -> Vec<String> {
        ["transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.to_out.0"].map(str::to_owned).to_vec()
    }

    #[test]
    fn what_is_written_is_read() {
        for alpha in [4.0, 0.3] {
            let folder = tempfile::tempdir().unwrap();
            let lora = random(&layers(), alpha);
            diffusers::write(folder.path(), &lora, Kind::Float).unwrap();
            assert_same(&diffusers::read(folder.path()).unwrap(), &lora);
            peft::write(folder.path(), &lora, Kind::Float).unwrap();
            assert_same(&peft::read(folder.path()).unwrap(), &lora);
            assert_same(&Lora::of_parameters(&pairs(&lora), alpha).unwrap(), &lora);
        }
    }

    type Parameters = Vec<(String, Tensor)>;

    fn pairs(lora: &Lora) -> Parameters {
        lora.pairs(PREFIX).into_iter().collect()
    }

    #[test]
    fn a_small_change_of_any_part_is_seen() {
        let lora = random(&layers(), 4.0);
        let half = lora.to_kind(Kind::BFloat16).unwrap();
        half.check_same(&half.to_kind(Kind::Float).unwrap()).unwrap();
        let refused = |change: &dyn Fn(&mut Lora)| {
            let mut other = lora.to_kind(Kind::Float).unwrap();
            change(&mut other);
            lora.check_same(&other).unwrap_err().to_string()
        };
        let first = |other: &Lora| other.layers.keys().next().unwrap().clone();
        let moved = refused(&|other| {
            let factors = other.layers.get_mut(&first(other)).unwrap();
            factors.b = factors.b.f_mul_scalar(1.001).unwrap();
        });
        assert!(moved.contains("lora_B of transformer_blocks.0.attn.to_out.0 is not what was written"), "{moved}");
        assert!(refused(&|other| other.alpha *= 1.001).contains("alpha is not what was written: expected 4, found"));
        assert!(refused(&|other| other.rank = 3).contains("expected 2, found 3"));
        let gone = refused(&|other| drop(other.layers.remove(&first(other))));
        assert!(gone.contains("expected a layer, found none"), "{gone}");
    }

    #[test]
    fn half_a_layer_and_mixed_ranks_are_refused() {
        let refused = |change: &dyn Fn(&mut Parameters)| {
            let mut parameters = pairs(&random(&layers(), 1.0));
            change(&mut parameters);
            Lora::of_parameters(&parameters, 1.0).unwrap_err().to_string()
        };
        assert!(refused(&|all| drop(all.remove(0))).contains("found it alone"));
        assert!(refused(&|all| drop(all.remove(1))).contains("found it alone"));
        assert!(refused(&|all| all[0].0 = "other.lora_A.weight".to_owned()).contains("found it alone"));
        assert!(
            refused(&|all| all[0].1 = Tensor::zeros([3, 5], (Kind::Float, Device::Cpu))).contains("found [3, 5] and")
        );
        assert!(refused(&Vec::clear).contains("no tensor is called transformer.LAYER"));
        let mixed = refused(&|all| {
            all[0].1 = Tensor::zeros([3, 5], (Kind::Float, Device::Cpu));
            all[1].1 = Tensor::zeros([3, 3], (Kind::Float, Device::Cpu));
        });
        assert!(mixed.contains("found [2, 3]"), "{mixed}");
    }

    #[test]
    fn a_configuration_that_does_not_fit_its_tensors_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let lora = random(&layers(), 4.0);
        peft::write(folder.path(), &lora, Kind::Float).unwrap();
        let config = folder.path().join("adapter_config.json");
        let text = std::fs::read_to_string(&config).unwrap();
        let read = |text: &str| {
            std::fs::write(&config, text).unwrap();
            peft::read(folder.path()).unwrap_err().to_string()
        };
        assert!(read(&text.replace("\"r\": 2", "\"r\": 8")).contains("expected rank 2, found 8"));
        assert!(read(&text.replace("lora_alpha", "alpha")).contains("expected a number at \"lora_alpha\""));
        assert!(read(&text.replace("to_q", "to_k")).contains("target_modules are not the layers"));
        diffusers::write(folder.path(), &lora, Kind::Float).unwrap();
        lora.pairs(PREFIX).save(&diffusers::path(folder.path()), &BTreeMap::new()).unwrap();
        let error = diffusers::read(folder.path()).unwrap_err().to_string();
        assert!(error.contains("no metadata \"lora_adapter_metadata\""), "{error}");
    }
}
