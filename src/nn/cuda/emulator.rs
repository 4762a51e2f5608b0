//! Runs the kernels' sources on the processor, compiled by the system's C++ compiler: slow, but the same numerics. Every
//! launch runs twice, with threads and blocks in opposite orders, and must give the same bits: a missing barrier shows.

use super::machine::{Arg, BLOCK, Kind, Machine, Module};
use candle_core::{Result, bail};
use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{CString, c_char, c_int, c_void};
use std::process::Command;

type Launch = unsafe extern "C" fn(*const c_char, *const c_char, *const c_int, c_int, *mut *mut c_void, c_int) -> c_int;

/// Words before and after the values of a buffer, to notice writes outside.
const GUARD: usize = 64;

/// Values between guards, all of which start as ones: not a number in every float type.
pub struct Buffer {
    words: RefCell<Vec<u32>>,
    pub len: usize,
    pub kind: Kind,
}

impl Buffer {
    fn new(len: usize, kind: Kind) -> Self {
        let words = if kind == Kind::Bf16 { len.div_ceil(2) } else { len };
        Self { words: RefCell::new(vec![u32::MAX; words + 2 * GUARD]), len, kind }
    }

    /// From f32 values, rounded to bf16 where the kind says so; for u32, from numbers.
    pub fn from_values(values: &[f32], kind: Kind) -> Self {
        let buffer = Self::new(values.len(), kind);
        let mut words = buffer.words.borrow_mut();
        for (i, x) in values.iter().enumerate() {
            match kind {
                Kind::F32 => words[GUARD + i] = x.to_bits(),
                Kind::U32 => words[GUARD + i] = *x as u32,
                Kind::Bf16 => {
                    let bits = u32::from(half_bits(*x)) << (16 * (i % 2));
                    let keep = if i % 2 == 0 { 0xffff_0000 } else { 0x0000_ffff };
                    words[GUARD + i / 2] = words[GUARD + i / 2] & keep | bits;
                }
            }
        }
        drop(words);
        buffer
    }

    /// The values as f32.
    pub fn values(&self) -> Vec<f32> {
        let words = self.words.borrow();
        let value = |i: usize| match self.kind {
            Kind::F32 => f32::from_bits(words[GUARD + i]),
            Kind::U32 => words[GUARD + i] as f32,
            Kind::Bf16 => f32::from_bits((words[GUARD + i / 2] >> (16 * (i % 2)) & 0xffff) << 16),
        };
        (0..self.len).map(value).collect()
    }

    fn guards_hold(&self) -> bool {
        let words = self.words.borrow();
        words[..GUARD].iter().chain(&words[words.len() - GUARD..]).all(|word| *word == u32::MAX)
    }
}

/// The upper half of a float, rounded to nearest even.
fn half_bits(x: f32) -> u16 {
    let bits = x.to_bits();
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// The processor as a machine for kernels.
pub struct Emulator {
    folder: tempfile::TempDir,
    modules: RefCell<HashMap<Module, Launch>>,
}

impl Emulator {
    /// None (and a line on standard error) without a C++ compiler.
    pub fn new() -> Option<Self> {
        if Command::new("c++").arg("--version").output().is_ok_and(|out| out.status.success()) {
            return Some(Self { folder: tempfile::tempdir().unwrap(), modules: RefCell::default() });
        }
        eprintln!("skipped: no C++ compiler (`c++`) to run the kernels on the processor with");
        None
    }

    fn load(&self, module: Module) -> Launch {
        if let Some(launch) = self.modules.borrow().get(&module) {
            return *launch;
        }
        let launch = open(&self.compile(module));
        self.modules.borrow_mut().insert(module, launch);
        launch
    }

    /// Compiles the file with an entry point that knows its kernels by name.
    fn compile(&self, module: Module) -> std::path::PathBuf {
        let text = module.text();
        let mark = "extern \"C\" __global__ void ";
        let names = text.match_indices(mark).map(|(at, _)| text[at + mark.len()..].split('(').next().unwrap());
        let list: Vec<String> = names.map(|name| format!("KERNEL({name})")).collect();
        let program = format!(
            "#include \"{}/tests/support/cuda_shim.hpp\"\n{text}\nstatic const Kernel kernels[] = {{{}}};\n\
             extern \"C\" int launch(const char *name, const char *letters, const int *grid, int threads, void **args, int backwards) {{\n\
             return shim::launch(kernels, {}, name, letters, grid, threads, args, backwards);\n}}\n",
            env!("CARGO_MANIFEST_DIR"),
            list.join(", "),
            list.len()
        );
        let path = self.folder.path().join(format!("{}.cpp", self.modules.borrow().len()));
        std::fs::write(&path, program).unwrap();
        let library = path.with_extension("so");
        let out = Command::new("c++")
            .args(["-std=c++17", "-O1", "-w", "-shared", "-fPIC", "-o"])
            .args([&library, &path])
            .output()
            .unwrap();
        assert!(out.status.success(), "{module:?}: {}", String::from_utf8_lossy(&out.stderr));
        library
    }
}

#[allow(unsafe_code)]
fn open(library: &std::path::Path) -> Launch {
    let path = CString::new(library.to_str().unwrap()).unwrap();
    // SAFETY: the library was just compiled from `compile`'s text, has no initialisers with effects, and is never closed.
    unsafe {
        let handle = libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL);
        assert!(!handle.is_null(), "cannot load {}", library.display());
        let symbol = libc::dlsym(handle, c"launch".as_ptr());
        assert!(!symbol.is_null());
        std::mem::transmute::<*mut c_void, Launch>(symbol)
    }
}

/// Storage for an argument while a kernel runs.
enum Slot {
    Pointer(*mut u32),
    Int(c_int),
    Float(f32),
}

impl Machine for Emulator {
    type Buffer = Buffer;

    fn buffer(&self, len: usize, kind: Kind) -> Result<Buffer> {
        Ok(Buffer::new(len, kind))
    }

    #[allow(unsafe_code)]
    fn launch(&self, module: Module, kernel: &str, grid: [usize; 2], args: &[Arg<Buffer>]) -> Result<()> {
        let launch = self.load(module);
        let name = CString::new(kernel).unwrap();
        let letters: String = args.iter().map(letter).collect();
        let signature = CString::new(letters.clone()).unwrap();
        let buffers: Vec<&Buffer> = args.iter().filter_map(|a| if let Arg::Buffer(b) = a { Some(*b) } else { None }).collect();
        let before: Vec<Vec<u32>> = buffers.iter().map(|b| b.words.borrow().clone()).collect();
        let mut first = Vec::new();
        for backwards in [0, 1] {
            for (buffer, words) in buffers.iter().zip(&before) {
                buffer.words.borrow_mut().copy_from_slice(words);
            }
            let mut slots: Vec<Slot> = args.iter().map(slot).collect();
            let mut pointers: Vec<*mut c_void> = slots.iter_mut().map(pointer).collect();
            let grid = [grid[0] as c_int, grid[1] as c_int];
            // SAFETY: the entry point checks that the arguments' types are those of the kernel; each pointer leads to a
            // slot or buffer that outlives the call, and nothing else uses the buffers meanwhile.
            let status = unsafe {
                launch(name.as_ptr(), signature.as_ptr(), grid.as_ptr(), BLOCK as c_int, pointers.as_mut_ptr(), backwards)
            };
            match status {
                0 => {}
                1 => bail!("{module:?} has no kernel {kernel}"),
                _ => bail!("{kernel}: arguments {letters} are of other types than its parameters"),
            }
            assert!(buffers.iter().all(|b| b.guards_hold()), "{kernel} writes outside its buffers");
            let after: Vec<Vec<u32>> = buffers.iter().map(|b| b.words.borrow().clone()).collect();
            if backwards == 0 {
                first = after;
            } else {
                assert!(first == after, "{kernel}: the result depends on the order of threads");
            }
        }
        Ok(())
    }
}

fn letter(arg: &Arg<Buffer>) -> char {
    match arg {
        Arg::Buffer(_) => 'p',
        Arg::Int(_) => 'i',
        Arg::Float(_) => 'f',
    }
}

fn slot(arg: &Arg<Buffer>) -> Slot {
    match arg {
        Arg::Buffer(buffer) => Slot::Pointer(buffer.words.borrow_mut()[GUARD..].as_mut_ptr()),
        Arg::Int(value) => Slot::Int(*value as c_int),
        Arg::Float(value) => Slot::Float(*value),
    }
}

fn pointer(slot: &mut Slot) -> *mut c_void {
    match slot {
        Slot::Pointer(pointer) => std::ptr::from_mut(pointer).cast(),
        Slot::Int(value) => std::ptr::from_mut(value).cast(),
        Slot::Float(value) => std::ptr::from_mut(value).cast(),
    }
}
