//! Trades time for memory: parts of a network whose inner activations are computed again in the backward pass.

use super::graph::{self, Reads};
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, TensorId, Var, bail};
use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

/// Collects what recomputed segments find out about parameters while gradients flow back through them.
///
/// A segment is an operation without parameters for the engine, so the gradients of its parameters do not appear in the
/// engine's own store: call [`Self::backward`] instead of `loss.backward()`.
///
/// # Source
/// Chen et al., "Training deep nets with sublinear memory cost", section 4; `gradient_checkpointing` of diffusers.
#[derive(Debug, Clone)]
pub struct Recompute {
    parameters: Arc<HashSet<TensorId>>,
    found: Arc<Mutex<GradStore>>,
}

impl Recompute {
    /// For a network with these trainable parameters.
    pub fn new<'a>(parameters: impl IntoIterator<Item = &'a Var>) -> Self {
        let parameters = parameters.into_iter().map(|var| var.as_tensor().id()).collect();
        Self { parameters: Arc::new(parameters), found: Arc::default() }
    }

    /// `forward(a, b, c)`, of which only arguments and result stay in memory. The result has the same bits as without;
    /// gradients are the same to rounding, because where paths meet the engine adds in another order.
    ///
    /// `forward` is called here and again in the backward pass and must give the same both times.
    pub fn run<F>(&self, forward: F, [a, b, c]: [&Tensor; 3]) -> Result<Tensor>
    where
        F: Fn(&Tensor, &Tensor, &Tensor) -> Result<Tensor> + Send + Sync + 'static,
    {
        if ![a, b, c].iter().any(|x| x.track_op()) {
            // Nothing to flow back into, so that the engine would never ask: parameters inside need the plain graph.
            return forward(a, b, c);
        }
        let out = forward(&a.detach(), &b.detach(), &c.detach())?.detach().contiguous()?;
        graph::apply3(a, b, c, Reads::Everything, Segment { forward, out: Mutex::new(Some(out)), recompute: self.clone() })
    }

    /// The gradients of everything `loss` depends on, the parameters of segments included.
    pub fn backward(&self, loss: &Tensor) -> Result<GradStore> {
        let mut store = graph::backward(loss)?;
        store.extend(std::mem::take(&mut *self.found.lock().unwrap_or_else(PoisonError::into_inner)))?;
        Ok(store)
    }

    fn keep(&self, store: &mut GradStore) -> Result<()> {
        let ids: Vec<TensorId> = store.get_ids().copied().filter(|id| self.parameters.contains(id)).collect();
        let mut own = GradStore::default();
        for id in ids {
            if let Some(gradient) = store.get_id(id) {
                own.insert_id(id, gradient.clone());
            }
        }
        self.found.lock().unwrap_or_else(PoisonError::into_inner).extend(own)
    }
}

/// A part of a network as one operation.
struct Segment<F> {
    forward: F,
    /// The result, until the engine has taken it.
    out: Mutex<Option<Tensor>>,
    recompute: Recompute,
}

impl<F> CustomOp3 for Segment<F>
where
    F: Fn(&Tensor, &Tensor, &Tensor) -> Result<Tensor> + Send + Sync,
{
    fn name(&self) -> &'static str {
        "recomputed segment"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let Some(out) = self.out.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            bail!("a recomputed segment runs once")
        };
        // A clone of the storage would keep what lies before a view.
        let out = if out.layout().start_offset() == 0 { out } else { out.force_contiguous()? };
        let (storage, _) = out.storage_and_layout();
        match &*storage {
            candle_core::Storage::Cpu(storage) => Ok((storage.clone(), out.shape().clone())),
            _ => bail!("a recomputed segment stays on its device"),
        }
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        use candle_core::backend::BackendStorage;
        let Some(out) = self.out.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            bail!("a recomputed segment runs once")
        };
        // A clone of the storage would keep what lies before a view.
        let out = if out.layout().start_offset() == 0 { out } else { out.force_contiguous()? };
        let (storage, layout) = out.storage_and_layout();
        match &*storage {
            candle_core::Storage::Cuda(storage) => Ok((storage.try_clone(layout)?, out.shape().clone())),
            _ => bail!("a recomputed segment stays on its device"),
        }
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        c: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let inputs = [input(a)?, input(b)?, input(c)?];
        let out = graph::recording(|| (self.forward)(&inputs[0], &inputs[1], &inputs[2]))?;
        let mut store = graph::backward_from(&[(&out, gradient.clone())])?;
        let [a, b, c] = inputs.map(|input| if input.is_variable() { store.remove(&input) } else { None });
        self.recompute.keep(&mut store)?;
        Ok((a, b, c))
    }
}

/// An argument for the second pass: with a gradient of its own where one is wanted.
fn input(xs: &Tensor) -> Result<Tensor> {
    if xs.track_op() { Ok(Var::from_tensor(&xs.detach())?.into_inner()) } else { Ok(xs.detach()) }
}
