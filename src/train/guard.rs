//! Checks that a training trains: a gradient for every parameter, parameters that move, losses that are numbers.
//!
//! A cut graph makes no error in candle, only parameters that never change. The first steps tell.

use super::Gradients;
use super::gradients::with_values;
use crate::base::metrics::Metrics;
use crate::base::{Error, Result};
use candle_core::Var;
use std::collections::{BTreeMap, BTreeSet};

/// Below this learning rate a parameter may rightly stay where it is: the step is smaller than half its last f32 digit.
const MOVING_RATE: f64 = 1e-6;
/// Steps in which a gradient may be nothing but zeros: stochastic depth may leave a block out for all images of a small batch.
const PATIENCE: usize = 50;

/// Whether a parameter changes nothing by design: the same vector on all keys adds the same to all scores of a query, which the
/// softmax takes away. Its gradient is rounding, too small to move a value of any size.
fn cancels(name: &str) -> bool {
    ["k_proj.bias", "key.bias", "to_k.bias"].iter().any(|ending| name.ends_with(ending))
}

/// Watches the first steps of one training. Costs one pass over the parameters at the start and one at the check.
pub struct Guard<'a> {
    /// Digest of each parameter before the first step; emptied once the movement is checked.
    start: BTreeMap<String, u64>,
    may_be_zero: Box<dyn Fn(&str) -> bool + 'a>,
    /// Parameters whose gradients were all zeros so far; `None` before the first step.
    pending: Option<BTreeSet<String>>,
    steps: usize,
}

impl<'a> Guard<'a> {
    /// Call before the first step. `may_be_zero` says which parameters may have an all-zero gradient in the first steps
    /// (and so may stay in place), e.g. the first factor of a low-rank adapter, whose second factor starts at zero.
    pub fn new<'p>(
        parameters: impl IntoIterator<Item = (&'p str, &'p Var)>,
        may_be_zero: impl Fn(&str) -> bool + 'a,
    ) -> Result<Self> {
        let start = digests(parameters)?;
        Ok(Self { start, may_be_zero: Box::new(may_be_zero), pending: None, steps: 0 })
    }

    /// Call after each optimiser step with its gradients and learning rate. Checks that every parameter has a gradient in the first
    /// call and one that is not all zeros in one of the first 50, and that parameters with such a gradient moved as soon as the
    /// learning rate is large enough to move f32 values (1e-6); then does nothing.
    ///
    /// # Errors
    /// Names all parameters without gradient, with all-zero gradients, or that did not move.
    pub fn after_step<'p>(
        &mut self,
        gradients: &Gradients,
        learning_rate: f64,
        parameters: impl IntoIterator<Item = (&'p str, &'p Var)>,
    ) -> Result<()> {
        let pending = match self.pending.take() {
            None => self.without_values(gradients, self.start.keys())?,
            Some(pending) => self.without_values(gradients, &pending)?,
        };
        self.steps += 1;
        if self.steps == PATIENCE {
            complain(&[("with only zeros as gradient", pending.iter().cloned().collect())])?;
        }
        if learning_rate >= MOVING_RATE && !self.start.is_empty() {
            let start = std::mem::take(&mut self.start);
            let may_stay = |name: &str| (self.may_be_zero)(name) || cancels(name) || pending.contains(name);
            let still = |(name, now): &(String, u64)| start.get(name) == Some(now) && !may_stay(name);
            let still = digests(parameters)?.into_iter().filter(still).map(|(name, _)| name).collect();
            complain(&[("that did not move", still)])?;
        }
        self.pending = Some(pending);
        Ok(())
    }

    /// Those of `names` whose gradients are all zeros and should not be.
    fn without_values<'n>(&self, gradients: &Gradients, names: impl IntoIterator<Item = &'n String>) -> Result<BTreeSet<String>> {
        let (mut missing, mut zero) = (Vec::new(), BTreeSet::new());
        for name in names {
            match gradients.get(name) {
                None => missing.push(name.clone()),
                Some(_) if (self.may_be_zero)(name) || cancels(name) => {}
                Some(gradient) if with_values(gradient, |g| g.iter().all(|x| *x == 0.0))? => drop(zero.insert(name.clone())),
                Some(_) => {}
            }
        }
        complain(&[("without gradient", missing)])?;
        Ok(zero)
    }
}

/// Ok when every number of a step is finite.
///
/// # Errors
/// Names the step and the terms that are not.
pub fn finite(step: u64, metrics: &Metrics) -> Result<()> {
    let bad: Vec<String> =
        metrics.iter().filter(|(_, value)| !value.is_finite()).map(|(name, value)| format!("`{name}` is {value}")).collect();
    if bad.is_empty() {
        return Ok(());
    }
    Err(Error::Usage(format!(
        "step {step}: {}\n  next: lower the learning rate or clip gradients, and resume from the last checkpoint",
        bad.join(", ")
    )))
}

fn complain(problems: &[(&str, Vec<String>)]) -> Result<()> {
    let lines: Vec<String> = problems
        .iter()
        .filter(|(_, names)| !names.is_empty())
        .map(|(what, names)| {
            let more = if names.len() > 20 { ", …" } else { "" };
            format!("{} {what}: {}{more}", names.len(), names[..names.len().min(20)].join(", "))
        })
        .collect();
    if lines.is_empty() {
        return Ok(());
    }
    Err(Error::environment(
        format!("some trainable parameters are not trained; {}", lines.join("; ")),
        "take larger crops if they are tiny (batch norm over two values has no gradient); else report this as a defect: part \
         of the network is cut off from the loss",
    ))
}

/// A number per parameter that changes with any of its bits.
fn digests<'p>(parameters: impl IntoIterator<Item = (&'p str, &'p Var)>) -> Result<BTreeMap<String, u64>> {
    let fold = |hash: u64, value: &f32| (hash ^ u64::from(value.to_bits())).wrapping_mul(0x0100_0000_01b3);
    let digest = |var: &Var| with_values(var, |values| values.iter().fold(0xcbf2_9ce4_8422_2325, fold));
    parameters.into_iter().map(|(name, var)| Ok((name.to_string(), digest(var)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::optim::{AdamW, AdamWConfig, Group};
    use candle_core::{Device, Tensor};

    fn optimizer(names: &[&str]) -> AdamW {
        let var = |value: f32| Var::new(&[value, 1.0], &Device::Cpu).unwrap();
        let parameters = names.iter().map(|name| (name.to_string(), var(2.0))).collect();
        let group = Group { name: "all".into(), parameters, learning_rate_scale: 1.0, weight_decay: 0.0 };
        AdamW::new(vec![group], AdamWConfig::default()).unwrap()
    }

    /// loss = Σ kept² + Σ cut², the second through a `detach`, as a layer without backward would do, + 0 · zeroed.
    fn step(optimizer: &mut AdamW, learning_rate: f64) -> Gradients {
        step_with(optimizer, learning_rate, &|name| name.contains("zeroed"))
    }

    fn step_with(optimizer: &mut AdamW, learning_rate: f64, zeroed: &dyn Fn(&str) -> bool) -> Gradients {
        let mut loss = Tensor::zeros((), candle_core::DType::F32, &Device::Cpu).unwrap();
        for (name, var) in optimizer.parameters() {
            let term = match name {
                "cut" => var.detach().sqr(),
                name if zeroed(name) => var.as_tensor() * var.zeros_like().unwrap(),
                _ => var.sqr(),
            };
            loss = (loss + term.unwrap().sum_all().unwrap()).unwrap();
        }
        let gradients = Gradients::of(&loss, optimizer.parameters()).unwrap();
        optimizer.step(&gradients, learning_rate).unwrap();
        gradients
    }

    #[test]
    fn a_cut_graph_is_named() {
        let mut optimizer = optimizer(&["cut", "kept"]);
        let mut guard = Guard::new(optimizer.parameters(), |_| false).unwrap();
        let gradients = step(&mut optimizer, 1e-3);
        let message = guard.after_step(&gradients, 1e-3, optimizer.parameters()).unwrap_err().to_string();
        assert!(message.contains("1 without gradient: cut\n"), "{message}");
    }

    /// Zeros from step to step, as stochastic depth has them now and then, and zeros alone.
    #[test]
    fn zeros_may_come_but_not_stay() {
        let mut optimizer = optimizer(&["kept", "zeroed", "sometimes zeroed"]);
        let mut guard = Guard::new(optimizer.parameters(), |_| false).unwrap();
        for round in 1..PATIENCE {
            let zeroed = |name: &str| name == "zeroed" || (name == "sometimes zeroed" && round != 7);
            let gradients = step_with(&mut optimizer, 1e-3, &zeroed);
            guard.after_step(&gradients, 1e-3, optimizer.parameters()).unwrap();
        }
        let gradients = step(&mut optimizer, 1e-3);
        let message = guard.after_step(&gradients, 1e-3, optimizer.parameters()).unwrap_err().to_string();
        assert!(message.contains("1 with only zeros as gradient: zeroed\n"), "{message}");
    }

    #[test]
    fn declared_zeros_pass_and_movement_is_checked_once_the_rate_is_large_enough() {
        let mut optimizer = optimizer(&["kept", "zeroed"]);
        let mut guard = Guard::new(optimizer.parameters(), |name| name == "zeroed").unwrap();
        let gradients = step(&mut optimizer, 1e-12);
        guard.after_step(&gradients, 1e-12, optimizer.parameters()).unwrap();
        let message = guard.after_step(&gradients, 1e-3, optimizer.parameters()).unwrap_err().to_string();
        assert!(message.contains("1 that did not move: kept"), "{message}");
    }

    #[test]
    fn the_bias_of_keys_may_stay() {
        let mut optimizer = optimizer(&["attn.q_proj.bias", "attn.zeroed.k_proj.bias", "attn.zeroed.to_k.bias"]);
        let mut guard = Guard::new(optimizer.parameters(), |_| false).unwrap();
        let gradients = step(&mut optimizer, 1e-3);
        guard.after_step(&gradients, 1e-3, optimizer.parameters()).unwrap();
    }

    #[test]
    fn a_healthy_step_passes() {
        let mut optimizer = optimizer(&["kept"]);
        let mut guard = Guard::new(optimizer.parameters(), |_| false).unwrap();
        let gradients = step(&mut optimizer, 1e-3);
        guard.after_step(&gradients, 1e-3, optimizer.parameters()).unwrap();
    }

    #[test]
    fn a_loss_that_is_no_number_stops_with_step_and_term() {
        let metrics = Metrics::from([("loss.mix".into(), f64::NAN), ("loss.source".into(), 1.0)]);
        let message = finite(7, &metrics).unwrap_err().to_string();
        assert!(message.contains("step 7: `loss.mix` is NaN\n"), "{message}");
    }
}
