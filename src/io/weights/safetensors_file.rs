//! Safetensors files with their string metadata. Values are read when they are asked for, so that a model is never in memory
//! twice.

use super::TensorSource;
use crate::base::{Error, Result};
use candle_core::safetensors::Load;
use candle_core::{DType, Device, Tensor};
use safetensors::tensor::{Metadata, TensorView};
use safetensors::{Dtype, SafeTensors, View};
use serde_json::json;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Longest header that is read; the limit of the format's own crate.
const MAX_HEADER: u64 = 100_000_000;

/// An open safetensors file.
pub struct SafetensorsFile {
    path: PathBuf,
    file: Mutex<File>,
    header: Metadata,
    /// Position of the first value.
    start: u64,
}

impl SafetensorsFile {
    /// Opens and checks the header (sizes are checked against the file's length before anything is allocated).
    ///
    /// # Errors
    /// A missing, truncated or foreign file.
    pub fn open(path: &Path) -> Result<Self> {
        let failed = |e| Error::io(path, e);
        let mut file = File::open(path).map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        let foreign = |reason: String| {
            Error::data(
                path,
                "a whole safetensors file",
                format!("{length} bytes that do not parse ({reason})"),
                "copy or download the file again; it is truncated or of another format",
            )
        };
        let mut size = [0; 8];
        file.read_exact(&mut size).map_err(|_| foreign("no header".into()))?;
        let size = u64::from_le_bytes(size);
        if size > MAX_HEADER.min(length) {
            return Err(foreign(format!("a header of {size} bytes")));
        }
        let mut text = vec![0; size as usize];
        file.read_exact(&mut text).map_err(|_| foreign("half a header".into()))?;
        let header: Metadata = serde_json::from_slice(&text).map_err(|e| foreign(e.to_string()))?;
        let (start, values) = (8 + size, header.data_len() as u64);
        if start.checked_add(values) != Some(length) {
            return Err(foreign(format!("the header tells of {values} bytes of values")));
        }
        Ok(Self { path: path.into(), file: Mutex::new(file), header, start })
    }

    /// The file's string metadata (`__metadata__`), empty when there is none.
    pub fn metadata(&self) -> BTreeMap<String, String> {
        self.header.metadata().clone().unwrap_or_default().into_iter().collect()
    }

    /// The 16 bit type that all matrices of the file have, else f32.
    pub fn number_type(&self) -> DType {
        let mut types = self.header.tensors().into_values().filter(|info| info.shape.len() > 1).map(|info| info.dtype);
        match types.next() {
            Some(first @ (Dtype::F16 | Dtype::BF16)) if types.all(|other| other == first) => {
                if first == Dtype::F16 {
                    DType::F16
                } else {
                    DType::BF16
                }
            }
            _ => DType::F32,
        }
    }

    fn bytes(&self, (start, end): (usize, usize)) -> std::io::Result<Vec<u8>> {
        let mut bytes = vec![0; end - start];
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(self.start + start as u64))?;
        file.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

impl TensorSource for SafetensorsFile {
    fn origin(&self) -> String {
        self.path.display().to_string()
    }

    fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        self.header.tensors().into_iter().map(|(name, info)| (name, info.shape.clone())).collect()
    }

    fn load(&self, name: &str, device: &Device) -> Result<Tensor> {
        let info = self.header.info(name).ok_or_else(|| {
            Error::data(
                &self.path,
                format!("a tensor named `{name}`"),
                "none of that name",
                "check that the file belongs to this model",
            )
        })?;
        let bytes = self.bytes(info.data_offsets).map_err(|e| Error::io(&self.path, e))?;
        let tensor = TensorView::new(info.dtype, info.shape.clone(), &bytes).map_err(candle_core::Error::from)?.load(device)?;
        in_single_precision(tensor)
    }
}

/// All tensors of a safetensors file in memory, as f32 where they are 16 bit, and its string metadata; `name` is for messages.
///
/// # Errors
/// Bytes of another format.
pub fn from_bytes(bytes: &[u8], name: &str) -> Result<(BTreeMap<String, Tensor>, BTreeMap<String, String>)> {
    let foreign = |e: safetensors::SafeTensorError| {
        Error::data(name, "a whole safetensors file", e.to_string(), "copy or download the file again")
    };
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(foreign)?;
    let mut tensors = BTreeMap::new();
    for (name, view) in SafeTensors::deserialize(bytes).map_err(foreign)?.tensors() {
        tensors.insert(name, in_single_precision(view.load(&Device::Cpu)?)?);
    }
    Ok((tensors, header.metadata().clone().unwrap_or_default().into_iter().collect()))
}

fn in_single_precision(tensor: Tensor) -> Result<Tensor> {
    Ok(match tensor.dtype() {
        DType::F16 | DType::BF16 | DType::F64 => tensor.to_dtype(DType::F32)?,
        _ => tensor,
    })
}

/// Tensors in 16 bit, to be written to `path`.
///
/// # Errors
/// Values beyond the range of 16 bit.
pub fn halved(tensors: &BTreeMap<String, Tensor>, path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let half = |(name, tensor): (&String, &Tensor)| {
        let half = tensor.to_dtype(DType::F16)?;
        let largest = half.to_dtype(DType::F32)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?;
        if !largest.is_finite() {
            let expected = "weights within the range of 16 bit";
            return Err(Error::data(path, expected, format!("more in `{name}`"), "train the model anew"));
        }
        Ok((name.clone(), half))
    };
    tensors.iter().map(half).collect()
}

/// The string metadata of the file at `path`.
pub fn read_metadata(path: &Path) -> Result<BTreeMap<String, String>> {
    Ok(SafetensorsFile::open(path)?.metadata())
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
        assert_eq!(file.metadata(), metadata);
        assert_eq!(file.load("count", &Device::Cpu).unwrap().to_scalar::<i64>().unwrap(), 7);
        assert_eq!(file.load("half", &Device::Cpu).unwrap().to_vec1::<f32>().unwrap(), [0.5]);
        assert_eq!(file.load("view", &Device::Cpu).unwrap().to_vec2::<f32>().unwrap(), [[1.0, 3.0], [2.0, 4.0]]);
    }
}
