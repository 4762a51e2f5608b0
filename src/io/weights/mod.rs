//! Weight files as sources of named tensors: safetensors, and PyTorch pickles (parsed, never executed).

pub mod clip;
pub mod clouds;
pub mod diffusers;
pub mod efficientnet;
pub mod mit;
pub mod mmseg;
mod pickle;
mod safetensors_file;

pub use pickle::PickleFile;
pub use safetensors_file::{SafetensorsFile, from_bytes, halved, read_metadata, save};

use crate::base::{Error, Result};
use candle_core::{Device, Tensor};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

/// Named tensors that are read one by one, so that a file is never held twice in memory.
pub trait TensorSource: Send + Sync {
    /// What the tensors come from, for messages.
    fn origin(&self) -> String;
    /// Names with shapes, sorted.
    fn shapes(&self) -> BTreeMap<String, Vec<usize>>;
    /// One tensor as f32 (integers stay integers) on `device`.
    fn load(&self, name: &str, device: &Device) -> Result<Tensor>;
}

/// Opens a weight file of any supported format, recognised by its first bytes.
///
/// # Errors
/// A missing, truncated or foreign file.
pub fn open(path: &Path) -> Result<Box<dyn TensorSource>> {
    let mut start = Vec::new();
    let file = std::fs::File::open(path).map_err(|e| Error::io(path, e))?;
    file.take(9).read_to_end(&mut start).map_err(|e| Error::io(path, e))?;
    match start.as_slice() {
        // a zip archive, or a pickle of protocol 2 or later
        [b'P', b'K', ..] | [0x80, 2..=5, ..] if start.get(8) != Some(&b'{') => Ok(Box::new(PickleFile::open(path)?)),
        // the header's length, then JSON
        [_, _, _, _, _, _, _, _, b'{'] => Ok(Box::new(SafetensorsFile::open(path)?)),
        _ => Err(Error::data(
            path,
            "a weight file (safetensors or PyTorch)",
            if start.is_empty() { "an empty file" } else { "bytes of another format" },
            "copy or download the file again",
        )),
    }
}

impl TensorSource for BTreeMap<String, Tensor> {
    fn origin(&self) -> String {
        "tensors in memory".into()
    }

    fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        self.iter().map(|(name, tensor)| (name.clone(), tensor.dims().to_vec())).collect()
    }

    fn load(&self, name: &str, device: &Device) -> Result<Tensor> {
        let tensor = self.get(name).ok_or_else(|| Error::Usage(format!("no tensor named `{name}`")))?;
        Ok(tensor.to_device(device)?)
    }
}

/// A source seen under other names: `rename` gives our name for each of theirs, `None` drops the tensor on purpose.
pub struct Renamed<S> {
    source: S,
    /// our name → their name
    names: BTreeMap<String, String>,
}

impl<S: TensorSource> Renamed<S> {
    /// Wraps `source`.
    pub fn new(source: S, rename: impl Fn(&str) -> Option<String>) -> Self {
        let names = source.shapes().into_keys().filter_map(|theirs| rename(&theirs).map(|ours| (ours, theirs))).collect();
        Self { source, names }
    }
}

impl<S: TensorSource> TensorSource for Renamed<S> {
    fn origin(&self) -> String {
        self.source.origin()
    }

    fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        let shapes = self.source.shapes();
        self.names.iter().map(|(ours, theirs)| (ours.clone(), shapes[theirs].clone())).collect()
    }

    fn load(&self, name: &str, device: &Device) -> Result<Tensor> {
        let theirs = self.names.get(name).ok_or_else(|| Error::Usage(format!("no tensor named `{name}`")))?;
        self.source.load(theirs, device)
    }
}

/// For readers of different parts of one file.
impl TensorSource for Arc<dyn TensorSource> {
    fn origin(&self) -> String {
        (**self).origin()
    }
    fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        (**self).shapes()
    }
    fn load(&self, name: &str, device: &Device) -> Result<Tensor> {
        (**self).load(name, device)
    }
}

impl TensorSource for Box<dyn TensorSource> {
    fn origin(&self) -> String {
        (**self).origin()
    }
    fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        (**self).shapes()
    }
    fn load(&self, name: &str, device: &Device) -> Result<Tensor> {
        (**self).load(name, device)
    }
}

/// What a source holds, for messages: `12 tensors such as …`.
pub fn sample<N: AsRef<str>>(names: impl IntoIterator<Item = N>) -> String {
    let mut names = names.into_iter();
    match names.next() {
        Some(first) => format!("{} tensors such as `{}`", 1 + names.count(), first.as_ref()),
        None => "no tensors".into(),
    }
}
