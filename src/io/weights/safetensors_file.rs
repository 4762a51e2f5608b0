//! Safetensors files, memory-mapped, with their string metadata.

use super::TensorSource;
use crate::base::{Error, Result};
use candle_core::{DType, Device, Tensor};
use safetensors::SafeTensors;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// An open safetensors file. Tensors are read on demand.
pub struct SafetensorsFile {
    path: PathBuf,
    map: memmap2::Mmap,
}

impl SafetensorsFile {
    /// Opens and checks the header (sizes are checked against the file's length before anything is allocated).
    ///
    /// # Errors
    /// A missing, truncated or foreign file.
    pub fn open(path: &Path) -> Result<Self> {
        let file = std::fs::File::open(path).map_err(|e| Error::io(path, e))?;
        #[allow(unsafe_code)]
        // SAFETY: the map is read-only. A file changed by another process while we read may give wrong numbers, as with
        // any reader; all offsets are checked by the parser.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|e| Error::io(path, e))?;
        let opened = Self { path: path.into(), map };
        opened.parse()?;
        Ok(opened)
    }

    fn parse(&self) -> Result<SafeTensors<'_>> {
        SafeTensors::deserialize(&self.map).map_err(|e| {
            Error::data(
                &self.path,
                "a whole safetensors file",
                format!("{} bytes that do not parse ({e})", self.map.len()),
                "copy or download the file again; it is truncated or of another format",
            )
        })
    }

    /// The file's string metadata (`__metadata__`), empty when there is none.
    pub fn metadata(&self) -> Result<BTreeMap<String, String>> {
        let (_, header) = SafeTensors::read_metadata(&self.map)
            .map_err(|e| Error::data(&self.path, "a safetensors header", e.to_string(), "copy or download the file again"))?;
        Ok(header.metadata().clone().unwrap_or_default().into_iter().collect())
    }
}

impl TensorSource for SafetensorsFile {
    fn origin(&self) -> String {
        self.path.display().to_string()
    }

    fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        // `open` has parsed the same bytes.
        let Ok(tensors) = self.parse() else { return BTreeMap::new() };
        tensors.iter().map(|(name, view)| (name.to_string(), view.shape().to_vec())).collect()
    }

    fn load(&self, name: &str, device: &Device) -> Result<Tensor> {
        use candle_core::safetensors::Load;
        let tensors = self.parse()?;
        let view = tensors.tensor(name).map_err(|_| {
            Error::data(
                &self.path,
                format!("a tensor named `{name}`"),
                "none of that name",
                "check that the file belongs to this model",
            )
        })?;
        let tensor = view.load(device)?;
        Ok(match tensor.dtype() {
            DType::F16 | DType::BF16 | DType::F64 => tensor.to_dtype(DType::F32)?,
            _ => tensor,
        })
    }
}

/// The string metadata of the file at `path`.
pub fn read_metadata(path: &Path) -> Result<BTreeMap<String, String>> {
    SafetensorsFile::open(path)?.metadata()
}

/// Writes tensors (sorted by name) with string metadata, atomically and one tensor at a time.
pub fn save(path: &Path, tensors: &BTreeMap<String, Tensor>, metadata: &BTreeMap<String, String>) -> Result<()> {
    let metadata: HashMap<String, String> = metadata.clone().into_iter().collect();
    crate::io::atomic::write_path(path, |temporary| {
        safetensors::serialize_to_file(tensors, Some(metadata), temporary).map_err(|e| match e {
            safetensors::SafeTensorError::IoError(e) => Error::io(path, e),
            e => {
                let what = format!("{}: cannot serialise weights: {e}", path.display());
                Error::environment(what, "report this as a defect")
            }
        })
    })
}
