//! Deformable attention, and samples of maps at points, for tensors on the GPU. Shapes were checked by the callers.

use super::device::{Buffer, Gpu, with_gradient};
use super::programs::{DeformableInputs, DeformableSizes, PointSizes};
use candle_core::{DType, Result, Tensor};

/// Which samples a deformable attention takes: constants on the GPU.
struct Plan {
    sizes: DeformableSizes,
    references: Tensor,
    shapes: Tensor,
}

impl Plan {
    fn with_inputs<'a, R>(
        &'a self,
        [value, offsets, weights]: [&'a Tensor; 3],
        run: impl FnOnce(&Gpu<'a>, &DeformableInputs<Buffer<'a>>) -> Result<R>,
    ) -> Result<R> {
        let gpu = Gpu::of(value)?;
        let inputs = DeformableInputs {
            value: &gpu.input(value, value.dtype())?,
            offsets: &gpu.input(offsets, DType::F32)?,
            weights: &gpu.input(weights, DType::F32)?,
            references: &gpu.input(&self.references, DType::F32)?,
            shapes: &gpu.input(&self.shapes, DType::U32)?,
        };
        run(&gpu, &inputs)
    }
}

/// `value` (B, N, heads, d), `offsets` (B, Q, heads, L, P, 2) and `weights` (B, Q, heads, L, P), which are made f32: bf16
/// could not say where to look. `references` holds Q pairs (x, y).
pub fn deformable_attention(
    value: &Tensor,
    offsets: &Tensor,
    weights: &Tensor,
    sizes: DeformableSizes,
    references: &[f32],
) -> Result<Tensor> {
    let device = value.device();
    let value = &value.contiguous()?;
    let (offsets, weights) = (&offsets.to_dtype(DType::F32)?.contiguous()?, &weights.to_dtype(DType::F32)?.contiguous()?);
    let shapes = sizes.shapes();
    let shape = (sizes.images, sizes.queries, sizes.heads * sizes.dim);
    let plan = Plan {
        references: Tensor::from_slice(references, references.len(), device)?,
        shapes: Tensor::from_slice(&shapes, shapes.len(), device)?,
        sizes,
    };
    let args = [value, offsets, weights];
    let out = plan.with_inputs(args, |gpu, inputs| gpu.kernels(value)?.deformable(inputs, &plan.sizes)?.detached())?;
    with_gradient("deformable-attention", &args, out, shape, move |given| {
        let [value, offsets, weights] = [given.args[0], given.args[1], given.args[2]];
        plan.with_inputs([value, offsets, weights], |gpu, inputs| {
            let (kernels, gradient) = (gpu.kernels(value)?, gpu.input(given.gradient, value.dtype())?);
            let for_value = || kernels.deformable_value_gradient(inputs, &gradient, &plan.sizes)?.tensor(value.shape());
            let for_value = value.track_op().then(for_value).transpose()?;
            if !offsets.track_op() && !weights.track_op() {
                return Ok(vec![for_value, None, None]);
            }
            let (for_offsets, for_weights) = kernels.deformable_slopes(inputs, &gradient, &plan.sizes)?;
            let tensor = |found: Buffer, like: &Tensor| like.track_op().then(|| found.tensor(like.shape())).transpose();
            Ok(vec![for_value, tensor(for_offsets, offsets)?, tensor(for_weights, weights)?])
        })
    })
}

/// `maps` (M, H, W) at `per_map` points for each map, or for all → (M, per_map)
pub fn sample_points(maps: &Tensor, points: &[f32], per_map: usize) -> Result<Tensor> {
    let maps = &maps.contiguous()?;
    let (count, height, width) = maps.dims3()?;
    let sizes = PointSizes { maps: count, height, width, per_map, own: points.len() != 2 * per_map };
    let points = Tensor::from_slice(points, points.len(), maps.device())?;
    let gpu = Gpu::of(maps)?;
    let inputs = (gpu.input(maps, maps.dtype())?, gpu.input(&points, DType::F32)?);
    let out = gpu.kernels(maps)?.sample_points(&inputs.0, &inputs.1, sizes)?.detached()?;
    let constant = points.clone();
    with_gradient("sample-points", &[maps], out, (count, per_map), move |given| {
        let maps = given.args[0];
        let gpu = Gpu::of(maps)?;
        let gradient = gpu.input(given.gradient, maps.dtype())?;
        let found = gpu.kernels(maps)?.sample_points_gradient(&gpu.input(&constant, DType::F32)?, &gradient, sizes)?;
        Ok(vec![Some(found.tensor(maps.shape())?)])
    })
}
