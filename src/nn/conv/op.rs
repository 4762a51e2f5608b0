//! The convolution as a candle operation: sizes, dispatch, bias.

use super::{ConvSpec, columns, depthwise, direct, small, tiles, winograd};
use crate::nn::cpu::{self, Gradients3};
use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

/// All sizes of one convolution.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    pub batch: usize,
    pub in_channels: usize,
    pub height: usize,
    pub width: usize,
    pub out_channels: usize,
    pub kernel_height: usize,
    pub kernel_width: usize,
    pub out_height: usize,
    pub out_width: usize,
    pub spec: ConvSpec,
}

impl Sizes {
    /// # Errors
    /// When the shapes do not belong together.
    pub fn new(xs: &[usize], weight: &[usize], spec: ConvSpec) -> Result<Self> {
        let (&[batch, in_channels, height, width], &[out_channels, per_group, kernel_height, kernel_width]) = (xs, weight) else {
            bail!("conv2d needs four dimensions, found inputs {xs:?} and weight {weight:?}")
        };
        let ConvSpec { stride, padding, dilation, groups } = spec;
        if xs.contains(&0)
            || weight.contains(&0)
            || groups == 0
            || stride == 0
            || in_channels != per_group * groups
            || out_channels % groups != 0
        {
            bail!("conv2d: inputs {xs:?} and weight {weight:?} do not fit {spec:?}")
        }
        let out = |size: usize, kernel: usize| match (size + 2 * padding).checked_sub(dilation * (kernel - 1) + 1) {
            Some(room) => Ok(room / stride + 1),
            None => bail!("conv2d: inputs {xs:?} are smaller than the kernel {weight:?} with {spec:?}"),
        };
        let (out_height, out_width) = (out(height, kernel_height)?, out(width, kernel_width)?);
        Ok(Self { batch, in_channels, height, width, out_channels, kernel_height, kernel_width, out_height, out_width, spec })
    }

    /// # Errors
    /// When a bias of these dimensions is neither one number a channel nor one a channel and image.
    pub fn check_bias(&self, dims: Option<&[usize]>) -> Result<()> {
        match dims {
            Some(dims) if dims != [self.out_channels] && dims != [self.batch, self.out_channels] => {
                bail!("conv2d: bias {dims:?} for {} channels of {} images", self.out_channels, self.batch)
            }
            _ => Ok(()),
        }
    }

    /// Pixels of one input channel.
    pub fn in_plane(&self) -> usize {
        self.height * self.width
    }

    /// Pixels of one output channel.
    pub fn out_plane(&self) -> usize {
        self.out_height * self.out_width
    }

    /// Taps of one kernel plane.
    pub fn area(&self) -> usize {
        self.kernel_height * self.kernel_width
    }

    /// The input row under kernel row `ky` for output row `y`, if it is not padding.
    pub fn source_row(&self, y: usize, ky: usize) -> Option<usize> {
        (y * self.spec.stride + ky * self.spec.dilation).checked_sub(self.spec.padding).filter(|row| *row < self.height)
    }

    fn method(&self, direction: Direction) -> Method {
        match () {
            () if self.spec.groups == self.in_channels && self.spec.groups > 1 => Method::Depthwise,
            () if tiles::wins(self) => Method::Tiles,
            () if direct::wins(self, direction) => Method::Direct,
            () if small::wins(self) => Method::Small,
            () if winograd::wins(self, direction) => Method::Winograd,
            () => Method::Columns,
        }
    }

    fn out_shape(&self) -> Shape {
        (self.batch, self.out_channels, self.out_height, self.out_width).into()
    }
}

/// What a backward pass starts from; shapes as in the forward pass.
pub struct Backward<'a> {
    pub xs: &'a [f32],
    pub weight: &'a [f32],
    /// Of the result.
    pub gradient: &'a [f32],
    /// Whether the gradients of inputs and of the weight are wanted.
    pub wanted: (bool, bool),
}

/// Gradients of inputs and weight, each only when it was wanted.
pub type InputAndWeight = (Option<Vec<f32>>, Option<Vec<f32>>);

/// Which way values go; each way has the method that is fastest for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Forward,
    Backward,
}

/// How a convolution is computed.
enum Method {
    /// Every input channel has its own kernels.
    Depthwise,
    /// Factors rounded to bf16, on the matrix unit.
    Tiles,
    Winograd,
    /// Straight from padded planes.
    Direct,
    /// Columns of several images in one product.
    Small,
    Columns,
}

/// Convolution with two (inputs, weight) or three arguments (bias).
pub struct Convolution(pub ConvSpec);

impl Convolution {
    fn forward(
        &self,
        xs: (&[f32], &Layout),
        weight: (&[f32], &Layout),
        bias: Option<(&[f32], &Layout)>,
    ) -> Result<(CpuStorage, Shape)> {
        let sizes = Sizes::new(xs.1.dims(), weight.1.dims(), self.0)?;
        sizes.check_bias(bias.map(|bias| bias.1.dims()))?;
        let forward = match sizes.method(Direction::Forward) {
            Method::Depthwise => depthwise::forward,
            Method::Tiles => tiles::forward,
            Method::Winograd => winograd::forward,
            Method::Direct => direct::forward,
            Method::Small => small::forward,
            Method::Columns => columns::forward,
        };
        let out = forward(&sizes, xs.0, weight.0, bias.map(|bias| bias.0));
        Ok((CpuStorage::F32(out), sizes.out_shape()))
    }

    fn backward(&self, xs: &Tensor, weight: &Tensor, gradient: &[f32]) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let sizes = Sizes::new(xs.dims(), weight.dims(), self.0)?;
        let (xs_values, weight_values) = (cpu::read(xs)?, cpu::read(weight)?);
        let backward = match sizes.method(Direction::Backward) {
            Method::Depthwise => depthwise::backward,
            Method::Tiles => tiles::backward,
            Method::Winograd => winograd::backward,
            Method::Direct => direct::backward,
            Method::Small => small::backward,
            Method::Columns => columns::backward,
        };
        let wanted = (xs.track_op(), weight.track_op());
        let (for_xs, for_weight) = backward(&sizes, &Backward { xs: &xs_values, weight: &weight_values, gradient, wanted });
        Ok((
            for_xs.map(|values| cpu::tensor(values, xs.shape())).transpose()?,
            for_weight.map(|values| cpu::tensor(values, weight.shape())).transpose()?,
        ))
    }
}

/// Sum of the gradient over pixels and, where `len` numbers are shared by all images, over those.
fn bias_gradient(gradient: &[f32], len: usize, plane: usize) -> Vec<f32> {
    let planes = gradient.len() / plane.max(1);
    let sum = |first| (first..planes).step_by(len).map(|i| plane_sum(&gradient[i * plane..][..plane])).sum::<f64>() as f32;
    (0..len).into_par_iter().map(sum).collect()
}

cpu::vectorised! {
    fn plane_sum(plane: &[f32]) -> f64 {
        cpu::sum(plane, |x| x)
    }
}

impl CustomOp2 for Convolution {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        self.forward((cpu::values(s1, l1)?, l1), (cpu::values(s2, l2)?, l2), None)
    }

    fn bwd(&self, xs: &Tensor, weight: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let gradient = cpu::contiguous_gradient(gradient)?;
        self.backward(xs, weight, &cpu::read(&gradient)?)
    }
}

impl CustomOp3 for Convolution {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.forward((cpu::values(s1, l1)?, l1), (cpu::values(s2, l2)?, l2), Some((cpu::values(s3, l3)?, l3)))
    }

    fn bwd(&self, xs: &Tensor, weight: &Tensor, bias: &Tensor, result: &Tensor, gradient: &Tensor) -> Result<Gradients3> {
        let gradient = cpu::contiguous_gradient(gradient)?;
        let g = cpu::read(&gradient)?;
        let (for_xs, for_weight) = self.backward(xs, weight, &g)?;
        let (_, _, height, width) = result.dims4()?;
        let for_bias = || cpu::tensor(bias_gradient(&g, bias.elem_count(), height * width), bias.shape());
        Ok((for_xs, for_weight, bias.track_op().then(for_bias).transpose()?))
    }
}
