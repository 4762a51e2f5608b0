//! What runs kernels: a GPU, or in tests the processor.

#[cfg(feature = "cuda")]
use candle_core::DType;
use candle_core::{Result, bail};

/// Threads of a block, for all kernels.
pub const BLOCK: usize = 256;

/// A file of kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    Activation,
    /// For heads of at most 64 times as many dimensions.
    Attention(usize),
    Depthwise,
    Loss,
    Norm,
    Optimizer,
    Pool,
    Reduce,
    Resize,
    Sampling,
    /// Any text, to test the tests with.
    #[cfg(test)]
    Text(&'static str),
}

/// Types of values in buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    F32,
    Bf16,
    U32,
}

#[cfg(feature = "cuda")]
impl Kind {
    /// # Errors
    /// A type kernels have no values of.
    pub fn of(dtype: DType) -> Result<Self> {
        match dtype {
            DType::F32 => Ok(Self::F32),
            DType::BF16 => Ok(Self::Bf16),
            DType::U32 => Ok(Self::U32),
            other => bail!("the kernels have no {other:?}; use f32 or bf16"),
        }
    }
}

/// A file of kernels, compiled for one type of values (T in the sources): f32 or bf16.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Module {
    pub source: Source,
    pub values: Kind,
}

impl Module {
    /// Everything the compiler needs.
    pub fn text(self) -> String {
        let (file, chunks) = match self.source {
            Source::Activation => (include_str!("kernels/activation.cu"), 0),
            Source::Attention(chunks) => (include_str!("kernels/attention.cu"), chunks),
            Source::Depthwise => (include_str!("kernels/depthwise.cu"), 0),
            Source::Loss => (include_str!("kernels/loss.cu"), 0),
            Source::Norm => (include_str!("kernels/norm.cu"), 0),
            Source::Optimizer => (include_str!("kernels/optimizer.cu"), 0),
            Source::Pool => (include_str!("kernels/pool.cu"), 0),
            Source::Reduce => (include_str!("kernels/reduce.cu"), 0),
            Source::Resize => (include_str!("kernels/resize.cu"), 0),
            Source::Sampling => (include_str!("kernels/sampling.cu"), 0),
            #[cfg(test)]
            Source::Text(text) => (text, 0),
        };
        let values = if self.values == Kind::Bf16 { "bf16" } else { "float" };
        format!("#define CHUNKS {chunks}\n{}\ntypedef {values} T;\n\n{file}", include_str!("kernels/common.cu"))
    }
}

/// An argument of a kernel.
pub enum Arg<'a, B> {
    /// A pointer to values.
    Buffer(&'a B),
    /// An `int`.
    Int(usize),
    /// A `float`.
    Float(f32),
}

impl<'a, B> From<&'a B> for Arg<'a, B> {
    fn from(buffer: &'a B) -> Self {
        Self::Buffer(buffer)
    }
}

impl<B> From<usize> for Arg<'_, B> {
    fn from(value: usize) -> Self {
        Self::Int(value)
    }
}

impl<B> From<f32> for Arg<'_, B> {
    fn from(value: f32) -> Self {
        Self::Float(value)
    }
}

/// Arguments of a kernel in its order: buffers, sizes, numbers.
macro_rules! args {
    ($($arg:expr),* $(,)?) => { &[$($crate::nn::cuda::machine::Arg::from($arg)),*] };
}
pub(super) use args;

/// Runs kernels, in the order they are launched.
pub trait Machine {
    /// Values in the machine's memory.
    type Buffer;

    /// A new buffer of `len` values of any content.
    fn buffer(&self, len: usize, kind: Kind) -> Result<Self::Buffer>;

    /// Starts a kernel on a grid of blocks of [`BLOCK`] threads. The arguments are those of the kernel.
    fn launch(&self, module: Module, kernel: &str, grid: [usize; 2], args: &[Arg<Self::Buffer>]) -> Result<()>;
}

/// The operations for one type of values, as sequences of kernels.
pub struct Kernels<'m, M> {
    pub machine: &'m M,
    pub values: Kind,
}

impl<M: Machine> Kernels<'_, M> {
    /// A new buffer of values.
    pub fn values(&self, len: usize) -> Result<M::Buffer> {
        self.machine.buffer(len, self.values)
    }

    /// A new buffer of f32.
    pub fn floats(&self, len: usize) -> Result<M::Buffer> {
        self.machine.buffer(len, Kind::F32)
    }

    /// A grid of blocks.
    pub fn blocks(&self, source: Source, kernel: &str, grid: [usize; 2], args: &[Arg<M::Buffer>]) -> Result<()> {
        let sizes = args.iter().filter_map(|arg| if let Arg::Int(size) = arg { Some(*size) } else { None });
        if sizes.chain([grid[0]]).any(|size| size > i32::MAX as usize) || grid[1] > 65535 {
            bail!("{kernel}: more values than a kernel can count; use a smaller batch or smaller images")
        }
        if grid.contains(&0) {
            return Ok(());
        }
        self.machine.launch(Module { source, values: self.values }, kernel, grid, args)
    }

    /// At least `count` threads.
    pub fn threads(&self, source: Source, kernel: &str, count: usize, args: &[Arg<M::Buffer>]) -> Result<()> {
        if count > i32::MAX as usize - BLOCK {
            bail!("{kernel}: more threads than a kernel can count; use a smaller batch or smaller images")
        }
        self.blocks(source, kernel, [count.div_ceil(BLOCK), 1], args)
    }

    /// A warp of 32 threads for each of `count` rows.
    pub fn warps(&self, source: Source, kernel: &str, count: usize, args: &[Arg<M::Buffer>]) -> Result<()> {
        self.threads(source, kernel, 32 * count, args)
    }
}
