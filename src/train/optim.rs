//! AdamW with named groups, clipping by the global norm, and a state that can be saved.

use super::Gradients;
use super::gradients::{CHUNK, contiguous, values_mut};
use crate::base::{Error, Result, group};
use crate::io::weights::TensorSource;
use crate::nn::{ParamStore, vectorised};
use candle_core::{CpuStorage, Device, InplaceOp1, InplaceOp2, Layout, Result as TensorResult, Tensor, Var};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::collections::BTreeMap;

/// Parameters that share a learning rate and a weight decay.
#[derive(Debug, Clone)]
pub struct Group {
    /// For messages and logs.
    pub name: String,
    /// Names with variables, in the order of names.
    pub parameters: Vec<(String, Var)>,
    /// The group's learning rate is that of the step times this.
    pub learning_rate_scale: f64,
    /// Decoupled weight decay: parameters are multiplied by 1 − learning rate · decay in each step.
    pub weight_decay: f64,
}

impl Group {
    /// All weights of a store in two groups: weight decay on matrices and kernels, none on vectors.
    pub fn decaying_matrices(parameters: &ParamStore, weight_decay: f64) -> Vec<Self> {
        let group = |name: &str, decays: bool| Self {
            name: name.into(),
            parameters: parameters
                .weights()
                .filter(|(_, var)| (var.rank() >= 2) == decays)
                .map(|(name, var)| (name.to_string(), var.clone()))
                .collect(),
            learning_rate_scale: 1.0,
            weight_decay: if decays { weight_decay } else { 0.0 },
        };
        vec![group("decay", true), group("no decay", false)]
    }
}

impl Group {
    /// All weights of a store in one group, as in DreamBooth training: biases and norms decay too.
    pub fn all(store: &ParamStore, weight_decay: f64) -> Self {
        let parameters = store.weights().map(|(name, var)| (name.to_string(), var.clone())).collect();
        Self { name: "all".into(), parameters, learning_rate_scale: 1.0, weight_decay }
    }
}

/// Which parameters get a group of their own: those whose name contains `key`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupRule {
    /// Part of the parameter's name.
    pub key: String,
    /// Multiplies the learning rate.
    #[serde(default = "one")]
    pub learning_rate_scale: f64,
    /// Multiplies the weight decay.
    #[serde(default = "one")]
    pub weight_decay_scale: f64,
}

fn one() -> f64 {
    1.0
}

/// Sorts the weights of `store` into groups. Rules are tried longest key first, then alphabetically; the first whose key
/// occurs in the name wins; names without a rule form the group `default`. Groups without parameters are left out.
///
/// # Source
/// The rules of mmcv's optimiser constructor that SegFormer and DAFormer are trained with: `pos_block`, `head`, `norm`,
/// so that norms of a head follow the head's rule.
pub fn parameter_groups(store: &ParamStore, weight_decay: f64, rules: &[GroupRule]) -> Vec<Group> {
    let mut rules = rules.to_vec();
    rules.sort_by(|a, b| b.key.len().cmp(&a.key.len()).then_with(|| a.key.cmp(&b.key)));
    rules.push(GroupRule { key: String::new(), learning_rate_scale: 1.0, weight_decay_scale: 1.0 });
    let mut groups: Vec<Group> = rules
        .iter()
        .map(|rule| Group {
            name: if rule.key.is_empty() { "default".into() } else { rule.key.clone() },
            parameters: Vec::new(),
            learning_rate_scale: rule.learning_rate_scale,
            weight_decay: weight_decay * rule.weight_decay_scale,
        })
        .collect();
    for (name, var) in store.weights() {
        // The last rule's key is empty and occurs in every name.
        if let Some(index) = rules.iter().position(|rule| name.contains(&rule.key)) {
            groups[index].parameters.push((name.to_string(), var.clone()));
        }
    }
    groups.retain(|group| !group.parameters.is_empty());
    groups
}

/// Settings of [`AdamW`]; the defaults are PyTorch's.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdamWConfig {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Gradients are scaled down to this global L2 norm; none: no clipping.
    pub max_gradient_norm: Option<f64>,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, max_gradient_norm: None }
    }
}

/// Moments of one parameter.
#[derive(Debug)]
struct Moments {
    /// (2, …): first and second moment, in one tensor so that one in-place operation reaches both.
    both: Tensor,
    /// Steps this parameter had a gradient in; the bias corrections count these.
    steps: u64,
}

/// Adam with decoupled weight decay.
///
/// # Source
/// Loshchilov and Hutter, "Decoupled weight decay regularization", algorithm 2, in PyTorch's form: with k the number of
/// updates, `p ← p·(1 − lr·wd) − lr/(1 − β1^k) · m / (√v / √(1 − β2^k) + ε)`. Parameters without a gradient are left
/// alone, weight decay included.
#[derive(Debug)]
pub struct AdamW {
    groups: Vec<Group>,
    config: AdamWConfig,
    moments: BTreeMap<String, Moments>,
}

impl AdamW {
    /// # Errors
    /// A parameter name that occurs twice: its state could not be saved.
    pub fn new(groups: Vec<Group>, config: AdamWConfig) -> Result<Self> {
        let mut moments = BTreeMap::new();
        for (name, var) in groups.iter().flat_map(|group| &group.parameters) {
            let both = Tensor::zeros([&[2], var.dims()].concat(), candle_core::DType::F32, var.device())?;
            if moments.insert(name.clone(), Moments { both, steps: 0 }).is_some() {
                return Err(Error::Usage(format!("parameter `{name}` is in two groups of the optimiser")));
            }
        }
        Ok(Self { groups, config, moments })
    }

    /// The groups, e.g. to report their sizes.
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// All parameters, group by group: what [`Gradients::of`] and the guard want.
    pub fn parameters(&self) -> impl Iterator<Item = (&str, &Var)> + Clone {
        self.groups.iter().flat_map(|group| &group.parameters).map(|(name, var)| (name.as_str(), var))
    }

    /// One step with `learning_rate` (before group scales). Returns the global gradient norm before clipping. Where several
    /// processes train, all make the same step with the mean of their gradients.
    ///
    /// Gradients of parameters the optimiser does not have are ignored, but count in the norm.
    ///
    /// # Source
    /// Clipping as in PyTorch: scale = min(1, max / (norm + 1e-6)).
    pub fn step(&mut self, gradients: &Gradients, learning_rate: f64) -> Result<f64> {
        let averaged = gradients.averaged(group::current(), self.parameters())?;
        let gradients = averaged.as_ref().unwrap_or(gradients);
        #[cfg(feature = "cuda")]
        if self.parameters().next().is_some_and(|(_, var)| var.device().is_cuda()) {
            return self.step_on_gpu(gradients, learning_rate);
        }
        let norm = gradients.norm()?;
        let scale = self.config.max_gradient_norm.map_or(1.0, |max| (max / (norm + 1e-6)).min(1.0));
        for group in &self.groups {
            let learning_rate = learning_rate * group.learning_rate_scale;
            for (name, var) in &group.parameters {
                let (Some(gradient), Some(moments)) = (gradients.get(name), self.moments.get_mut(name)) else { continue };
                moments.steps += 1;
                let scalars = Scalars::new(&self.config, moments.steps, learning_rate, group.weight_decay, scale);
                var.inplace_op2(&gradient.contiguous()?, &Update { moments: &moments.both, scalars })?;
            }
        }
        Ok(norm)
    }

    /// The same without waiting for the GPU before all updates are under way.
    #[cfg(feature = "cuda")]
    fn step_on_gpu(&mut self, gradients: &Gradients, learning_rate: f64) -> Result<f64> {
        use crate::nn::cuda;
        let limit = self.config.max_gradient_norm;
        let Some(norm) = cuda::gradient_norm(gradients.iter().map(|(_, gradient)| gradient), limit)? else { return Ok(0.0) };
        for group in &self.groups {
            let learning_rate = learning_rate * group.learning_rate_scale;
            for (name, var) in &group.parameters {
                let (Some(gradient), Some(moments)) = (gradients.get(name), self.moments.get_mut(name)) else { continue };
                moments.steps += 1;
                let s = Scalars::new(&self.config, moments.steps, learning_rate, group.weight_decay, 1.0);
                let factors = cuda::AdamWFactors {
                    keep: s.keep,
                    beta1: s.beta1,
                    one_minus_beta1: s.one_minus_beta1,
                    beta2: s.beta2,
                    one_minus_beta2: s.one_minus_beta2,
                    root_correction2: s.root_correction2,
                    epsilon: s.epsilon,
                    step_size: s.step_size,
                };
                cuda::adamw(&cuda::AdamWStep { parameter: var, moments: &moments.both, gradient, factors }, &norm)?;
            }
        }
        Ok(f64::from(norm.to_vec1::<f32>()?[0]))
    }

    /// Moments and counters for a checkpoint: `NAME.exp_avg`, `NAME.exp_avg_sq`, `NAME.step` for each parameter. The
    /// tensors share storage with the optimiser: write them before the next step.
    pub fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut state = BTreeMap::new();
        for (name, moments) in &self.moments {
            state.insert(format!("{name}.exp_avg"), moments.both.get(0)?);
            state.insert(format!("{name}.exp_avg_sq"), moments.both.get(1)?);
            state.insert(format!("{name}.step"), Tensor::new(moments.steps as i64, &Device::Cpu)?);
        }
        Ok(state)
    }

    /// Takes over what [`Self::state`] gave.
    ///
    /// # Errors
    /// The source must hold the state of exactly these parameters.
    pub fn load_state(&mut self, source: &dyn TensorSource) -> Result<()> {
        let shapes = source.shapes();
        let ours: BTreeMap<String, Vec<usize>> =
            self.state()?.iter().map(|(name, tensor)| (name.clone(), tensor.dims().to_vec())).collect();
        if shapes != ours {
            let differs = |name: &&String| shapes.get(*name) != ours.get(*name);
            let first = ours.keys().chain(shapes.keys()).find(differs).cloned().unwrap_or_default();
            return Err(Error::data(
                source.origin(),
                format!("the optimiser state of {} tensors", ours.len()),
                format!("{} tensors; the first that differs is `{first}`", shapes.len()),
                "resume with the recipe the checkpoint was written with",
            ));
        }
        for (name, moments) in &mut self.moments {
            let load = |suffix: &str, device: &Device| source.load(&format!("{name}.{suffix}"), device);
            let device = moments.both.device().clone();
            moments.both = Tensor::stack(&[load("exp_avg", &device)?, load("exp_avg_sq", &device)?], 0)?;
            moments.steps = load("step", &Device::Cpu)?.to_scalar::<i64>()? as u64;
        }
        Ok(())
    }
}

/// The factors of one update, rounded to f32 once.
#[derive(Debug, Clone, Copy)]
struct Scalars {
    gradient: f32,
    keep: f32,
    beta1: f32,
    one_minus_beta1: f32,
    beta2: f32,
    one_minus_beta2: f32,
    root_correction2: f32,
    epsilon: f32,
    step_size: f32,
}

impl Scalars {
    fn new(config: &AdamWConfig, steps: u64, learning_rate: f64, weight_decay: f64, scale: f64) -> Self {
        let correction = |beta: f64| 1.0 - beta.powf(steps as f64);
        Self {
            gradient: scale as f32,
            keep: (1.0 - learning_rate * weight_decay) as f32,
            beta1: config.beta1 as f32,
            one_minus_beta1: (1.0 - config.beta1) as f32,
            beta2: config.beta2 as f32,
            one_minus_beta2: (1.0 - config.beta2) as f32,
            root_correction2: correction(config.beta2).sqrt() as f32,
            epsilon: config.epsilon as f32,
            step_size: (learning_rate / correction(config.beta1)) as f32,
        }
    }
}

vectorised! {
    fn update(by: &Scalars, p: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32]) {
        for (((p, m), v), g) in p.iter_mut().zip(m).zip(v).zip(g) {
            let g = g * by.gradient;
            *m = *m * by.beta1 + g * by.one_minus_beta1;
            *v = *v * by.beta2 + g * g * by.one_minus_beta2;
            *p = *p * by.keep - by.step_size * *m / (v.sqrt() / by.root_correction2 + by.epsilon);
        }
    }
}

/// In-place update of a parameter from its gradient. candle lends one storage for writing per operation, so the
/// operation on the parameter runs another one on the moments.
struct Update<'a> {
    moments: &'a Tensor,
    scalars: Scalars,
}

impl InplaceOp2 for Update<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(&self, p: &mut CpuStorage, p_layout: &Layout, g: &CpuStorage, g_layout: &Layout) -> TensorResult<()> {
        let parameter = values_mut(p, p_layout)?;
        let (start, end) = contiguous(g_layout)?;
        let gradient = &g.as_slice::<f32>()?[start..end];
        let inner = UpdateWithMoments { parameter: RefCell::new(parameter), gradient, scalars: self.scalars };
        self.moments.inplace_op1(&inner)
    }
}

struct UpdateWithMoments<'a> {
    parameter: RefCell<&'a mut [f32]>,
    gradient: &'a [f32],
    scalars: Scalars,
}

impl InplaceOp1 for UpdateWithMoments<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(&self, moments: &mut CpuStorage, layout: &Layout) -> TensorResult<()> {
        let scalars = self.scalars;
        let mut parameter = self.parameter.borrow_mut();
        let moments = values_mut(moments, layout)?;
        let (first, second) = moments.split_at_mut(parameter.len());
        parameter
            .par_chunks_mut(CHUNK)
            .zip(first.par_chunks_mut(CHUNK))
            .zip(second.par_chunks_mut(CHUNK))
            .zip(self.gradient.par_chunks(CHUNK))
            .for_each(|(((p, m), v), g)| update(&scalars, p, m, v, g));
        Ok(())
    }
}
