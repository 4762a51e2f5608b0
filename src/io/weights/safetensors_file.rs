//! Safetensors files, memory-mapped, with their string metadata.

use super::TensorSource;
use crate::base::{Error, Result};
use candle_core::{DType, Device, Tensor};
use safetensors::{SafeTensors, View};
use serde_json::json;
use std::collections::BTreeMap;
use std::io::Write;
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

/// Writes tensors with string metadata, atomically and one tensor at a time.
///
/// The crate's own writer keeps metadata in a hash map, so that equal content gives different bytes in every run; ours
/// sorts it. Tensors follow by descending alignment, then by name, as in the crate.
pub fn save(path: &Path, tensors: &BTreeMap<String, Tensor>, metadata: &BTreeMap<String, String>) -> Result<()> {
    let mut sorted: Vec<(&String, &Tensor)> = tensors.iter().collect();
    sorted.sort_by_key(|(_, tensor)| std::cmp::Reverse(View::dtype(tensor)));
    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".into(), json!(metadata));
    }
    let mut offset = 0;
    for (name, tensor) in &sorted {
        let end = offset + View::data_len(tensor);
        let dtype = View::dtype(tensor);
        header.insert((*name).clone(), json!({ "dtype": dtype, "shape": tensor.dims(), "data_offsets": [offset, end] }));
        offset = end;
    }
    let mut header = serde_json::Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    crate::io::atomic::write_with(path, |file| {
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        sorted.iter().try_for_each(|(_, tensor)| file.write_all(&View::data(tensor)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_content_gives_equal_bytes_that_the_crate_reads() {
        let dir = tempfile::tempdir().unwrap();
        let tensors: BTreeMap<String, Tensor> = BTreeMap::from([
            ("count".into(), Tensor::new(7i64, &Device::Cpu).unwrap()),
            ("half".into(), Tensor::new(&[0.5f32], &Device::Cpu).unwrap().to_dtype(DType::BF16).unwrap()),
            ("view".into(), Tensor::new(&[[1f32, 2.0], [3.0, 4.0]], &Device::Cpu).unwrap().t().unwrap()),
        ]);
        let metadata: BTreeMap<String, String> = ('a'..'k').map(|key| (key.to_string(), "x".into())).collect();
        let paths = ["one", "two"].map(|name| dir.path().join(name));
        for path in &paths {
            save(path, &tensors, &metadata).unwrap();
        }
        assert!(std::fs::read(&paths[0]).unwrap() == std::fs::read(&paths[1]).unwrap());
        let file = SafetensorsFile::open(&paths[0]).unwrap();
        assert_eq!(file.metadata().unwrap(), metadata);
        assert_eq!(file.load("count", &Device::Cpu).unwrap().to_scalar::<i64>().unwrap(), 7);
        assert_eq!(file.load("half", &Device::Cpu).unwrap().to_vec1::<f32>().unwrap(), [0.5]);
        assert_eq!(file.load("view", &Device::Cpu).unwrap().to_vec2::<f32>().unwrap(), [[1.0, 3.0], [2.0, 4.0]]);
    }
}
