//! Named parameters: how layers ask for them ([`Builder`]) and where they live ([`ParamStore`]).

use super::{AdapterPlan, Init};
use crate::base::{Error, Result, Rng, device};
use crate::io::weights::TensorSource;
use candle_core::{DType, Device, Tensor, Var};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::sync::{Arc, Mutex, MutexGuard};

/// What a named tensor is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Trained by gradient descent (unless frozen).
    Weight,
    /// State that a forward pass updates itself, such as batch-norm statistics.
    Buffer,
}

/// One named tensor of a model.
#[derive(Debug, Clone)]
pub struct Param {
    /// The value. Layers hold tensors that share its storage.
    pub var: Var,
    /// Weight or buffer.
    pub kind: Kind,
}

/// All tensors of a model, sorted by name, so that nothing depends on hashing or on the order of construction.
#[derive(Debug, Clone, Default)]
pub struct ParamStore {
    params: BTreeMap<String, Param>,
}

impl ParamStore {
    /// Iterates in the order of names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Param)> {
        self.params.iter().map(|(name, param)| (name.as_str(), param))
    }

    /// The weights, without buffers, in the order of names.
    pub fn weights(&self) -> impl Iterator<Item = (&str, &Var)> {
        self.iter().filter(|(_, p)| p.kind == Kind::Weight).map(|(name, p)| (name, &p.var))
    }

    /// One tensor by name.
    pub fn get(&self, name: &str) -> Option<&Var> {
        self.params.get(name).map(|p| &p.var)
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.params.len()
    }

    /// True without tensors.
    pub fn is_empty(&self) -> bool {
        self.params.is_empty()
    }

    /// Number of values in weights.
    pub fn parameter_count(&self) -> usize {
        self.weights().map(|(_, var)| var.elem_count()).sum()
    }

    /// The part of the store whose names satisfy `keep`. Values are shared, not copied.
    pub fn select(&self, keep: impl Fn(&str) -> bool) -> Self {
        let params = self.params.iter().filter(|(name, _)| keep(name)).map(|(n, p)| (n.clone(), p.clone())).collect();
        Self { params }
    }

    /// The same tensors under `prefix.`; values are shared. Merge several models into one store with [`Self::merge`].
    pub fn prefixed(&self, prefix: &str) -> Self {
        Self { params: self.params.iter().map(|(n, p)| (format!("{prefix}.{n}"), p.clone())).collect() }
    }

    /// The tensors below `prefix.` without it; values are shared. The inverse of [`Self::prefixed`].
    pub fn stripped(&self, prefix: &str) -> Self {
        let strip = |name: &str| Some(name.strip_prefix(prefix)?.strip_prefix('.')?.to_string());
        Self { params: self.params.iter().filter_map(|(n, p)| Some((strip(n)?, p.clone()))).collect() }
    }

    /// Takes over the tensors of `other` (sharing values). Equal names are replaced.
    pub fn merge(&mut self, other: &Self) {
        self.params.extend(other.params.iter().map(|(n, p)| (n.clone(), p.clone())));
    }

    /// Tensors for writing, by name. Values are shared with the store: write them before the next step.
    pub fn tensors(&self) -> BTreeMap<String, Tensor> {
        self.params.iter().map(|(name, p)| (name.clone(), p.var.as_detached_tensor())).collect()
    }

    /// Copies values in from `source`, which must hold exactly our names and shapes.
    ///
    /// # Errors
    /// Lists every missing, unexpected and misshaped tensor.
    pub fn load(&self, source: &dyn TensorSource) -> Result<()> {
        let shapes = source.shapes();
        let mut report = Report::new(source.origin());
        report.unexpected = shapes.keys().filter(|name| !self.params.contains_key(*name)).cloned().collect();
        for (name, param) in &self.params {
            match shapes.get(name) {
                None => report.missing.push(name.clone()),
                Some(found) if found != param.var.dims() => report.misshaped(name, param.var.dims(), found),
                Some(_) => {}
            }
        }
        report.into_result()?;
        for (name, param) in &self.params {
            param.var.set(&source.load(name, param.var.device())?)?;
        }
        Ok(())
    }

    /// A store of the same names with its own copies of the values.
    pub fn copied(&self) -> Result<Self> {
        let copy = |param: &Param| -> Result<Param> {
            Ok(Param { var: Var::from_tensor(&param.var.as_tensor().copy()?)?, kind: param.kind })
        };
        Ok(Self { params: self.params.iter().map(|(name, param)| Ok((name.clone(), copy(param)?))).collect::<Result<_>>()? })
    }

    /// Copies all values (weights and buffers) from a store with the same names.
    pub fn copy_from(&self, other: &Self) -> Result<()> {
        for (name, param) in &self.params {
            if let Some(var) = other.get(name) {
                param.var.set(var.as_tensor())?;
            }
        }
        Ok(())
    }
}

/// What a strict load found.
#[derive(Debug, Default, Clone)]
pub struct Report {
    /// Where the tensors come from.
    pub origin: String,
    /// Names the model has and the source lacks.
    pub missing: Vec<String>,
    /// Names the source has and the model lacks.
    pub unexpected: Vec<String>,
    /// Lines `name: expected […], found […]`.
    pub shapes: Vec<String>,
}

impl Report {
    fn new(origin: String) -> Self {
        Self { origin, ..Self::default() }
    }

    fn misshaped(&mut self, name: &str, expected: &[usize], found: &[usize]) {
        self.shapes.push(format!("{name}: expected {expected:?}, found {found:?}"));
    }

    /// Ok when every list is empty.
    ///
    /// # Errors
    /// [`Error::Data`] with the first twenty names of each list and the counts.
    pub fn into_result(self) -> Result<()> {
        if self.missing.is_empty() && self.unexpected.is_empty() && self.shapes.is_empty() {
            return Ok(());
        }
        let mut lines = Vec::new();
        for (what, names) in [("missing", &self.missing), ("unexpected", &self.unexpected), ("misshaped", &self.shapes)] {
            if !names.is_empty() {
                let more = if names.len() > 20 { ", …" } else { "" };
                lines.push(format!("{} {what}: {}{more}", names.len(), names[..names.len().min(20)].join(", ")));
            }
        }
        Err(Error::data(
            self.origin,
            "exactly the tensors of this model",
            lines.join("; "),
            "check that the file belongs to this architecture and number of classes",
        ))
    }
}

enum Source {
    /// Every parameter is new.
    Random,
    /// Values come from a file.
    Tensors(Box<dyn TensorSource>, BTreeMap<String, Vec<usize>>),
    /// Views on parameters that exist already.
    Store(ParamStore),
}

struct State {
    source: Source,
    seed: u64,
    device: Device,
    store: ParamStore,
    used: BTreeSet<String>,
    report: Report,
}

/// Hands parameters to layers under dotted names, and collects them into a [`ParamStore`].
///
/// A model is built by walking the names of its published checkpoint: `builder.pp("mlp").pp("fc1")`. Cloning and
/// [`Builder::pp`] are cheap and share the state.
#[derive(Clone)]
pub struct Builder {
    state: Arc<Mutex<State>>,
    prefix: String,
    frozen: bool,
    dtype: DType,
    adapters: Option<Arc<AdapterPlan>>,
}

impl Builder {
    fn new(source: Source, seed: u64, origin: String) -> Self {
        let state = State {
            source,
            seed,
            device: device::current(),
            store: ParamStore::default(),
            used: BTreeSet::new(),
            report: Report::new(origin),
        };
        Self {
            state: Arc::new(Mutex::new(state)),
            prefix: String::new(),
            frozen: false,
            dtype: device::current_dtype(),
            adapters: None,
        }
    }

    /// New parameters; each is drawn from a stream of `seed` and its own name.
    pub fn random(seed: u64) -> Self {
        Self::new(Source::Random, seed, "new parameters".into())
    }

    /// Values from `source`. Tensors the source lacks are drawn from `seed` and reported by [`Builder::finish`].
    pub fn from_source(source: impl TensorSource + 'static, seed: u64) -> Self {
        let (origin, shapes) = (source.origin(), source.shapes());
        Self::new(Source::Tensors(Box::new(source), shapes), seed, origin)
    }

    /// A second model over the parameters of `store`: same storage, so it always sees the current values.
    /// With [`Builder::frozen`] it records no graph: the way to predict while training.
    pub fn from_store(store: &ParamStore) -> Self {
        Self::new(Source::Store(store.clone()), 0, "the parameter store".into())
    }

    /// The builder one name further down.
    pub fn pp(&self, name: impl Display) -> Self {
        let prefix = if self.prefix.is_empty() { name.to_string() } else { format!("{}.{name}", self.prefix) };
        Self { prefix, ..self.clone() }
    }

    /// Layers built from here get tensors without gradient; operations skip the gradient of such weights.
    pub fn frozen(&self) -> Self {
        Self { frozen: true, ..self.clone() }
    }

    /// Networks built from here compute in `dtype` instead of the process' type.
    pub fn computing_in(&self, dtype: DType) -> Self {
        Self { dtype, ..self.clone() }
    }

    /// What networks compute in. They turn their inputs into it and their results into f32 again; layers follow their inputs and round
    /// f32 weights at use.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Linear layers built from here whose name is in the plan get a low-rank adapter, stored under its own names.
    pub fn with_adapters(&self, plan: AdapterPlan) -> Self {
        Self { adapters: Some(Arc::new(plan)), ..self.clone() }
    }

    /// The dotted name of this place, e.g. `down_blocks.0.attentions.0`.
    pub fn path(&self) -> &str {
        &self.prefix
    }

    /// The plan for low-rank adapters, if any.
    pub fn adapters(&self) -> Option<&AdapterPlan> {
        self.adapters.as_deref()
    }

    /// The device parameters are made on.
    pub fn device(&self) -> Device {
        self.lock().device.clone()
    }

    /// True when the source holds `name` below this place. Always false for new parameters.
    pub fn contains(&self, name: &str) -> bool {
        let name = self.full(name);
        match &self.lock().source {
            Source::Random => false,
            Source::Tensors(_, shapes) => shapes.contains_key(&name),
            Source::Store(store) => store.get(&name).is_some(),
        }
    }

    /// A weight.
    pub fn get(&self, shape: &[usize], name: &str, init: Init) -> Result<Tensor> {
        let var = self.param(shape, name, init, Kind::Weight)?;
        Ok(if self.frozen { var.as_detached_tensor() } else { var.as_tensor().clone() })
    }

    /// A weight of an adapter: trainable even below [`Builder::frozen`], and new (not missing) where the source lacks it.
    pub fn get_adapter(&self, shape: &[usize], name: &str, init: Init) -> Result<Tensor> {
        let var = if self.contains(name) || self.has(name) {
            self.param(shape, name, init, Kind::Weight)?
        } else {
            let name = self.full(name);
            let mut state = self.lock();
            let var = state.draw(&name, shape, init)?;
            state.store.params.insert(name, Param { var: var.clone(), kind: Kind::Weight });
            var
        };
        Ok(var.as_tensor().clone())
    }

    /// True when a layer has already asked for `name`.
    fn has(&self, name: &str) -> bool {
        self.lock().store.params.contains_key(&self.full(name))
    }

    /// The builder with another seed for new parameters.
    pub fn seeded(self, seed: u64) -> Self {
        self.lock().seed = seed;
        self
    }

    /// State that the layer updates itself.
    pub fn buffer(&self, shape: &[usize], name: &str, init: Init) -> Result<Var> {
        self.param(shape, name, init, Kind::Buffer)
    }

    fn param(&self, shape: &[usize], name: &str, init: Init, kind: Kind) -> Result<Var> {
        let name = self.full(name);
        let mut state = self.lock();
        if let Some(param) = state.store.params.get(&name) {
            return Ok(param.var.clone()); // tied: two layers share one tensor
        }
        let var = state.make(&name, shape, init)?;
        state.store.params.insert(name, Param { var: var.clone(), kind });
        Ok(var)
    }

    /// The store, after a strict check: the source must hold exactly what the model asked for.
    pub fn finish(self) -> Result<ParamStore> {
        self.finish_partial(&[], &[])
    }

    /// Like [`Builder::finish`], but names that start with one of `may_miss` may be missing, and names that start with
    /// one of `may_ignore` may be left over.
    pub fn finish_partial(self, may_miss: &[&str], may_ignore: &[&str]) -> Result<ParamStore> {
        let mut state = self.lock();
        let mut report = std::mem::take(&mut state.report);
        if let Source::Tensors(_, shapes) = &state.source {
            report.unexpected = shapes.keys().filter(|name| !state.used.contains(*name)).cloned().collect();
        }
        let starts = |name: &String, list: &[&str]| list.iter().any(|prefix| name.starts_with(prefix));
        report.missing.retain(|name| !starts(name, may_miss));
        report.unexpected.retain(|name| !starts(name, may_ignore));
        report.into_result()?;
        Ok(std::mem::take(&mut state.store))
    }

    fn full(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_string() } else { format!("{}.{name}", self.prefix) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while building leaves nothing worth protecting: the builder is used by one thread.
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl State {
    fn make(&mut self, name: &str, shape: &[usize], init: Init) -> Result<Var> {
        match &self.source {
            Source::Store(store) => match store.get(name) {
                Some(var) if var.dims() == shape => return Ok(var.clone()),
                Some(var) => self.report.misshaped(name, shape, var.dims()),
                None => self.report.missing.push(name.into()),
            },
            Source::Tensors(tensors, shapes) => match shapes.get(name) {
                Some(found) => {
                    self.used.insert(name.into());
                    if found == shape {
                        return Ok(Var::from_tensor(&tensors.load(name, &self.device)?)?);
                    }
                    self.report.misshaped(name, shape, found);
                }
                None => self.report.missing.push(name.into()),
            },
            Source::Random => {}
        }
        self.draw(name, shape, init)
    }

    fn draw(&self, name: &str, shape: &[usize], init: Init) -> Result<Var> {
        let mut rng = Rng::stream(self.seed, "init", &[fnv(name)]);
        Ok(Var::from_tensor(&init.draw(shape, &mut rng, &self.device)?)?)
    }
}

/// FNV-1a, 64 bit: a stable number for a parameter name.
fn fnv(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two_layers(builder: &Builder) -> Result<(Tensor, Tensor)> {
        Ok((builder.pp("a").get(&[2, 3], "weight", Init::FanInUniform)?, builder.get(&[3], "bias", Init::Zeros)?))
    }

    #[test]
    fn strict_loading_names_what_is_wrong() {
        let t = |shape: &[usize]| Tensor::zeros(shape, candle_core::DType::F32, &Device::Cpu).unwrap();
        let file = BTreeMap::from([("a.weight".to_string(), t(&[3, 2])), ("extra".to_string(), t(&[1]))]);
        let builder = Builder::from_source(file, 0);
        two_layers(&builder).unwrap();
        let message = builder.finish().unwrap_err().to_string();
        for part in ["1 missing: bias", "1 unexpected: extra", "a.weight: expected [2, 3], found [3, 2]"] {
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn a_frozen_view_follows_the_store_without_gradient() {
        let builder = Builder::random(1);
        two_layers(&builder).unwrap();
        let store = builder.finish().unwrap();
        let view = Builder::from_store(&store).frozen();
        let (weight, _) = two_layers(&view).unwrap();
        assert!(!weight.track_op());
        store.get("a.weight").unwrap().set(&Tensor::ones((2, 3), candle_core::DType::F32, &Device::Cpu).unwrap()).unwrap();
        assert_eq!(weight.sum_all().unwrap().to_scalar::<f32>().unwrap(), 6.0);
    }

    #[test]
    fn initial_values_do_not_depend_on_the_order_of_construction() {
        let first = Builder::random(5);
        let (a, _) = two_layers(&first).unwrap();
        let second = Builder::random(5);
        second.get(&[3], "bias", Init::Zeros).unwrap();
        let (b, _) = two_layers(&second).unwrap();
        assert_eq!(a.to_vec2::<f32>().unwrap(), b.to_vec2::<f32>().unwrap());
    }
}
