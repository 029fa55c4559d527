//! Numbers of an update, kept on the device until the update is over.

use std::collections::BTreeMap;

use tch::{Device, Kind, Tensor};

use super::inspection::Inspection;
use crate::Result;
use crate::device::upload;

/// Weighted means and extremes by name. Reading them is one transfer at the end of an update instead of a wait at each number.
#[derive(Debug, Default)]
pub struct Meter {
    sums: BTreeMap<String, (Tensor, f64)>,
    values: BTreeMap<String, f64>,
    inspection: Option<Inspection>,
}

impl Meter {
    /// A meter that reads every tensor it is shown, at the cost of a wait for each.
    pub fn inspecting() -> Self {
        Self { inspection: Some(Inspection::default()), ..Self::default() }
    }

    /// Says where in the update the following tensors belong; asked for only while inspecting.
    pub fn place(&mut self, place: impl FnOnce() -> String) {
        if let Some(inspection) = &mut self.inspection {
            inspection.place(place());
        }
    }

    /// Shows a tensor to the inspection, if there is one.
    pub fn watch(&mut self, name: &str, tensor: &Tensor) {
        if let Some(inspection) = &mut self.inspection {
            inspection.watch(name, tensor);
        }
    }

    /// Shows parameters and, where they have one, their gradients.
    pub fn watch_parameters(&mut self, owner: &str, parameters: &[(String, Tensor)]) {
        let Some(inspection) = &mut self.inspection else { return };
        for (name, parameter) in parameters {
            inspection.watch(&format!("{owner} parameter {name}"), parameter);
            let gradient = parameter.grad();
            if gradient.defined() {
                inspection.watch(&format!("{owner} gradient of {name}"), &gradient);
            }
        }
    }

    /// What was inspected.
    pub fn into_inspection(self) -> Inspection {
        self.inspection.unwrap_or_default()
    }

    /// Adds `value` (a scalar tensor) to the mean called `name`, with a weight.
    pub fn add(&mut self, name: &str, value: &Tensor, weight: f64) {
        self.watch(name, value);
        let value = value.detach().to_kind(Kind::Float) * weight;
        match self.sums.get_mut(name) {
            Some((sum, total)) => {
                *sum += value;
                *total += weight;
            }
            None => {
                self.sums.insert(name.to_owned(), (value, weight));
            }
        }
    }

    /// Lowers the minimum called `name` to `value` (a scalar tensor).
    pub fn add_min(&mut self, name: &str, value: &Tensor) {
        self.fold(name, value, Tensor::minimum);
    }

    /// Raises the maximum called `name` to `value` (a scalar tensor).
    pub fn add_max(&mut self, name: &str, value: &Tensor) {
        self.fold(name, value, Tensor::maximum);
    }

    fn fold(&mut self, name: &str, value: &Tensor, fold: fn(&Tensor, &Tensor) -> Tensor) {
        let value = value.detach().to_kind(Kind::Float);
        let folded = self.sums.get(name).map_or_else(|| value.shallow_clone(), |(so_far, _)| fold(so_far, &value));
        self.sums.insert(name.to_owned(), (folded, 1.0));
    }

    /// Adds each sample of `values` (`[b]`) to the mean called `name` + its key.
    ///
    /// # Errors
    /// libtorch's, for lack of memory.
    pub fn add_by(&mut self, name: &str, values: &Tensor, keys: &[usize]) -> Result<()> {
        let mut members: BTreeMap<usize, Vec<i64>> = BTreeMap::new();
        for (sample, &key) in keys.iter().enumerate() {
            members.entry(key).or_default().push(sample as i64);
        }
        for (key, samples) in members {
            let index = upload(&Tensor::from_slice(&samples), values.device())?;
            let mean = values.index_select(0, &index).mean(Kind::Float);
            self.add(&format!("{name}{key}"), &mean, samples.len() as f64);
        }
        Ok(())
    }

    /// Sets a number that is already on the host.
    pub fn set(&mut self, name: &str, value: f64) {
        self.values.insert(name.to_owned(), value);
    }

    /// Adds to a number that is already on the host.
    pub fn spend(&mut self, name: &str, amount: f64) {
        *self.values.entry(name.to_owned()).or_default() += amount;
    }

    /// All means, read in one transfer.
    ///
    /// # Errors
    /// libtorch's.
    pub fn read(self) -> Result<BTreeMap<String, f64>> {
        let mut values = self.values;
        if self.sums.is_empty() {
            return Ok(values);
        }
        // A number may have been made beside the networks' device, by a learner that computes on the CPU.
        let devices = || self.sums.values().map(|(sum, _)| sum.device());
        let device = devices().find(|device| *device != Device::Cpu).unwrap_or(Device::Cpu);
        let scalars: Vec<Tensor> =
            self.sums.values().map(|(sum, total)| (sum / *total).view([1]).to_device(device)).collect();
        let read = Vec::<f32>::try_from(Tensor::f_cat(&scalars, 0)?)?;
        values.extend(self.sums.into_keys().zip(read.into_iter().map(f64::from)));
        Ok(values)
    }
}
