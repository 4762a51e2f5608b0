//! Gradients of our own operations without the engine's sums of zeros.
//!
//! candle's backward pass adds every gradient to a tensor of zeros, even where nothing else flows: for operations that little is computed
//! in, several times the work of the gradient itself. Within [`recording`], results of our operations are leaves for the engine; what
//! they came from is kept here, and [`backward`] hands their gradients on as they are. Between them the engine does the rest.
//! Gradients are the same: where paths meet they are added, in a fixed order.

use candle_core::backprop::GradStore;
use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, DType, Device, DeviceLocation, Layout, Result, Shape, Storage, Tensor, TensorId,
    Var, bail,
};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

thread_local! {
    static RECORDING: Cell<bool> = const { Cell::new(false) };
    /// What flows out of a stretch of the engine's own operations into our results, while one is computed.
    static CAUGHT: RefCell<Option<Vec<(Tensor, Tensor)>>> = const { RefCell::new(None) };
}

/// Our results that are alive, by identity.
static NODES: LazyLock<Mutex<HashMap<TensorId, Weak<Node>>>> = LazyLock::new(Mutex::default);

fn nodes() -> MutexGuard<'static, HashMap<TensorId, Weak<Node>>> {
    NODES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Computes `work` on this thread such that [`backward`] of its results is cheaper. Backward passes from them have to be
/// [`backward`] or [`backward_from`]; candle's own fails.
pub fn recording<T>(work: impl FnOnce() -> T) -> T {
    with_recording(true, work)
}

fn with_recording<T>(on: bool, work: impl FnOnce() -> T) -> T {
    struct Before(bool);
    impl Drop for Before {
        fn drop(&mut self) {
            RECORDING.set(self.0);
        }
    }
    let _before = Before(RECORDING.replace(on));
    work()
}

/// What the backward pass of an operation reads beside the gradient. What it does not read need not stay in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reads {
    /// Nothing; shapes are always known.
    Shapes,
    /// Values of arguments, not of the result.
    Arguments,
    /// Values of arguments and of the result.
    Everything,
}

/// One of our operations.
enum Operation {
    One(Box<dyn CustomOp1 + Send + Sync>),
    Two(Box<dyn CustomOp2 + Send + Sync>),
    Three(Box<dyn CustomOp3 + Send + Sync>),
}

/// Where a result came from.
struct Node {
    operation: Operation,
    reads: Reads,
    /// None behind a backward pass, which gives their memory back as it goes.
    arguments: Mutex<Vec<Argument>>,
    /// Larger than those of the arguments.
    number: u64,
    result: OnceLock<TensorId>,
}

/// What an operation was applied to.
enum Argument {
    Whole(Tensor),
    /// A recorded result whose values no backward pass reads: where it came from, and a view of one number in its shape.
    Shape(Arc<Node>, Tensor),
}

impl Argument {
    fn tensor(&self) -> &Tensor {
        match self {
            Self::Whole(tensor) | Self::Shape(_, tensor) => tensor,
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(result) = self.result.get() {
            nodes().remove(result);
        }
    }
}

impl Node {
    fn arguments(&self) -> MutexGuard<'_, Vec<Argument>> {
        self.arguments.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets go of the values of those arguments that no backward pass reads.
    fn let_go(&self, handle: &Var) -> Result<()> {
        for argument in self.arguments().iter_mut() {
            let tensor = argument.tensor();
            let Some(node) = node_of(tensor).filter(|node| node.reads != Reads::Everything) else { continue };
            *argument = Argument::Shape(node, handle.broadcast_as(tensor.shape())?);
        }
        Ok(())
    }

    fn name(&self) -> &'static str {
        match &self.operation {
            Operation::One(op) => op.name(),
            Operation::Two(op) => op.name(),
            Operation::Three(op) => op.name(),
        }
    }

    /// Gradients of the arguments, where wanted.
    fn backward(&self, arguments: &[Tensor], result: &Tensor, gradient: &Tensor) -> Result<Vec<Option<Tensor>>> {
        Ok(match (&self.operation, arguments) {
            (Operation::One(op), [a]) => vec![op.bwd(a, result, gradient)?],
            (Operation::Two(op), [a, b]) => {
                let (a, b) = op.bwd(a, b, result, gradient)?;
                vec![a, b]
            }
            (Operation::Three(op), [a, b, c]) => {
                let (a, b, c) = op.bwd(a, b, c, result, gradient)?;
                vec![a, b, c]
            }
            _ => bail!("{}: a second backward pass; add the losses and make one", self.name()),
        })
    }
}

/// `op` on `a`.
pub(crate) fn apply1(a: &Tensor, reads: Reads, op: impl CustomOp1 + Send + Sync + 'static) -> Result<Tensor> {
    if is_recorded(&[a]) { record(Operation::One(Box::new(op)), reads, &[a]) } else { a.apply_op1(op) }
}

/// `op` on `a` and `b`.
pub(crate) fn apply2(a: &Tensor, b: &Tensor, reads: Reads, op: impl CustomOp2 + Send + Sync + 'static) -> Result<Tensor> {
    if is_recorded(&[a, b]) { record(Operation::Two(Box::new(op)), reads, &[a, b]) } else { a.apply_op2(b, op) }
}

/// `op` on `a`, `b` and `c`.
pub(crate) fn apply3(
    a: &Tensor,
    b: &Tensor,
    c: &Tensor,
    reads: Reads,
    op: impl CustomOp3 + Send + Sync + 'static,
) -> Result<Tensor> {
    if is_recorded(&[a, b, c]) { record(Operation::Three(Box::new(op)), reads, &[a, b, c]) } else { a.apply_op3(b, c, op) }
}

fn is_recorded(arguments: &[&Tensor]) -> bool {
    RECORDING.get() && arguments.iter().any(|argument| argument.track_op())
}

/// Where a result that was recorded came from.
fn node_of(result: &Tensor) -> Option<Arc<Node>> {
    nodes().get(&result.id()).and_then(Weak::upgrade)
}

fn record(operation: Operation, reads: Reads, arguments: &[&Tensor]) -> Result<Tensor> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let handle = handle(arguments[0].device())?;
    let node = Arc::new(Node {
        operation,
        reads,
        arguments: Mutex::new(arguments.iter().map(|argument| Argument::Whole((*argument).clone())).collect()),
        number: COUNT.fetch_add(1, Ordering::Relaxed),
        result: OnceLock::new(),
    });
    let result = handle.apply_op1(Recorded(node.clone()))?;
    nodes().insert(result.id(), Arc::downgrade(&node));
    let _ = node.result.set(result.id());
    if reads == Reads::Shapes {
        node.let_go(&handle)?;
    }
    Ok(result)
}

/// The number that recorded operations on a device are told to depend on; it never gets a gradient.
fn handle(device: &Device) -> Result<Var> {
    static HANDLES: LazyLock<Mutex<HashMap<DeviceLocation, Var>>> = LazyLock::new(Mutex::default);
    let mut handles = HANDLES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(handle) = handles.get(&device.location()) {
        return Ok(handle.clone());
    }
    let handle = Var::zeros((), DType::F32, device)?;
    handles.insert(device.location(), handle.clone());
    Ok(handle)
}

/// The operation of a node on its arguments, by the method for a kind of storage.
macro_rules! forward {
    ($node:expr, $kind:ident, $method:ident) => {{
        let arguments = $node.arguments();
        let held: Vec<_> = arguments.iter().map(|argument| argument.tensor().storage_and_layout()).collect();
        let of = |i: usize| match &*held[i].0 {
            Storage::$kind(storage) => Ok((storage, held[i].1)),
            _ => bail!("{}: arguments on the GPU and on the processor", $node.name()),
        };
        match &$node.operation {
            Operation::One(op) => {
                let a = of(0)?;
                op.$method(a.0, a.1)
            }
            Operation::Two(op) => {
                let (a, b) = (of(0)?, of(1)?);
                op.$method(a.0, a.1, b.0, b.1)
            }
            Operation::Three(op) => {
                let (a, b, c) = (of(0)?, of(1)?, of(2)?);
                op.$method(a.0, a.1, b.0, b.1, c.0, c.1)
            }
        }
    }};
}

/// What the engine sees of a result: an operation on a number that means nothing; the arguments are hidden.
struct Recorded(Arc<Node>);

impl CustomOp1 for Recorded {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        forward!(self.0, Cpu, cpu_fwd)
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, _: &candle_core::CudaStorage, _: &Layout) -> Result<(candle_core::CudaStorage, Shape)> {
        forward!(self.0, Cuda, cuda_fwd)
    }

    fn bwd(&self, _: &Tensor, result: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        CAUGHT.with_borrow_mut(|caught| match caught {
            Some(caught) => {
                caught.push((result.clone(), gradient.clone()));
                Ok(None)
            }
            None => bail!("{}: recorded, so the backward pass has to be `nn::backward`", self.name()),
        })
    }
}

/// The gradients of the scalar `loss`: `loss.backward()`, also behind [`recording`]. What was recorded is used up: a second pass through
/// any of it is an error.
pub fn backward(loss: &Tensor) -> Result<GradStore> {
    backward_from(&[(loss, loss.ones_like()?)])
}

/// Backward from several results with gradients of their shapes as where the gradients start: `torch.autograd.backward`.
///
/// # Errors
/// A gradient of another shape.
pub fn backward_from(starts: &[(&Tensor, Tensor)]) -> Result<GradStore> {
    with_recording(false, || {
        let mut flow = Flow::default();
        for (out, gradient) in starts {
            check(out, gradient)?;
            flow.send(out, gradient.detach())?;
        }
        while let Some((_, Pending { node, result, gradient })) = flow.pending.pop_last() {
            let arguments = std::mem::take(&mut *node.arguments());
            let tensors: Vec<Tensor> = arguments.iter().map(|argument| argument.tensor().clone()).collect();
            let gradients = node.backward(&tensors, &result, &gradient)?;
            drop((tensors, result, gradient));
            for (argument, gradient) in arguments.into_iter().zip(gradients) {
                let Some(gradient) = gradient.filter(|_| argument.tensor().track_op()) else { continue };
                check(argument.tensor(), &gradient)?;
                match argument {
                    Argument::Whole(argument) => flow.send(&argument, gradient.detach())?,
                    Argument::Shape(node, result) => flow.arrive(node, &result, gradient.detach())?,
                }
            }
        }
        Ok(flow.leaves)
    })
}

struct Pending {
    node: Arc<Node>,
    result: Tensor,
    gradient: Tensor,
}

/// A backward pass: what has arrived.
#[derive(Default)]
struct Flow {
    /// At our results, by number: every result is taken before what it came from.
    pending: BTreeMap<u64, Pending>,
    leaves: GradStore,
}

impl Flow {
    fn send(&mut self, to: &Tensor, gradient: Tensor) -> Result<()> {
        if to.is_variable() {
            let sum = match self.leaves.remove(to) {
                Some(sum) => sum.add(&gradient)?,
                None => gradient,
            };
            self.leaves.insert(to, sum);
            return Ok(());
        }
        match node_of(to) {
            Some(node) => self.arrive(node, to, gradient),
            None => self.through_engine(to, gradient),
        }
    }

    /// At a result of ours, or what stands for it.
    fn arrive(&mut self, node: Arc<Node>, to: &Tensor, gradient: Tensor) -> Result<()> {
        match self.pending.get_mut(&node.number) {
            Some(pending) => pending.gradient = pending.gradient.add(&gradient)?,
            None => {
                self.pending.insert(node.number, Pending { node, result: to.clone(), gradient });
            }
        }
        Ok(())
    }

    /// Through the engine's own operations, down to parameters and our results.
    fn through_engine(&mut self, to: &Tensor, gradient: Tensor) -> Result<()> {
        if !to.track_op() {
            return Ok(());
        }
        let before = CAUGHT.replace(Some(Vec::new()));
        let store = to.apply_op1(Root(gradient)).and_then(|end| end.backward());
        let caught = CAUGHT.replace(before).unwrap_or_default();
        self.leaves.extend(store?)?;
        caught.into_iter().try_for_each(|(result, gradient)| self.send(&result, gradient))
    }
}

fn check(to: &Tensor, gradient: &Tensor) -> Result<()> {
    match to.shape() == gradient.shape() {
        true => Ok(()),
        false => bail!("a gradient of shape {:?} for a tensor of shape {:?}", gradient.shape(), to.shape()),
    }
}

/// Ends a graph with a given gradient.
struct Root(Tensor);

impl CustomOp1 for Root {
    fn name(&self) -> &'static str {
        "root"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![0.0]), Shape::from(())))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &candle_core::CudaStorage, _: &Layout) -> Result<(candle_core::CudaStorage, Shape)> {
        let device = storage.device.clone();
        Ok((candle_core::CudaStorage::wrap_cuda_slice(device.alloc_zeros::<f32>(1)?, device), Shape::from(())))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(self.0.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Rng;
    use crate::nn::{ConvSpec, add, conv2d, gelu, join_channels, linear, silu, softmax, swap_axes};
    use candle_core::Device;

    struct Weights {
        images: Var,
        kernel: Var,
        bias: Var,
        matrix: Var,
    }

    impl Weights {
        fn new() -> Self {
            let draw = |shape: &[usize], name| {
                let values = Rng::stream(0, name, &[]).normal_tensor(shape, &Device::Cpu).unwrap();
                Var::from_tensor(&values).unwrap()
            };
            Self {
                images: draw(&[2, 4, 6, 6], "images"),
                kernel: draw(&[4, 4, 3, 3], "kernel"),
                bias: draw(&[4], "bias"),
                matrix: draw(&[36, 36], "matrix"),
            }
        }

        fn all(&self) -> [&Var; 4] {
            [&self.images, &self.kernel, &self.bias, &self.matrix]
        }

        /// Shared weights, paths that part and meet, and operations of the engine between ours.
        fn loss(&self) -> Result<Tensor> {
            let conv = |xs: &Tensor| conv2d(xs, &self.kernel, Some(&self.bias), ConvSpec { padding: 1, ..ConvSpec::default() });
            let first = silu(&conv(&self.images)?)?;
            let second = conv(&first)?;
            let sum = add(&first, &second)?;
            let tokens = swap_axes(&sum, [2, 4, 36, 1], (2, 36, 4))?;
            let back = gelu(&swap_axes(&tokens, [2, 36, 4, 1], (2, 4, 36))?)?;
            let mixed = linear(&back.reshape((8, 36))?, &self.matrix, None)?.reshape((2, 4, 6, 6))?;
            let joined = join_channels(&(&mixed * 0.5)?, &second.narrow(1, 1, 2)?)?;
            let own = (joined.narrow(1, 0, 4)?.relu()? + &sum)?;
            conv(&own)?.sqr()?.mean_all()? + joined.sqr()?.sum_all()?
        }

        fn gradients(&self, store: &GradStore) -> Vec<Vec<f32>> {
            self.all().map(|var| store.get(var).unwrap().flatten_all().unwrap().to_vec1().unwrap()).to_vec()
        }
    }

    #[test]
    fn gradients_are_those_of_the_engine() {
        let weights = Weights::new();
        let plain = weights.loss().unwrap();
        let expected = weights.gradients(&plain.backward().unwrap());
        assert_eq!(weights.gradients(&backward(&plain).unwrap()), expected, "nothing was recorded");
        let recorded = recording(|| weights.loss()).unwrap();
        assert_eq!(recorded.to_scalar::<f32>().unwrap(), plain.to_scalar::<f32>().unwrap());
        let found = weights.gradients(&backward(&recorded).unwrap());
        for (found, expected) in found.iter().flatten().zip(expected.iter().flatten()) {
            assert!((found - expected).abs() <= 2e-6 * expected.abs().max(1.0), "{found} {expected}");
        }
        let again = weights.gradients(&backward(&recording(|| weights.loss()).unwrap()).unwrap());
        assert_eq!(again, found, "the same bits every time");
        let elsewhere = std::thread::scope(|scope| {
            let recorded = scope.spawn(|| recording(|| weights.loss()).unwrap()).join().unwrap();
            weights.gradients(&backward(&recorded).unwrap())
        });
        assert_eq!(elsewhere, found, "recorded on another thread");
    }

    #[test]
    fn what_is_not_kept_is_forgotten() {
        let weights = Weights::new();
        let result = recording(|| silu(&weights.images)).unwrap();
        let id = result.id();
        assert!(nodes().contains_key(&id));
        drop(result);
        assert!(!nodes().contains_key(&id));
        assert!(!nodes().contains_key(&silu(&weights.images).unwrap().id()), "recording ends with its work");
        let unwanted = recording(|| silu(&weights.images.as_detached_tensor())).unwrap();
        assert!(!unwanted.track_op() && !nodes().contains_key(&unwanted.id()));
    }

    #[test]
    fn the_engine_alone_says_what_to_call() {
        let weights = Weights::new();
        let loss = recording(|| weights.loss()).unwrap();
        let message = loss.backward().unwrap_err().to_string();
        assert!(message.contains("nn::backward"), "{message}");
        assert!(backward(&loss).is_ok(), "and nothing is lost");
        assert!(backward(&loss).unwrap_err().to_string().contains("a second backward pass"));
        let start = weights.images.zeros_like().unwrap();
        assert!(backward_from(&[(&loss, start)]).unwrap_err().to_string().contains("a gradient of shape"));
    }

    #[test]
    fn values_that_no_backward_pass_reads_are_let_go() {
        let weights = Weights::new();
        let kept = |result: &Tensor| -> Vec<bool> {
            let node = node_of(result).unwrap();
            node.arguments().iter().map(|argument| matches!(argument, Argument::Whole(_))).collect()
        };
        recording(|| {
            let conv = conv2d(&weights.images, &weights.kernel, None, ConvSpec { padding: 1, ..ConvSpec::default() })?;
            let odds = softmax(&conv)?;
            assert_eq!(kept(&add(&conv, &odds)?), [false, true], "softmax reads its result");
            assert_eq!(kept(&add(&conv, &weights.images)?), [false, true], "a parameter");
            assert_eq!(kept(&add(&conv, &(&conv * 2.0)?)?), [false, true], "a result of the engine");
            assert_eq!(kept(&silu(&conv)?), [true], "silu reads its argument");
            candle_core::Result::Ok(())
        })
        .unwrap();
    }

    #[test]
    fn constants_take_no_gradients() {
        let weights = Weights::new();
        let constant = weights.images.as_detached_tensor();
        let loss = recording(|| add(&constant, &silu(&weights.images)?)?.sum_all()).unwrap();
        let store = backward(&loss).unwrap();
        assert_eq!(store.get_ids().count(), 1);
    }
}
