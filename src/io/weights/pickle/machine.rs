//! A pickle reader that understands data and nothing else: objects are described, never built, and nothing is called.
//!
//! Containers live in one arena and values refer to them by number, so that neither deep nor self-containing structures
//! can exhaust the stack.

use std::collections::HashMap;
use std::io::Read;
use std::rc::Rc;

/// Longest pickle that is read. Those of real checkpoints hold names and shapes only.
const MAX_BYTES: u64 = 64 << 20;

/// Longest name of a class, storage or tensor. Longer ones could be repeated by reference until memory is full.
pub(super) const MAX_NAME: usize = 1024;

/// More dimensions than any tensor of a network has.
const MAX_DIMS: usize = 16;

/// Values that constructors of dicts may copy in all.
const MAX_COPIES: usize = 1 << 22;

/// Why a pickle could not be read, in words that follow "found".
pub(super) type Outcome<T> = std::result::Result<T, String>;

/// Where a tensor's values are.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Storage {
    /// Name of the storage within the file.
    pub key: Rc<str>,
    /// PyTorch's class, e.g. `torch.HalfStorage`.
    pub class: Rc<str>,
    /// Number of elements.
    pub len: u64,
    /// Elements to skip (views on storages in old files).
    pub skip: u64,
}

/// A tensor as described by the pickle.
#[derive(Debug, Clone)]
pub(super) struct TensorRef {
    pub storage: Rc<Storage>,
    pub offset: u64,
    pub shape: Vec<u64>,
    pub strides: Vec<u64>,
}

/// What a pickle may hold.
#[derive(Debug, Clone)]
pub(super) enum Value {
    Mark,
    None,
    Bool,
    Int(i128),
    Float,
    Str(Rc<str>),
    /// Tuple, list or set: an entry of the arena.
    List(usize),
    /// Keys and values in turn: an entry of the arena.
    Dict(usize),
    /// A name from a Python module; only ever compared.
    Global(Rc<str>),
    Storage(Rc<Storage>),
    Tensor(Rc<TensorRef>),
    /// An object of a foreign class, by its name.
    Foreign(Rc<str>),
}

/// What was read: the top value and the containers it refers to.
#[derive(Debug)]
pub(super) struct Pickle {
    pub top: Value,
    pub arena: Vec<Vec<Value>>,
    /// Names of foreign objects in the order of their appearance.
    pub foreign: Vec<Rc<str>>,
    /// Every storage that was mentioned.
    pub storages: Vec<Rc<Storage>>,
}

/// Reads one pickle and leaves `input` behind its end.
pub(super) fn read(input: &mut dyn Read) -> Outcome<Pickle> {
    let mut machine = Machine {
        input: input.take(MAX_BYTES),
        stack: Vec::new(),
        memo: HashMap::new(),
        next_memo: 0,
        copies: 0,
        out: Pickle { top: Value::None, arena: Vec::new(), foreign: Vec::new(), storages: Vec::new() },
    };
    loop {
        let [code] = machine.bytes()?;
        if code == b'.' {
            machine.out.top = machine.pop()?;
            return Ok(machine.out);
        }
        machine.step(code)?;
    }
}

struct Machine<R> {
    input: R,
    stack: Vec<Value>,
    memo: HashMap<u64, Value>,
    next_memo: u64,
    copies: usize,
    out: Pickle,
}

impl<R: Read> Machine<R> {
    fn bytes<const N: usize>(&mut self) -> Outcome<[u8; N]> {
        let mut buffer = [0; N];
        self.input.read_exact(&mut buffer).map_err(|_| "a pickle that ends early".to_string())?;
        Ok(buffer)
    }

    fn blob(&mut self, len: u64) -> Outcome<Vec<u8>> {
        let mut buffer = Vec::new();
        // Grows with what is really there, whatever length the file claims.
        let got = (&mut self.input).take(len).read_to_end(&mut buffer).map_err(|e| e.to_string())?;
        if got as u64 == len { Ok(buffer) } else { Err("a pickle that ends early".into()) }
    }

    fn text(&mut self, len: u64) -> Outcome<Value> {
        let bytes = self.blob(len)?;
        Ok(Value::Str(String::from_utf8_lossy(&bytes).into()))
    }

    fn line(&mut self) -> Outcome<String> {
        let mut line = Vec::new();
        loop {
            match self.bytes()? {
                [b'\n'] => return Ok(String::from_utf8_lossy(&line).into_owned()),
                [byte] => line.push(byte),
            }
        }
    }

    fn u8(&mut self) -> Outcome<u64> {
        Ok(self.bytes::<1>()?[0].into())
    }

    fn u32(&mut self) -> Outcome<u64> {
        Ok(u32::from_le_bytes(self.bytes()?).into())
    }

    fn u64(&mut self) -> Outcome<u64> {
        Ok(u64::from_le_bytes(self.bytes()?))
    }

    fn pop(&mut self) -> Outcome<Value> {
        self.stack.pop().ok_or_else(damaged)
    }

    fn top(&self) -> Outcome<Value> {
        self.stack.last().cloned().ok_or_else(damaged)
    }

    /// Everything above the last mark, which is removed too.
    fn pop_mark(&mut self) -> Outcome<Vec<Value>> {
        let at = self.stack.iter().rposition(|v| matches!(v, Value::Mark)).ok_or_else(damaged)?;
        let items = self.stack.split_off(at + 1);
        self.stack.pop();
        Ok(items)
    }

    fn pop_some(&mut self, count: usize) -> Outcome<Vec<Value>> {
        let at = self.stack.len().checked_sub(count).ok_or_else(damaged)?;
        Ok(self.stack.split_off(at))
    }

    fn push_list(&mut self, items: Vec<Value>) {
        self.stack.push(Value::List(self.out.arena.len()));
        self.out.arena.push(items);
    }

    fn push_dict(&mut self, items: Vec<Value>) {
        self.stack.push(Value::Dict(self.out.arena.len()));
        self.out.arena.push(items);
    }

    /// Adds to the container on top of the stack; additions to foreign objects are dropped with them.
    fn extend(&mut self, items: Vec<Value>, pairs: bool) -> Outcome<()> {
        match self.top()? {
            Value::Dict(id) if pairs && items.len().is_multiple_of(2) => self.out.arena[id].extend(items),
            Value::List(id) if !pairs => self.out.arena[id].extend(items),
            Value::Foreign(_) => {}
            _ => return Err(damaged()),
        }
        Ok(())
    }

    fn step(&mut self, code: u8) -> Outcome<()> {
        match code {
            0x80 => drop(self.u8()?),  // PROTO
            0x95 => drop(self.u64()?), // FRAME
            b'(' => self.stack.push(Value::Mark),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.pop_mark()?),
            b'2' => self.stack.push(self.top()?),
            b'p' | b'q' | b'r' | 0x94 | b'g' | b'h' | b'j' => self.memo_step(code)?,
            b']' | b')' | 0x8f => self.push_list(Vec::new()),
            b'}' => self.push_dict(Vec::new()),
            b'l' | b't' | 0x91 => {
                let items = self.pop_mark()?;
                self.push_list(items);
            }
            b'd' => {
                let items = self.pop_mark()?;
                self.push_dict(items);
            }
            0x85..=0x87 => {
                let items = self.pop_some(usize::from(code) - 0x84)?;
                self.push_list(items);
            }
            b'a' => {
                let items = self.pop_some(1)?;
                self.extend(items, false)?;
            }
            b's' => {
                let items = self.pop_some(2)?;
                self.extend(items, true)?;
            }
            b'e' | 0x90 => {
                let items = self.pop_mark()?;
                self.extend(items, false)?;
            }
            b'u' => {
                let items = self.pop_mark()?;
                self.extend(items, true)?;
            }
            _ => return if self.object_step(code)? { Ok(()) } else { self.scalar_step(code) },
        }
        Ok(())
    }

    fn memo_step(&mut self, code: u8) -> Outcome<()> {
        let index = match code {
            b'p' | b'g' => self.line()?.trim().parse().map_err(|_| damaged())?,
            b'q' | b'h' => self.u8()?,
            b'r' | b'j' => self.u32()?,
            _ => self.next_memo,
        };
        if matches!(code, b'g' | b'h' | b'j') {
            let value = self.memo.get(&index).cloned().ok_or_else(damaged)?;
            self.stack.push(value);
        } else {
            self.memo.insert(index, self.top()?);
            self.next_memo += 1;
        }
        Ok(())
    }

    /// Names, calls and objects. False when `code` is none of these.
    fn object_step(&mut self, code: u8) -> Outcome<bool> {
        match code {
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.stack.push(Value::Global(class_name(&module, &name)?));
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (Value::Str(module), Value::Str(name)) = (module, name) else { return Err(damaged()) };
                self.stack.push(Value::Global(class_name(&module, &name)?));
            }
            b'R' | 0x81 => {
                let (arguments, callee) = (self.pop()?, self.pop()?);
                self.call(&callee, &arguments)?;
            }
            0x92 => {
                let (_, arguments, callee) = (self.pop()?, self.pop()?, self.pop()?);
                self.call(&callee, &arguments)?;
            }
            b'i' => {
                let (module, name) = (self.line()?, self.line()?);
                self.pop_mark()?;
                self.push_foreign(class_name(&module, &name)?);
            }
            b'o' => {
                let items = self.pop_mark()?;
                let Some(Value::Global(name)) = items.first() else { return Err(damaged()) };
                self.push_foreign(name.clone());
            }
            // BUILD: attributes of a dict (`_metadata`) or the state of a foreign object are not data.
            b'b' => drop(self.pop()?),
            b'Q' => {
                let id = self.pop()?;
                let storage = Rc::new(self.storage(&id)?);
                self.out.storages.push(storage.clone());
                self.stack.push(Value::Storage(storage));
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn scalar_step(&mut self, code: u8) -> Outcome<()> {
        let value = match code {
            b'N' => Value::None,
            0x88 | 0x89 => Value::Bool,
            b'I' | b'L' => match self.line()?.trim().trim_end_matches('L') {
                "00" | "01" => Value::Bool,
                digits => Value::Int(digits.parse().unwrap_or(i128::MAX)),
            },
            b'J' => Value::Int(i32::from_le_bytes(self.bytes()?).into()),
            b'K' => Value::Int(self.u8()?.into()),
            b'M' => Value::Int(u16::from_le_bytes(self.bytes()?).into()),
            0x8a | 0x8b => {
                let len = if code == 0x8a { self.u8()? } else { self.u32()? };
                Value::Int(long(&self.blob(len)?))
            }
            b'F' => {
                self.line()?;
                Value::Float
            }
            b'G' => {
                self.bytes::<8>()?;
                Value::Float
            }
            b'S' | b'V' => Value::Str(self.line()?.trim_matches(['\'', '"']).into()),
            b'U' | b'C' | 0x8c => {
                let len = self.u8()?;
                self.text(len)?
            }
            b'T' | b'B' | b'X' => {
                let len = self.u32()?;
                self.text(len)?
            }
            0x8d | 0x8e | 0x96 => {
                let len = self.u64()?;
                self.text(len)?
            }
            _ => return Err(format!("bytes that are not a pickle of tensors (operation {code:#04x})")),
        };
        self.stack.push(value);
        Ok(())
    }

    fn push_foreign(&mut self, name: Rc<str>) {
        self.out.foreign.push(name.clone());
        self.stack.push(Value::Foreign(name));
    }

    fn items(&self, value: &Value) -> Outcome<&[Value]> {
        match value {
            Value::List(id) => Ok(&self.out.arena[*id]),
            _ => Err(damaged()),
        }
    }

    /// Describes the result of a call. Only the constructors of tensors and dicts are known.
    fn call(&mut self, callee: &Value, arguments: &Value) -> Outcome<()> {
        let name = match callee {
            Value::Global(name) | Value::Foreign(name) => name.clone(),
            _ => return Err(damaged()),
        };
        let value = match &*name {
            "collections.OrderedDict" | "collections.defaultdict" => {
                let pairs = self.pairs(arguments);
                self.copies += pairs.len();
                if self.copies > MAX_COPIES {
                    return Err("dicts without end".into());
                }
                self.push_dict(pairs);
                return Ok(());
            }
            "torch._utils._rebuild_tensor" | "torch._utils._rebuild_tensor_v2" => {
                Value::Tensor(Rc::new(self.tensor(self.items(arguments)?)?))
            }
            "torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state" => {
                self.items(arguments)?.first().cloned().ok_or_else(damaged)?
            }
            // (function, class, arguments, state): a tensor with attributes
            "torch._tensor._rebuild_from_type_v2" => match self.items(arguments)? {
                [function, _, arguments, ..] => {
                    let (function, arguments) = (function.clone(), arguments.clone());
                    let plain = matches!(&function, Value::Global(f) if f.starts_with("torch._utils._rebuild_"));
                    return if plain { self.call(&function, &arguments) } else { Err(damaged()) };
                }
                _ => return Err(damaged()),
            },
            _ => {
                self.push_foreign(name);
                return Ok(());
            }
        };
        self.stack.push(value);
        Ok(())
    }

    /// The pairs that old pickles hand to a dict's constructor, else nothing.
    fn pairs(&self, arguments: &Value) -> Vec<Value> {
        let Ok([Value::List(list)]) = self.items(arguments) else { return Vec::new() };
        let pairs = self.out.arena[*list].iter().filter_map(|pair| self.items(pair).ok()).filter(|pair| pair.len() == 2);
        pairs.flatten().cloned().collect()
    }

    /// `(storage, offset, shape, strides, …)`
    fn tensor(&self, arguments: &[Value]) -> Outcome<TensorRef> {
        let [Value::Storage(storage), Value::Int(offset), shape, strides, ..] = arguments else { return Err(damaged()) };
        let numbers = |value| -> Outcome<Vec<u64>> {
            let number =
                |v: &Value| if let Value::Int(n) = v { u64::try_from(*n).map_err(|_| damaged()) } else { Err(damaged()) };
            self.items(value)?.iter().take(MAX_DIMS + 1).map(number).collect()
        };
        let (shape, strides) = (numbers(shape)?, numbers(strides)?);
        let offset = u64::try_from(*offset).ok().and_then(|offset| offset.checked_add(storage.skip)).ok_or_else(damaged)?;
        let tensor = TensorRef { storage: storage.clone(), offset, shape, strides };
        tensor.check()?;
        Ok(tensor)
    }

    /// `("storage", class, key, device, elements[, view])`
    fn storage(&self, id: &Value) -> Outcome<Storage> {
        let items = self.items(id)?;
        let [Value::Str(tag), Value::Global(class), Value::Str(key), _, Value::Int(len), rest @ ..] = items else {
            return Err(damaged());
        };
        if &**tag != "storage" || !class.starts_with("torch.") || !class.ends_with("Storage") {
            return Err(format!("{class} where a storage belongs"));
        }
        let skip = match rest {
            [view @ Value::List(_), ..] => match self.items(view)? {
                [_, Value::Int(skip), ..] => u64::try_from(*skip).map_err(|_| damaged())?,
                _ => return Err(damaged()),
            },
            _ => 0,
        };
        Ok(Storage { key: key.clone(), class: class.clone(), len: u64::try_from(*len).map_err(|_| damaged())?, skip })
    }
}

impl TensorRef {
    /// Number of elements. Checked when the tensor was read.
    pub fn count(&self) -> u64 {
        self.shape.iter().product()
    }

    /// Elements from the first to the last one used, both included.
    pub fn extent(&self) -> u64 {
        if self.count() == 0 {
            0
        } else {
            1 + self.shape.iter().zip(&self.strides).map(|(size, stride)| (size - 1) * stride).sum::<u64>()
        }
    }

    /// A description that lies within its storage; expanded views may not grow without limit.
    fn check(&self) -> Outcome<()> {
        let ok = || -> Option<bool> {
            if self.shape.len() != self.strides.len() || self.shape.len() > MAX_DIMS {
                return None;
            }
            let count = self.shape.iter().try_fold(1_u64, |product, size| product.checked_mul(*size))?;
            if count == 0 {
                return Some(true);
            }
            let last = self
                .shape
                .iter()
                .zip(&self.strides)
                .try_fold(self.offset, |sum, (size, stride)| sum.checked_add((size - 1).checked_mul(*stride)?))?;
            Some(last < self.storage.len && count <= self.storage.len.max(1 << 20))
        };
        if ok() == Some(true) { Ok(()) } else { Err(format!("a tensor of shape {:?} beyond its storage", self.shape)) }
    }
}

/// `module.name` of a class or function.
fn class_name(module: &str, name: &str) -> Outcome<Rc<str>> {
    if module.len() + name.len() > MAX_NAME { Err(damaged()) } else { Ok(format!("{module}.{name}").into()) }
}

/// A little-endian two's complement integer. Longer ones than 128 bits never matter here.
fn long(bytes: &[u8]) -> i128 {
    if bytes.len() > 16 {
        return i128::MAX;
    }
    let fill = if bytes.last().is_some_and(|byte| byte & 0x80 != 0) { 0xff } else { 0 };
    let mut buffer = [fill; 16];
    buffer[..bytes.len()].copy_from_slice(bytes);
    i128::from_le_bytes(buffer)
}

fn damaged() -> String {
    "a damaged pickle".into()
}
