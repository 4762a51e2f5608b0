//! PyTorch checkpoints (`.pth`, `.pt`, `.bin`; zip archives and the older plain layout) as sources of tensors.
//!
//! The pickle inside is parsed, never executed ([`machine`]). Values are read from the file when they are asked for.

mod machine;

use super::TensorSource;
use crate::base::{Error, Result};
use candle_core::{DType, Device, Tensor};
use machine::{MAX_NAME, Outcome, Pickle, Storage, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// Keys under which training programs keep the weights, tried in this order.
const GROUPS: [&str; 8] = ["state_dict", "model_state_dict", "model_state", "model", "module", "network", "params_ema", "params"];

/// First number of the older layout.
const LEGACY_MAGIC: i128 = 0x1950_a86a_20f9_469c_fc6c;

/// Containers and values visited before a structure counts as endless.
const MAX_VISITS: usize = 500_000;

/// An open PyTorch checkpoint.
pub struct PickleFile {
    path: PathBuf,
    file: Mutex<File>,
    tensors: BTreeMap<String, Entry>,
}

/// One tensor and where its values are.
struct Entry {
    /// Position of the storage's first element in the file.
    start: u64,
    element: Element,
    offset: u64,
    extent: u64,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

#[derive(Clone, Copy)]
enum Element {
    Plain(DType),
    I8,
    Bool,
}

impl PickleFile {
    /// Opens the group of tensors that the file is about: the top level when it holds tensors, else the first of the
    /// usual groups (`state_dict`, `model`, …), else the only group there is.
    ///
    /// # Errors
    /// A truncated or damaged file, foreign objects instead of tensors, several groups to choose from.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_group(path, None)
    }

    /// Opens the group at a dotted `key`, e.g. `ema.model`.
    ///
    /// # Errors
    /// As [`Self::open`], and when there is no such group.
    pub fn open_group(path: &Path, key: Option<&str>) -> Result<Self> {
        let mut file = File::open(path).map_err(|e| Error::io(path, e))?;
        let tensors = read_file(&mut file, key).map_err(|found| {
            let next = "save the tensors alone (`torch.save(model.state_dict(), …)`), or copy the file again if it is damaged";
            Error::data(path, "only tensors, in a whole PyTorch checkpoint", found, next)
        })?;
        Ok(Self { path: path.into(), file: Mutex::new(file), tensors })
    }

    fn read(&self, entry: &Entry) -> std::io::Result<Vec<u8>> {
        let size = entry.element.size();
        // `extent` lies within the file: checked when it was opened.
        let mut bytes = vec![0; entry.extent as usize * size];
        let mut file = self.file.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        file.seek(SeekFrom::Start(entry.start + entry.offset * size as u64))?;
        file.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

impl TensorSource for PickleFile {
    fn origin(&self) -> String {
        self.path.display().to_string()
    }

    fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        self.tensors.iter().map(|(name, entry)| (name.clone(), entry.shape.clone())).collect()
    }

    fn load(&self, name: &str, device: &Device) -> Result<Tensor> {
        let entry = self.tensors.get(name).ok_or_else(|| {
            let next = "check that the file belongs to this model";
            Error::data(&self.path, format!("a tensor named `{name}`"), "none of that name", next)
        })?;
        let bytes = self.read(entry).map_err(|e| Error::io(&self.path, e))?;
        let bytes = gather(bytes, &entry.shape, &entry.strides, entry.element.size());
        let shape = entry.shape.as_slice();
        Ok(match entry.element {
            Element::Plain(dtype) => {
                let tensor = Tensor::from_raw_buffer(&bytes, dtype, shape, device)?;
                if dtype.is_float() { tensor.to_dtype(DType::F32)? } else { tensor }
            }
            Element::Bool => Tensor::from_raw_buffer(&bytes, DType::U8, shape, device)?,
            Element::I8 => {
                let wide: Vec<i16> = bytes.iter().map(|byte| i16::from(byte.cast_signed())).collect();
                Tensor::from_vec(wide, shape, device)?
            }
        })
    }
}

impl Element {
    /// The element of a storage class, e.g. `torch.HalfStorage`.
    fn of(class: &str) -> Outcome<Self> {
        let kind = class.trim_start_matches("torch.").trim_end_matches("Storage");
        Ok(match kind {
            "Half" => Self::Plain(DType::F16),
            "BFloat16" => Self::Plain(DType::BF16),
            "Float" => Self::Plain(DType::F32),
            "Double" => Self::Plain(DType::F64),
            "Long" => Self::Plain(DType::I64),
            "Int" => Self::Plain(DType::I32),
            "Short" => Self::Plain(DType::I16),
            "Byte" => Self::Plain(DType::U8),
            "Char" => Self::I8,
            "Bool" => Self::Bool,
            _ => return Err(format!("tensors of the unsupported kind `{class}`")),
        })
    }

    fn size(self) -> usize {
        match self {
            Self::Plain(dtype) => dtype.size_in_bytes(),
            Self::I8 | Self::Bool => 1,
        }
    }
}

/// The elements of a strided tensor in row-major order.
fn gather(bytes: Vec<u8>, shape: &[usize], strides: &[usize], size: usize) -> Vec<u8> {
    let count: usize = shape.iter().product();
    let mut expected = count;
    let dense = shape.iter().zip(strides).all(|(n, stride)| {
        expected = if *n == 0 { 0 } else { expected / n };
        *n <= 1 || *stride == expected
    });
    if dense {
        return bytes;
    }
    let mut result = Vec::with_capacity(count * size);
    let mut index = vec![0; shape.len()];
    for _ in 0..count {
        let at = index.iter().zip(strides).map(|(i, stride)| i * stride).sum::<usize>() * size;
        result.extend_from_slice(&bytes[at..at + size]);
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            if index[axis] < shape[axis] {
                break;
            }
            index[axis] = 0;
        }
    }
    result
}

fn read_file(file: &mut File, key: Option<&str>) -> Outcome<BTreeMap<String, Entry>> {
    let mut magic = [0; 2];
    file.read_exact(&mut magic).map_err(|_| "an empty file".to_string())?;
    file.rewind().map_err(|e| e.to_string())?;
    let (pickle, starts) = if &magic == b"PK" { read_zip(file)? } else { read_legacy(file)? };
    let group = choose(&pickle, key)?;
    let mut found = Flat { pickle: &pickle, tensors: BTreeMap::new(), visits: 0 };
    found.collect(group, "", 0)?;
    found.tensors.into_iter().map(|(name, tensor)| Ok((name, entry(&tensor, &starts)?))).collect()
}

fn entry(tensor: &machine::TensorRef, starts: &BTreeMap<String, u64>) -> Outcome<Entry> {
    let element = Element::of(&tensor.storage.class)?;
    let start = starts.get(&*tensor.storage.key).ok_or_else(|| format!("no values for storage {}", tensor.storage.key))?;
    let whole =
        |numbers: &[u64]| numbers.iter().map(|n| usize::try_from(*n).map_err(|e| e.to_string())).collect::<Outcome<Vec<_>>>();
    Ok(Entry {
        start: *start,
        element,
        offset: tensor.offset,
        extent: tensor.extent(),
        shape: whole(&tensor.shape)?,
        strides: whole(&tensor.strides)?,
    })
}

/// The pickle of a zip archive, and the position of every storage.
fn read_zip(file: &mut File) -> Outcome<(Pickle, BTreeMap<String, u64>)> {
    let mut archive = zip::ZipArchive::new(BufReader::new(file)).map_err(|e| format!("a truncated or damaged archive ({e})"))?;
    let names: Vec<String> = (0..archive.len())
        .map(|i| archive.by_index_raw(i).map(|entry| String::from_utf8_lossy(entry.name_raw()).into_owned()))
        .collect::<std::result::Result<_, _>>()
        .map_err(|e| format!("a damaged archive ({e})"))?;
    let pickle_name = names.iter().find(|name| *name == "data.pkl" || name.ends_with("/data.pkl"));
    let pickle_name = pickle_name.ok_or("an archive without `data.pkl`")?.clone();
    let folder = pickle_name.trim_end_matches("data.pkl");
    if names.contains(&format!("{folder}byteorder")) {
        let mut order = String::new();
        zip_entry(&mut archive, &format!("{folder}byteorder"))?.take(16).read_to_string(&mut order).map_err(|e| e.to_string())?;
        if order.trim() != "little" {
            return Err(format!("values in `{order}` byte order"));
        }
    }
    let pickle = machine::read(&mut zip_entry(&mut archive, &pickle_name)?)?;
    let mut starts = BTreeMap::new();
    for (key, bytes) in storage_sizes(&pickle)? {
        let entry = zip_entry(&mut archive, &format!("{folder}data/{key}"))?;
        let start = entry.data_start().ok_or("a damaged archive")?;
        if entry.compression() != zip::CompressionMethod::Stored || entry.size() < bytes {
            return Err(format!("storage {key} of {} bytes ({}) instead of {bytes}", entry.size(), entry.compression()));
        }
        starts.insert(key, start);
    }
    Ok((pickle, starts))
}

type Archive<'a> = zip::ZipArchive<BufReader<&'a mut File>>;

fn zip_entry<'a, 'b>(archive: &'a mut Archive<'b>, name: &str) -> Outcome<zip::read::ZipFile<'a, BufReader<&'b mut File>>> {
    archive.by_name(name).map_err(|e| format!("an archive whose entry `{name}` cannot be read ({e})"))
}

/// The older layout: magic number, version, system, the object, the keys of its storages, then their values.
fn read_legacy(file: &mut File) -> Outcome<(Pickle, BTreeMap<String, u64>)> {
    let length = file.metadata().map_err(|e| e.to_string())?.len();
    let mut input = BufReader::new(file);
    let magic = machine::read(&mut input)?;
    if !matches!(magic.top, Value::Int(LEGACY_MAGIC)) {
        let what = magic.foreign.first().map_or("a pickle of another program".into(), |name| format!("`{name}`"));
        return Err(what);
    }
    machine::read(&mut input)?; // version
    machine::read(&mut input)?; // system: only little-endian machines have written such files in practice
    let pickle = machine::read(&mut input)?;
    let keys = machine::read(&mut input)?;
    let Value::List(list) = keys.top else { return Err("a checkpoint without its list of storages".into()) };
    let sizes = storage_sizes(&pickle)?;
    let mut starts = BTreeMap::new();
    let mut at = input.stream_position().map_err(|e| e.to_string())?;
    for key in &keys.arena[list] {
        let Value::Str(key) = key else { return Err("a damaged list of storages".into()) };
        let bytes = sizes.get(&**key).ok_or_else(|| format!("a storage {key} of unknown size"))?;
        at += 8; // the number of elements, known already
        starts.insert(key.to_string(), at);
        at = at.checked_add(*bytes).filter(|end| *end <= length).ok_or("a file that ends within its tensors")?;
    }
    Ok((pickle, starts))
}

/// Bytes of every storage: the most that any tensor was checked against. Storages of unsupported kinds are left out; they
/// matter only when one of the chosen tensors is among them.
fn storage_sizes(pickle: &Pickle) -> Outcome<BTreeMap<String, u64>> {
    let mut sizes: BTreeMap<String, u64> = BTreeMap::new();
    for storage in &pickle.storages {
        let Storage { key, class, len, .. } = &**storage;
        let size = match (Element::of(class), &**class) {
            (Ok(element), _) => element.size() as u64,
            (Err(_), "torch.ComplexFloatStorage") => 8,
            (Err(_), "torch.ComplexDoubleStorage") => 16,
            (Err(_), _) => continue,
        };
        let bytes = len.checked_mul(size).ok_or("a storage beyond all sizes")?;
        let largest = sizes.entry(key.to_string()).or_default();
        *largest = bytes.max(*largest);
    }
    Ok(sizes)
}

/// The entries of a dict with text or number keys.
fn items<'a>(pickle: &'a Pickle, value: &Value) -> Option<impl Iterator<Item = (String, &'a Value)> + use<'a>> {
    let Value::Dict(id) = value else { return None };
    Some(pickle.arena[*id].chunks_exact(2).filter_map(|pair| match &pair[0] {
        Value::Str(key) if key.len() <= MAX_NAME => Some((key.to_string(), &pair[1])),
        Value::Int(key) => Some((key.to_string(), &pair[1])),
        _ => None,
    }))
}

/// The dict that holds the weights.
fn choose<'a>(pickle: &'a Pickle, key: Option<&str>) -> Outcome<&'a Value> {
    if let Some(key) = key {
        return follow(pickle, &pickle.top, key).ok_or_else(|| format!("no group of tensors `{key}`"));
    }
    let mut at = &pickle.top;
    // A file nests its weights a few levels deep at most; the limit ends self-containing dicts.
    for _ in 0..16 {
        let Some(entries) = items(pickle, at) else { break };
        let entries: Vec<(String, &Value)> = entries.collect();
        if entries.iter().any(|(_, value)| matches!(value, Value::Tensor(_))) {
            return Ok(at);
        }
        let dicts: Vec<&(String, &Value)> = entries.iter().filter(|(_, v)| holds_tensors(pickle, v)).collect();
        let named = GROUPS.iter().find_map(|group| dicts.iter().find(|(key, _)| key == group));
        at = match (named, dicts.as_slice()) {
            (Some((_, group)), _) | (None, [(_, group)]) => group,
            (None, []) => break,
            (None, several) => {
                let names: Vec<&str> = several.iter().map(|(key, _)| key.as_str()).collect();
                return Err(format!("several groups of tensors: {}", names.join(", ")));
            }
        };
    }
    let names: BTreeSet<&str> = pickle.foreign.iter().map(|name| &**name).collect();
    let names: Vec<&str> = names.into_iter().take(8).collect();
    Err(if names.is_empty() { "no tensors".into() } else { names.join(", ") })
}

fn follow<'a>(pickle: &'a Pickle, from: &'a Value, key: &str) -> Option<&'a Value> {
    if key.is_empty() {
        return Some(from);
    }
    let mut inner = items(pickle, from)?.filter_map(|(name, value)| {
        let rest = key.strip_prefix(name.as_str())?;
        if rest.is_empty() { Some((value, "")) } else { Some((value, rest.strip_prefix('.')?)) }
    });
    inner.find_map(|(value, rest)| follow(pickle, value, rest))
}

/// True when a dict holds a tensor at any depth.
fn holds_tensors(pickle: &Pickle, value: &Value) -> bool {
    let mut seen = BTreeSet::new();
    let mut open = vec![value.clone()];
    while let Some(value) = open.pop() {
        match value {
            Value::Tensor(_) => return true,
            Value::Dict(id) if seen.insert(id) => open.extend(pickle.arena[id].iter().skip(1).step_by(2).cloned()),
            _ => {}
        }
    }
    false
}

/// Collects the tensors of nested dicts under dotted names.
struct Flat<'a> {
    pickle: &'a Pickle,
    tensors: BTreeMap<String, std::rc::Rc<machine::TensorRef>>,
    visits: usize,
}

impl Flat<'_> {
    fn collect(&mut self, group: &Value, prefix: &str, depth: usize) -> Outcome<()> {
        let Some(entries) = items(self.pickle, group) else { return Err("something else than a dict of tensors".into()) };
        for (key, value) in entries {
            self.visits += 1;
            if depth > 32 || self.visits > MAX_VISITS {
                return Err("dicts without end".into());
            }
            let name = if prefix.is_empty() { key } else { format!("{prefix}.{key}") };
            if name.len() > MAX_NAME {
                return Err("names without end".into());
            }
            match value {
                Value::Tensor(tensor) => drop(self.tensors.insert(name, tensor.clone())),
                Value::Dict(_) => self.collect(value, &name, depth + 1)?,
                Value::Foreign(class) => return Err(format!("`{class}` under `{name}`")),
                Value::Global(class) => return Err(format!("`{class}` under `{name}`")),
                // Numbers and texts beside the weights (epoch, version) are no tensors of the model.
                _ => {}
            }
        }
        Ok(())
    }
}
